"""How far a study's score can be trusted here: what its own trials say, in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler, QMCSampler, RandomSampler
from optuna.trial import FixedTrial, FrozenTrial

from ww_opt.search import records
from ww_opt.search.ranking import n_settings, ranking, some
from ww_opt.search.repeats import Spread, spread, start_number
from ww_opt.spectral.findings import NARROW
from ww_opt.study.study import Study

__all__ = ["FEW", "POINTS_LOST", "is_search", "known_noise", "seed_noise", "ties", "trust"]

FEW = 10
"""Distinct settings under which the best one is a matter of luck."""
TIE = 2.0
"""Trials whose value is less than this many standard deviations of the seeds behind the pick's are ties."""
_REPEATS = "ww_opt:repeats:"
"""Attribute of a study: values of further trainings of a pick, by its number, beside the trials."""
FEW_JUDGES = 20
"""Labels under which a cohort says little; those of the development tasks have 20 to 75."""
POINTS_LOST: dict[str, dict[bool | str, str]] = {
    "random": {False: "3.7", True: "3.7", "late": "0.8"},
    "search": {False: "5.9 [1.3, 11.1]", True: "6.4 [2.7, 9.9]", "late": "0.5 [-0.1, 1.1]"},
}
"""Accuracy, in points, that the pick of the default score lost, by what drew the settings and by the guard.

Random: 60 random trials against the best of them, mean over ten development tasks (``make evidence``). Search: 40
trials of :class:`ww_opt.LayerwiseSampler`, repeats among them, against the same search on the test set itself, one on
each of seven tasks (``late``: three, and one on an eighth), every pick trained afresh with three seeds; with its 95 %
interval over searches (``make searches``).
"""
_MEASURED = {
    "random": "among 60 random trials on ten development tasks such picks were {} points of accuracy behind the best",
    "search": "over searches of 40 trials on seven tasks such picks, trained afresh, were {} points of accuracy "
    "behind those of the same search on the test set itself",
}
_DRAW_ALIKE = (RandomSampler, QMCSampler, GridSampler, BruteForceSampler)


def is_search(sampler: BaseSampler) -> bool:
    """Whether a sampler goes by the scores, so that it exploits what is wrong with them."""
    return not isinstance(sampler, _DRAW_ALIKE)


def seed_noise(
    study: Study, host: optuna.Study, pick: FrozenTrial, announce: Callable[[str], object] = lambda _: None
) -> float:
    """Standard deviation of the pick's value over seeds.

    That of the study's own repeats where there are some; else the pick is trained ``study.n_repeats`` times more, once
    for all. The values stay with the study; ``announce`` is told before any is trained. NaN where a repeat diverged or
    none was asked for.
    """
    name = _REPEATS + str(pick.number)
    if math.isnan(known_noise(host, pick)) and host.user_attrs.get(name) is None:
        values: list[float | None] = []
        if study.n_repeats:
            announce(f"Training the pick {study.n_repeats} times more, with other seeds")
        for number in range(1, study.n_repeats + 1):
            objective = replace(study.objective, seed=study.objective.seed + number, on_trained=None)
            try:
                values.append(float(objective(FixedTrial(pick.params))))  # type: ignore[arg-type]
            except optuna.TrialPruned:
                values.append(None)
        host.set_user_attr(name, values)
    return known_noise(host, pick)


def known_noise(host: optuna.Study, pick: FrozenTrial) -> float:
    """As :func:`seed_noise`, of what was trained already; NaN where nothing was."""
    compared = spread(host, ranking(host).trials)
    if compared is not None and math.isfinite(compared.noise):
        return compared.noise
    values = host.user_attrs.get(_REPEATS + str(pick.number))
    if not values or pick.value is None or None in values:
        return math.nan
    return float(statistics.stdev([pick.value, *values]))


def ties(trials: Sequence[FrozenTrial], pick: FrozenTrial, noise: float) -> tuple[int, ...]:
    """Numbers of the trials that the noise of the seeds does not tell from the pick, the nearest first.

    Those whose value is at most ``TIE`` standard deviations from the pick's; none where the noise is not known.
    """
    if math.isnan(noise) or pick.value is None:
        return ()
    behind = {own.number: abs(own.value - pick.value) for own in trials if own.value is not None}
    near = [number for number, gap in behind.items() if gap <= TIE * noise and number != pick.number]
    return tuple(sorted(near, key=lambda number: (behind[number], number)))


def trust(
    study: Study | None,
    trials: Sequence[FrozenTrial],
    pick: FrozenTrial,
    noise: float = math.nan,
    *,
    host: optuna.Study | None = None,
    alarms: Sequence[str] = (),
) -> list[str]:
    """Say how far the ranking of a study can be trusted, most serious first.

    Args:
        study: what was run; ``None``: its records alone are known, which do not say what the guard was.
        trials: completed trials that were ranked together.
        pick: the best of them.
        noise: as from :func:`seed_noise`.
        host: its records: what drew the settings, and what was repeated.
        alarms: what :mod:`ww_opt.study.alarms` found; then nothing is said to be told apart.
    """
    compared = None if host is None else spread(host, trials)
    start = None if host is None else start_number(host)
    return [
        *_about_number(n_settings(trials), len(trials)),
        *_about_judges(pick),
        *(_about_leaders(compared, start, pick) if compared is not None else ()),
        *_about_spread(trials, pick, noise, bool(alarms)),
        *_about_layers(pick),
        *(_about_guard(study, pick, study.sampler(0) if host is None else host.sampler) if study is not None else ()),
    ]


def _about_number(n: int, n_trials: int) -> list[str]:
    if n >= FEW:
        return []
    what = f"{n_trials} trial{'s' * (n_trials != 1)} completed"
    if n < n_trials:
        what += f", of {n} distinct setting{'s' * (n != 1)},"
    return [f"Only {what}: the best of so few is a matter of luck. Run {2 * FEW} or more."]


def _about_leaders(compared: Spread, start: int | None, pick: FrozenTrial) -> list[str]:
    """What the leaders' repeats say: who leads by the mean, and whether it beats what the user came with."""
    n = len(compared.means)
    said = (
        f"{n} leaders were trained {compared.n_draws - 1} times more, with other seeds and other late examples; the "
        f"pick is best by the mean of {compared.n_draws}."
    )
    if start is None or start not in compared.means or not math.isfinite(compared.noise):
        return [said]
    others = [mean for number, mean in compared.means.items() if number != start]
    gain, error = compared.means[start] - min(others), compared.of_difference
    if pick.number == start:
        return [
            f"Keep the settings you came with (trial {start}): of the {n - 1} leaders that were trained "
            f"{compared.n_draws - 1} times more beside them none is better by more than the noise (best: "
            f"{gain:+.2g} +- {error:.2g})."
        ]
    return [said, f"It beats the settings you came with (trial {start}) by {gain:.2g} +- {error:.2g} of the score."]


def _about_spread(trials: Sequence[FrozenTrial], pick: FrozenTrial, noise: float, is_alarmed: bool) -> list[str]:
    values = [trial.value for trial in trials if trial.value is not None]
    if len(values) < 2:
        return []
    spread = statistics.stdev(values)
    if spread == 0.0:
        return ["All trials have the same score: it cannot tell these settings apart."]
    if math.isnan(noise):
        return []
    tied = ties(trials, pick, noise)
    text = f"Scores differ by {spread:.2g} between trials and by {noise:.2g} between seeds of the pick (std)"
    if spread < 2 * noise:
        text += ": the ranking is little more than chance. Train longer, or widen the space"
    elif tied:
        text += ": the score tells bad settings from good ones, but not the good ones from each other"
    elif not is_alarmed and n_settings(trials) >= FEW:
        text += ": the score tells settings apart, and the pick from the rest"
    return [f"{text}.", *_about_ties(tied, len(values), noise)]


def _about_ties(tied: Sequence[int], n: int, noise: float) -> list[str]:
    if not tied:
        return []
    those = f"{len(tied)} of the other {n - 1} trials lie" if len(tied) > 1 else f"1 of the other {n - 1} trials lies"
    return [
        f"{those} within the noise of the seeds of the pick ({TIE:g} x {noise:.2g}), and could as well be it: "
        f"{some(tied)}. Take among them by preference: the settings you know, or the cheapest to train."
    ]


def _about_layers(pick: FrozenTrial) -> list[str]:
    looks = records.looks(pick)
    if not looks:
        return []
    layers = [layer for layer in looks[-1].layers if layer.n_eigenvalues > 0]
    small = [layer.name for layer in layers if layer.M < NARROW]
    widest = max((layer.M for layer in layers), default=0)
    found = []
    if small and 2 * len(small) > len(layers):
        found.append(
            f"{len(small)} of {len(layers)} layers are under {NARROW} wide and say nothing: {', '.join(small)}."
        )
    if NARROW <= widest < 64:
        found.append(f"The widest layer is {widest} wide: spectra this small are read with little certainty.")
    return found


def _about_judges(pick: FrozenTrial) -> list[str]:
    sizes = [int(own["n"]) for own in records.read(pick, "late", ())]
    if sizes and min(sizes) < FEW_JUDGES:
        return [
            f"The smallest cohort has {min(sizes)} labels to judge by: one of them moves the ranking. With so few "
            "examples take larger cohorts (`shares`), or trust the settings you know."
        ]
    return []


def _about_guard(study: Study, pick: FrozenTrial, sampler: BaseSampler) -> list[str]:
    drawn = "search" if is_search(sampler) else "random"
    guard, looks = study.objective.guard, records.looks(pick)
    asked = {
        False: "The weights alone were asked; they say how much was learnt, not whether it was worth it",
        True: "The guard is the training loss, which wrong labels mislead",
        "late": "The guard is examples that joined late",
    }[guard]
    late_entry = study.objective.task.late_entry
    without_classes = late_entry is not None and late_entry.logits is None
    if study.objective.score != "default":
        found = [f"{asked}. What a pick of the score {study.objective.score!r} loses was not measured."]
    elif without_classes:
        found = [f"{asked}. What such picks lose was measured for classification, not for losses such as this one."]
    else:
        better = "" if guard == "late" else f"; with guard='late', {POINTS_LOST[drawn]['late']}"
        found = [f"{asked}: {_MEASURED[drawn].format(POINTS_LOST[drawn][guard])}{better}."]
    first_loss = records.read(pick, "first_loss")
    if guard != "late" and looks and first_loss and looks[-1].train_loss < 0.05 * first_loss:
        found.append(
            "The pick fits its training labels almost perfectly: if some are wrong, it has learnt them by heart, and "
            "nothing here would show it."
        )
    return found
