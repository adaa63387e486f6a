"""Which trials are ranked together, and which of them is best: asked in one place, answered alike everywhere.

The pick, the weights that are kept, MLflow's mark, the progress line, figures and notes all go by :func:`ranking`.
Decides from the records alone: no torch, no model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search import records
from ww_opt.search.bounds import is_inside, rescaled
from ww_opt.search.repeats import INTERRUPTED, NOT_NEEDED, is_repeat, spread, start_number

__all__ = [
    "INTERRUPTED",
    "Ranking",
    "best",
    "by_value",
    "comparable",
    "groups",
    "is_feasible",
    "is_interrupted",
    "n_settings",
    "outcome",
    "ranking",
    "some",
]

_OUTCOMES = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Ranking:
    """Trials that may be ranked together, the best first, and in sentences what was left out of them.

    ``trials`` are complete, feasible, finite and comparable. Trials of one value stand in the order of their numbers.
    """

    trials: tuple[FrozenTrial, ...]
    left_out: tuple[str, ...] = ()

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial; ``None`` where there is none."""
        return self.trials[0] if self.trials else None


def is_interrupted(trial: FrozenTrial) -> bool:
    """Whether the user ended the trial, or it was withdrawn; Optuna has no state of its own for that."""
    return trial.state is TrialState.FAIL and records.reason(trial) in (INTERRUPTED, NOT_NEEDED)


def outcome(trial: FrozenTrial) -> str:
    """How a trial ended, in a word: completed, pruned, failed or interrupted; ``running`` or ``waiting`` before."""
    return "interrupted" if is_interrupted(trial) else _OUTCOMES.get(trial.state, trial.state.name.lower())


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether all constraints hold, those of ``trial.set_constraint`` and of a sampler's ``constraints_func``.

    A ``constraints_func`` that raised holds none. A trial without constraints is feasible.
    """
    if trial.system_attrs.get("constraints", ()) is None:
        return False
    return all(value <= 0.0 for value in trial.constraints.values())


def ranking(study: optuna.Study, trials: Iterable[FrozenTrial] | None = None) -> Ranking:
    """Rank trials by their values.

    Args:
        study: says which direction is better.
        trials: those to rank; default: all of the study.

    Returns:
        The largest group of complete, feasible trials with a finite value that :func:`comparable` leaves together,
        inside the bounds of the space where those were changed; nothing where the study has several objectives, for it
        then has no best. Repeats are not ranked: they count for the trials that they repeat, which lead, by their means
        (:mod:`ww_opt.search.repeats`).
    """
    if len(study.directions) != 1:
        return Ranking(())
    complete = [trial for trial in _given(study, trials) if trial.state is TrialState.COMPLETE and not is_repeat(trial)]
    feasible = [trial for trial in complete if is_feasible(trial)]
    finite = [trial for trial in feasible if _is_finite(trial)]
    inside = _inside(study, finite)
    kept, apart = comparable(inside)
    said = []
    if beyond := _numbers_of(complete, but=feasible):
        said.append(f"{_trials(len(beyond))} not ranked, for a constraint is violated: {some(beyond)}.")
    if endless := _numbers_of(feasible, but=finite):
        said.append(f"{_trials(len(endless))} not ranked, for the score is not finite: {some(endless)}.")
    if outside := _numbers_of(finite, but=inside):
        said.append(f"{_trials(len(outside))} not ranked, for the bounds have changed since: {some(outside)}.")
    return Ranking(tuple(_by_means(study, by_value(study, kept))), (*said, *([apart] if apart else [])))


def best(study: optuna.Study, trials: Iterable[FrozenTrial] | None = None) -> FrozenTrial | None:
    """Return the best trial; ``None`` where :func:`ranking` has none."""
    return ranking(study, trials).best


def groups(study: optuna.Study, trials: Iterable[FrozenTrial] | None = None) -> list[list[FrozenTrial]]:
    """Return all that may be ranked, group by group, the best first in each.

    Which group is the largest can change while a study runs, and with it the best trial.
    """
    own = [
        trial
        for trial in _given(study, trials)
        if trial.state is TrialState.COMPLETE and is_feasible(trial) and _is_finite(trial) and not is_repeat(trial)
    ]
    return [_by_means(study, by_value(study, group)) for group in _by_kind(_inside(study, own)).values()]


def comparable(trials: Iterable[FrozenTrial]) -> tuple[list[FrozenTrial], str]:
    """Split off trials that cannot be ranked with the others: another architecture, or another optimizer.

    Pooled over architectures, the correlation of spectra with test accuracy vanishes (Martin and Mahoney 2021, arXiv
    2106.00734); optimizers shape them as well.

    Returns:
        The largest group that agrees in both, and a sentence about the rest; empty where there is none. Trials without
        records agree with each other.
    """
    trials = list(trials)
    by_kind = _by_kind(trials)
    if len(by_kind) < 2:
        return trials, ""
    largest = max(by_kind.values(), key=len)
    rest = _numbers_of(trials, but=largest)
    differ = "optimizer" if len({kind[0] for kind in by_kind}) == 1 else "architecture"
    return largest, (
        f"{len(rest)} trials differ in {differ} from the other {len(largest)} and are not ranked with them, since "
        f"their spectra do not compare: {some(rest)}. Give each {differ} a study of its own."
    )


def n_settings(trials: Iterable[FrozenTrial]) -> int:
    """Count distinct settings: what was tried twice was tried once."""
    return len(Counter(tuple(sorted((name, repr(value)) for name, value in trial.params.items())) for trial in trials))


def some(numbers: Sequence[int]) -> str:
    """List at most ten numbers, and how many more there are."""
    shown = ", ".join(str(number) for number in numbers[:10])
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"


def _inside(study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that are a point of the space as it is now: others could not be trained again."""
    bounds = rescaled(study)
    return trials if bounds is None else [trial for trial in trials if is_inside(trial.params, bounds)]


def _numbers_of(trials: Iterable[FrozenTrial], but: Iterable[FrozenTrial]) -> list[int]:
    kept = {id(trial) for trial in but}  # to compare two trials is to compare all that they recorded
    return sorted(trial.number for trial in trials if id(trial) not in kept)


def _given(study: optuna.Study, trials: Iterable[FrozenTrial] | None) -> Iterable[FrozenTrial]:
    return study.get_trials(deepcopy=False) if trials is None else trials


def _trials(count: int) -> str:
    return f"{count} completed trial{'s' * (count != 1)}"


def _is_finite(trial: FrozenTrial) -> bool:
    return len(trial.values) == 1 and math.isfinite(trial.values[0])


def by_value(study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Sort trials by their own values, the best first; of one value the earlier first."""
    sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
    return sorted(trials, key=lambda trial: (sign * trial.values[0], trial.number))


def _by_means(study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Put what was repeated first, by its mean; the user's own settings lead unless another beats them by the noise."""
    found = spread(study, trials)
    if found is None:
        return trials
    means = dict(found.means)
    start = start_number(study)
    if start in means and math.isfinite(found.of_difference):
        means[start] -= found.of_difference
    leaders = sorted((trial for trial in trials if trial.number in means), key=lambda trial: means[trial.number])
    return leaders + [trial for trial in trials if trial.number not in means]


def _by_kind(trials: Iterable[FrozenTrial]) -> dict[tuple[Any, Any], list[FrozenTrial]]:
    found: dict[tuple[Any, Any], list[FrozenTrial]] = {}
    for trial in trials:
        found.setdefault(_kind(trial), []).append(trial)
    return found


def _kind(trial: FrozenTrial) -> tuple[Any, Any]:
    return records.shapes(trial), records.read(trial, "optimizer")
