"""How far a study's score can be trusted here: what its own trials say, in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial

from ww_opt.search import records
from ww_opt.spectral.findings import NARROW
from ww_opt.study.study import Study

__all__ = ["FEW", "POINTS_LOST", "comparable", "seed_noise", "trust"]

FEW = 10
"""Completed trials under which the best one is a matter of luck."""
POINTS_LOST: dict[bool | str, float] = {False: 4.1, True: 4.0, "late": 0.8}
"""Accuracy, in points, that the pick of 60 random trials lost against the best of them: mean over the ten development
tasks (``make evidence``), by the guard of the default score."""


def comparable(trials: Iterable[FrozenTrial]) -> tuple[list[FrozenTrial], str]:
    """Split off trials that cannot be ranked with the others: another architecture, or another optimizer.

    Pooled over architectures, the correlation of spectra with test accuracy vanishes (Martin and Mahoney 2021, arXiv
    2106.00734); optimizers shape them as well.

    Returns:
        The largest group that agrees in both, and a sentence about the rest; empty where there is none. Trials without
        records agree with each other.
    """
    trials = list(trials)
    groups: dict[Any, list[FrozenTrial]] = {}
    for trial in trials:
        groups.setdefault(_kind(trial), []).append(trial)
    if len(groups) < 2:
        return trials, ""
    largest = max(groups.values(), key=len)
    rest = sorted(trial.number for trial in trials if trial not in largest)
    differ = "optimizer" if len({kind[0] for kind in groups}) == 1 else "architecture"
    return largest, (
        f"{len(rest)} trials differ in {differ} from the other {len(largest)} and are not ranked with them, since "
        f"their spectra do not compare: {_some(rest)}. Give each {differ} a study of its own."
    )


def _kind(trial: FrozenTrial) -> tuple[Any, Any]:
    looks = records.looks(trial)
    shapes = tuple((layer.name, layer.N, layer.M) for layer in looks[-1].layers) if looks else None
    return shapes, records.read(trial, "optimizer")


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:10])
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"


def seed_noise(
    study: Study, host: optuna.Study, pick: FrozenTrial, announce: Callable[[str], object] = lambda _: None
) -> float:
    """Standard deviation of the pick's value over seeds: it is trained ``study.n_repeats`` times more, once for all.

    The values stay with the study; ``announce`` is told before any is trained. NaN where a repeat diverged or none was
    asked for.
    """
    name = f"ww_opt:repeats:{pick.number}"
    values = host.user_attrs.get(name)
    if values is None:
        values = []
        if study.n_repeats:
            announce(f"Training the pick {study.n_repeats} times more, with other seeds")
        for number in range(1, study.n_repeats + 1):
            objective = replace(study.objective, seed=study.objective.seed + number, on_trained=None)
            try:
                values.append(float(objective(FixedTrial(pick.params))))  # type: ignore[arg-type]
            except optuna.TrialPruned:
                values.append(None)
        host.set_user_attr(name, values)
    if not values or pick.value is None or None in values:
        return math.nan
    return float(statistics.stdev([pick.value, *values]))


def trust(study: Study, trials: Sequence[FrozenTrial], pick: FrozenTrial, noise: float = math.nan) -> list[str]:
    """Say how far the ranking of a study can be trusted, most serious first.

    Args:
        study: what was run.
        trials: completed trials that were ranked together.
        pick: the best of them.
        noise: as from :func:`seed_noise`.
    """
    values = [trial.value for trial in trials if trial.value is not None]
    return [
        *_about_number(len(values)),
        *_about_spread(values, noise),
        *_about_layers(pick),
        *_about_guard(study, pick),
    ]


def _about_number(n: int) -> list[str]:
    if n >= FEW:
        return []
    return [f"Only {n} trial{'s' * (n != 1)} completed: the best of so few is a matter of luck. Run {2 * FEW} or more."]


def _about_spread(values: Sequence[float], noise: float) -> list[str]:
    if len(values) < 2:
        return []
    spread = statistics.stdev(values)
    if spread == 0.0:
        return ["All trials have the same score: it cannot tell these settings apart."]
    if math.isnan(noise):
        return []
    text = f"Scores differ by {spread:.2g} between trials and by {noise:.2g} between seeds of the pick (std)"
    if len(values) < FEW:
        return [f"{text}."]
    text += ": "
    if spread < 2 * noise:
        return [text + "the ranking is little more than chance. Train longer, or widen the space."]
    return [text + "the score tells settings apart."]


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


def _about_guard(study: Study, pick: FrozenTrial) -> list[str]:
    guard, looks = study.objective.guard, records.looks(pick)
    lost = f"on ten development tasks such picks were {POINTS_LOST[guard]} points of accuracy behind the best trial"
    asked = {
        False: f"The weights alone were asked; they say how much was learnt, not whether it was worth it: {lost}",
        True: f"The guard is the training loss, which wrong labels mislead: {lost}",
        "late": f"The guard is examples that joined late: {lost}",
    }[guard]
    better = "" if guard == "late" else f"; with guard='late', {POINTS_LOST['late']}"
    late_entry = study.objective.task.late_entry
    is_known = study.objective.score == "default" and not (
        guard == "late" and late_entry is not None and late_entry.logits is None  # that was not measured
    )
    found = [f"{asked}{better}."] if is_known else []
    first_loss = records.read(pick, "first_loss")
    if guard != "late" and looks and first_loss and looks[-1].train_loss < 0.05 * first_loss:
        found.append(
            "The pick fits its training labels almost perfectly: if some are wrong, it has learnt them by heart, and "
            "nothing here would show it."
        )
    return found
