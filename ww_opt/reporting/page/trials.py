"""The trials: score over trials, those that ended early, all of them in a table, any two side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from ww_opt.reporting.closing_text import counts, pruning
from ww_opt.reporting.page.drawings import scores_figure, steps_figure
from ww_opt.reporting.page.facts import Facts
from ww_opt.reporting.page.section import PICK, Drawing, Section
from ww_opt.reporting.summary import parameters, steps_run
from ww_opt.search import records
from ww_opt.search.decisions import decisions
from ww_opt.search.ranking import outcome
from ww_opt.search.repeats import repeat_of
from ww_opt.study.secrets import without_logins

__all__ = ["compare_section", "ended_section", "scores_section", "trials_section"]

_MAX_SETTINGS = 12
"""Settings that find room in the table of trials; of more, the medians of each kind."""
_MAX_CELLS = 8000
"""Trials times layers whose alphas and spikes are kept for the comparison."""
_MEASURES = ("trial", "outcome", "score", "train_loss", "late_loss", "late_accuracy", "steps", "seconds", "repeats")


def scores_section(facts: Facts) -> Section:
    """Score over trials, with the best so far."""
    done = [own for own in facts.trials if own.state is TrialState.COMPLETE]
    ranked = {own.number for own in facts.ranked}
    best, rows = math.inf, []
    for own in done:
        value = own.value if own.value is not None else math.nan
        if own.number in ranked:
            best = min(best, facts.sign * value)
        rows.append((own.number, value, facts.sign * best if math.isfinite(best) else math.nan, _part(facts, own)))
    frame = pd.DataFrame(rows, columns=["trial", "score", "best_so_far", "what"])
    better = "lower" if facts.sign > 0 else "higher"
    said = f"Each dot is a trial that completed; {better} is better. The line is the best so far."
    if any(repeat_of(own) for own in done):
        said += " Hollow dots are repeats of leaders with other seeds: they count for their leader, by the mean."
    if math.isfinite(facts.result.noise):
        said += " What lies in the shaded band the seeds cannot tell from the pick."
    drawings = () if not rows else (Drawing(_words(facts, len(done)), partial(scores_figure, facts)),)
    if not rows:
        said = "No trial has completed yet." if facts.trials else "The study has no trial yet."
    return Section("scores", "Score over trials", (said,), frame, drawings)


def _words(facts: Facts, n: int) -> str:
    pick = facts.pick
    best = "" if pick is None or pick.value is None else f"; the pick is trial {pick.number} at {pick.value:.4g}"
    return f"Score of {n} completed trials over their numbers{best}"


def _part(facts: Facts, trial: FrozenTrial) -> str:
    repeat = repeat_of(trial)
    if repeat is not None:
        return f"repeat of trial {repeat.of}"
    if facts.pick is not None and trial.number == facts.pick.number:
        return PICK
    return "what you came with" if trial.number == facts.start else "search"


def ended_section(facts: Facts) -> Section:
    """Trials that were pruned, failed or interrupted: when, why, and what that saved."""
    ended = facts.in_state(TrialState.PRUNED, TrialState.FAIL)
    columns = ["trial", "outcome", "at_step", "steps_saved", "rule", "value", "threshold", "compared_with", "reason"]
    frame = pd.DataFrame([_ended(facts, own) for own in ended], columns=columns)
    frame = frame.drop(columns=[name for name in columns[4:] if frame[name].isna().all()])
    if not ended:
        return Section("ended", "Pruned and failed trials", ("Every trial that ended ran to its end.",))
    said = f"{counts(facts.result)}; {pruning(facts.result)}." if facts.n_steps else f"{counts(facts.result)}."
    sentences = [said]
    if facts.result.n_pruned and facts.n_steps:
        sentences.append("Steps saved are those that a pruned trial had left of its run; a failed one saves none.")
    if not any(records.reason(own) for own in ended):
        sentences.append("No reasons are on record: these trials were ended by something else than ww_opt.")
    drawings = (Drawing(f"Training steps of {len(facts.trials)} trials", partial(steps_figure, facts)),)
    return Section("ended", "Pruned and failed trials", tuple(sentences), frame, drawings if facts.n_steps else ())


def _ended(facts: Facts, trial: FrozenTrial) -> dict[str, Any]:
    told = next((own for own in reversed(decisions(trial)) if own.is_pruned), None)
    ran = steps_run(trial)
    is_pruned = trial.state is TrialState.PRUNED
    reason = records.reason(trial) or (told.words if told is not None else "")
    return {
        "trial": trial.number,
        "outcome": outcome(trial),
        "at_step": ran,
        "steps_saved": max(facts.n_steps - ran, 0) if is_pruned and facts.n_steps else None,
        "rule": told.rule if told is not None else None,
        "value": told.value if told is not None else math.nan,
        "threshold": told.threshold if told is not None else math.nan,
        "compared_with": len(told.compared) or None if told is not None else None,
        "reason": without_logins(" ".join(reason.split())) or None,
    }


def trials_section(facts: Facts) -> Section:
    """All trials: what came out, what they cost, their settings; beyond what is shown, their layers."""
    measures = pd.DataFrame([_measured(own) for own in facts.trials], columns=list(_MEASURES))
    settings = pd.DataFrame([_told(parameters(own)) for own in facts.trials], index=measures.index)
    medians = pd.DataFrame(index=measures.index)
    shown = [str(name) for name in settings]
    if len(shown) > _MAX_SETTINGS:
        medians = _medians(settings)
        shown = [str(name) for name in medians]
    frame = pd.concat([measures, medians, settings, _layers(facts)], axis=1)
    empty = [name for name in ("train_loss", "late_loss", "late_accuracy", "repeats") if measures[name].isna().all()]
    whom = " with the pick" if facts.pick is not None else ""
    sentences = [f"Choose a column's head to sort by it, a trial's number to compare it{whom}."]
    if not medians.empty:
        sentences.append(
            f"Of {len(settings.columns)} settings the medians of each kind are shown; the comparison has all."
        )
    if not facts.trials:
        sentences = ["The study has no trial yet."]
    columns = [name for name in _MEASURES if name not in empty]
    return Section("trials", "All trials", tuple(sentences), frame, shown=(*columns, *shown) if facts.trials else None)


def _measured(trial: FrozenTrial) -> tuple[Any, ...]:
    look, repeat = records.last_look(trial), repeat_of(trial)
    losses = [math.nan] * 3 if look is None else [look.train_loss, look.late_loss, look.late_accuracy]
    seconds = trial.duration.total_seconds() if trial.duration is not None else math.nan
    value = trial.value if trial.state is TrialState.COMPLETE and trial.value is not None else math.nan
    return (trial.number, outcome(trial), value, *losses, steps_run(trial), seconds, repeat.of if repeat else None)


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as cells: what is no number is written out."""
    return {name: own if isinstance(own, int | float) else str(own) for name, own in settings.items()}


def _medians(settings: pd.DataFrame) -> pd.DataFrame:
    kinds: dict[str, list[str]] = {}
    for name in settings:
        if pd.api.types.is_numeric_dtype(settings[name]):
            kinds.setdefault(str(name).partition("/")[0], []).append(str(name))
    found = {f"median {kind}": settings[names].median(axis=1) for kind, names in kinds.items()}
    return pd.DataFrame(found, index=settings.index)


def _layers(facts: Facts) -> pd.DataFrame:
    """Alpha and spikes of each layer at the last look of each trial; nothing where that would be too much to carry."""
    seen = [records.last_look(own) for own in facts.trials]
    most = max((len(look.layers) for look in seen if look is not None), default=0)
    if not most or most * len(seen) > _MAX_CELLS:
        return pd.DataFrame(index=range(len(seen)))
    rows = [
        {
            f"{name} of {layer.name}": getattr(layer, name)
            for layer in (look.layers if look else ())
            for name in _OF_LAYER
        }
        for look in seen
    ]
    return pd.DataFrame(rows, index=range(len(seen))).replace([np.inf, -np.inf], np.nan)


_OF_LAYER = ("alpha", "spikes")


def compare_section(facts: Facts, trials: Section) -> Section:
    """Two trials side by side: the pick and what the user came with, or the next best; the page offers all others."""
    pick, frame = facts.pick, trials.frame
    numbers = [own.number for own in facts.trials]
    if len(numbers) < 2:
        return Section("compare", "Compare two trials", ("There are no two trials to compare yet.",))
    order = [pick.number] if pick is not None else []
    order += [facts.start] if facts.start is not None else []
    order += [own.number for own in facts.ranked] + numbers
    second, first = list(dict.fromkeys(order))[:2]
    rows = frame.set_index("trial").loc[[first, second]]
    names = [name for name in rows if not str(name).startswith("median ")]
    table = pd.DataFrame(
        {"what": names, **{f"trial {own}": [rows[name][own] for name in names] for own in (first, second)}},
        dtype=object,
    )
    known = table[table.columns[1:]].notna().any(axis=1)
    return Section(
        "compare",
        "Compare two trials",
        (f"From trial {first} to trial {second}; on the page any two can be chosen.",),
        table[known],
    )
