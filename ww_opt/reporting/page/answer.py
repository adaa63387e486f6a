"""The answer: the pick and its settings, what it gained, how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from ww_opt.reporting.closing_text import counts, nothing_to_pick, pruning
from ww_opt.reporting.page.facts import Facts
from ww_opt.reporting.page.section import Section
from ww_opt.reporting.summary import parameters
from ww_opt.reporting.terminal import are_shares, number
from ww_opt.search import records
from ww_opt.search.coordinates import agree, kind_of
from ww_opt.search.ranking import some
from ww_opt.search.repeats import spread, start_of

__all__ = ["gain_section", "pick_section", "trust_section"]

_SURE = 1.96
"""Standard deviations to each side that make an interval of 95 %."""
_UNLABELLED = "all layers"
_GAINS = ("over", "of", "pick", "other", "gained", "low", "high", "source")


def pick_section(facts: Facts) -> Section:
    """Name the pick, its score, its settings and beside them those that the user came with."""
    result, pick = facts.result, facts.pick
    gaps = tuple(_about_gaps(facts))
    if pick is None or pick.value is None:
        title = "No trial yet" if not facts.trials else "No pick"
        nothing = [nothing_to_pick(result)] if any(own.state.is_finished() for own in facts.trials) else []
        return Section("pick", title, (*nothing, *_about_state(facts)), notes=gaps)
    title = f"The pick: trial {pick.number}"
    if pick.number == facts.start:
        title = f"Keep the settings you came with: trial {pick.number}"
    better = "lower" if facts.sign > 0 else "higher"
    head = f"Score {number(pick.value)}, {better} is better"
    if result.look is not None and math.isfinite(result.look.train_loss):
        head += f"; training loss {number(result.look.train_loss)}"
    if result.look is not None and math.isfinite(result.look.late_accuracy):
        head += f"; {result.look.late_accuracy:.1%} of the {result.look.n_late} late examples right"
    notes = (*((result.meaning,) if result.meaning else ()), *gaps)
    return Section(
        "pick", title, (f"{head}.", *_about_state(facts)), _settings_frame(pick, _came_with(facts)), notes=notes
    )


def _about_state(facts: Facts) -> Iterator[str]:
    if not facts.trials:
        yield "The study has no trial yet."
        return
    budget = f" of {facts.study.n_trials}" if facts.study is not None else ""
    ended = [trial for trial in facts.trials if trial.state.is_finished()]
    said = f"{len(ended)}{budget} trials have ended: {counts(facts.result)}"
    said += f"; {pruning(facts.result)}" if facts.n_steps and facts.result.n_pruned else ""
    if math.isfinite(facts.result.look_share):
        said += f". Looks took {facts.result.look_share:.1%} of the training time"
    yield f"{said}."
    if running := facts.in_state(TrialState.RUNNING):
        yield f"Running, or cut off without a word: {some([own.number for own in running])}. This is what is known now."


def _about_gaps(facts: Facts) -> Iterator[str]:
    """Say what is missing, and how to have it."""
    finished = [own for own in facts.trials if own.state.is_finished()]
    if finished and not any(records.last_step(own) is not None for own in finished):
        yield (
            "No trial has records of ww_opt, so layers, losses and reasons are not known: train through `ww_opt.Run` "
            "or `SpectralObjective`, or call `ww_opt.report` in your loop."
        )
    if facts.study is None:
        yield "The study's file was not given, so what the score means and what guards it cannot be said here."


def _came_with(facts: Facts) -> dict[str, Any]:
    """Parameters that the user came with, constants included where they were trained."""
    if facts.start is None:
        return dict(start_of(facts.host) or {})
    return parameters(next(own for own in facts.trials if own.number == facts.start))


def _settings_frame(pick: FrozenTrial, before: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each layer or label, a column for each kind of setting, and ``<kind>_before`` where it was another."""
    own = _by_label(parameters(pick))
    old = _by_label(before)
    kinds = list(dict.fromkeys(kind for row in own.values() for kind in row))
    rows = []
    for label, row in own.items():
        cells: dict[str, Any] = {"layer": label}
        for kind in kinds:
            cells[kind] = row.get(kind)
            cells[f"{kind}_before"] = old.get(label, {}).get(kind)
        rows.append(cells)
    frame = pd.DataFrame(rows, columns=["layer", *(name for kind in kinds for name in (kind, f"{kind}_before"))])
    if list(own) == [_UNLABELLED]:
        frame = frame.drop(columns="layer")
    same = [f"{kind}_before" for kind in kinds if _is_as_before(frame, kind)]
    return frame.drop(columns=same)


def _is_as_before(frame: pd.DataFrame, kind: str) -> bool:
    before = frame[f"{kind}_before"]
    return bool(before.isna().all() or before.equals(frame[kind]))


def _by_label(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        kind, slash, label = name.partition("/")
        found.setdefault(label if slash and label else _UNLABELLED, {})[kind if slash and label else name] = value
    return found


def gain_section(facts: Facts) -> Section:
    """Say what the pick gained over what the user came with and over shared settings, with intervals of 95 %."""
    rows = [] if facts.pick is None else [*_over_start(facts), *_over_shared(facts), *_on_test_set(facts)]
    sentences = list(_about_gain(facts)) if facts.pick is not None else []
    notes = ("Gained is how much better the pick is, above 0 where it is; low and high are its interval of 95 %.",)
    frame = pd.DataFrame(rows, columns=list(_GAINS))
    return Section("gain", "What it gained", tuple(sentences), frame, notes=notes if rows else ())


def _over_start(facts: Facts) -> Iterator[dict[str, Any]]:
    pick, start = facts.pick, facts.start
    if pick is None or pick.value is None or start is None or start == pick.number:
        return
    over = f"what you came with (trial {start})"
    compared = spread(facts.host, facts.ranked)
    if compared is not None and {start, pick.number} <= compared.means.keys() and math.isfinite(compared.noise):
        own, other = compared.means[pick.number], compared.means[start]
        yield _gained(over, "score", (facts.sign * own, facts.sign * other), (other - own, compared.of_difference)) | {
            "source": f"means of {compared.n_draws} trainings each, with other seeds and other late examples"
        }
        return
    first = next((own for own in facts.ranked if own.number == start), None)
    if first is None or first.value is None:
        return
    gain = facts.sign * (first.value - pick.value)
    yield _gained(over, "score", (pick.value, first.value), (gain, math.sqrt(2.0) * facts.result.noise)) | {
        "source": "one training each; the pick was chosen for its value, so this flatters it"
    }


def _over_shared(facts: Facts) -> Iterator[dict[str, Any]]:
    found = facts.result.importance
    if found is None or found.gain is None:
        return
    own = found.gain
    seen = "" if own.n_shared else "; no trial shared its settings, so that it extrapolates"
    yield _gained("the best shared settings", "score", (math.nan, math.nan), (own.gained, own.sd)) | {
        "source": f"belief of the Gaussian process about trial {own.trial} and the best shared point{seen}"
    }


def _on_test_set(facts: Facts) -> Iterator[dict[str, Any]]:
    own = facts.accuracy
    if own is None:
        return
    others = (
        (f"what you came with (trial {own.start_number})", own.start),
        (f"the best trial with shared settings (trial {own.shared_number})", own.shared),
    )
    for over, value in others:
        if math.isfinite(value):
            yield _gained(over, f"{own.metric} on the sealed test set", (own.pick, value), (own.pick - value, math.nan))


def _gained(over: str, of: str, values: tuple[float, float], gain: tuple[float, float]) -> dict[str, Any]:
    low, high = gain[0] - _SURE * gain[1], gain[0] + _SURE * gain[1]
    source = "weights of one training each"
    return dict(zip(_GAINS, (over, of, *values, gain[0], low, high, source), strict=True))


def _about_gain(facts: Facts) -> Iterator[str]:
    pick, found = facts.pick, facts.result.importance
    assert pick is not None
    if facts.start is None:
        yield "The study did not begin with a configuration of yours, so what was gained over it is not known."
    elif facts.start == pick.number:
        yield "What you came with is the pick: nothing beat it by more than the noise."
    if agree(pick.params):
        yield "The layers of the pick share their settings."
    elif any(map(kind_of, pick.params)) and (found is None or found.gain is None):
        yield "What settings per layer gained over shared ones cannot be told."
    own = facts.accuracy
    if own is not None:
        told = f"{own.pick:.1%}" if are_shares(own.metric, [own.pick]) else number(own.pick)
        again = ""
        if math.isfinite(own.again):
            shown = f"{own.again:.1%}" if are_shares(own.metric, [own.again]) else number(own.again)
            again = f", {shown} trained again with all examples from the start"
        yield f"The sealed test set, which chose nothing, gives the pick {own.metric} {told}{again}."


def trust_section(facts: Facts) -> Section:
    """List what must be read first, and how far the ranking can be trusted."""
    rows = [("read first", own) for own in facts.result.alarms] + [("trust", own) for own in facts.result.trust]
    said: tuple[str, ...] = ()
    if facts.pick is None:
        said = ("There is no pick to trust.",)
    elif not facts.result.trust:
        said = ("The records say nothing for it or against it.",)
    return Section("trust", "How far to trust it", said, pd.DataFrame(rows, columns=["what", "sentence"]))
