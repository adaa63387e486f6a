"""The pick is not the luckiest trial: leaders are trained again with other draws, and the mean decides.

A repeat is a trial of the study like any other, with the settings of a leader, other initial weights, another order of
the data and other late examples. Its own value is not ranked, since other judges gave it; it counts for its leader.
Decides from the records alone: no torch, no model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search import records

__all__ = [
    "INTERRUPTED",
    "MARK",
    "NOT_NEEDED",
    "START",
    "Repeat",
    "Spread",
    "is_repeat",
    "leaders",
    "n_leaders",
    "repeat_of",
    "spread",
    "start_number",
    "start_of",
    "still_to_repeat",
]

INTERRUPTED = "interrupted by the user"
"""Reason of a trial that Ctrl-C ended: it uses up no budget and is done again."""
NOT_NEEDED = "not needed: other workers had used up the budget"
"""Reason of a trial that was withdrawn before it began: it uses up no budget, and is not done again."""
MARK = "ww_opt_repeat"
"""User attribute of a repeat: the number of its leader and of its draw. It is no record of a trial's own, which a retry
would clear."""
START = "ww_opt:start"
"""Attribute of a study: the settings that it was to begin with, those that the user came with."""
SHARE = 0.25
"""Share of a study's trials that repeats may take."""


class Repeat(NamedTuple):
    """One more training of a leader: its number, and the draw of seeds and cohorts, from 1; 0 is the trial itself."""

    of: int
    draw: int


def repeat_of(trial: FrozenTrial | optuna.Trial) -> Repeat | None:
    """What a trial repeats; ``None`` where it is no repeat."""
    mark = trial.user_attrs.get(MARK)
    return Repeat(int(mark[0]), int(mark[1])) if mark else None


def is_repeat(trial: FrozenTrial | optuna.Trial) -> bool:
    """Whether a trial repeats another one."""
    return bool(trial.user_attrs.get(MARK))


def start_of(study: optuna.Study) -> dict[str, float] | None:
    """Settings that the study was to begin with; ``None`` where there are none."""
    kept = study.user_attrs.get(START)
    return None if kept is None else dict(kept["params"])


def start_number(study: optuna.Study) -> int | None:
    """Number of the first trial with the settings that the study was to begin with; ``None`` where there is none."""
    start = start_of(study)
    if not start:
        return None
    wanted = start.items()
    found = (
        trial.number
        for trial in study.get_trials(deepcopy=False)
        if not is_repeat(trial) and trial.state is not TrialState.FAIL and wanted <= trial.params.items()
    )
    return next(found, None)


def n_leaders(n_trials: int, n_repeats: int) -> int:
    """Leaders that a study of ``n_trials`` can afford to train ``n_repeats`` times more; 0 where fewer than two."""
    if not n_repeats:
        return 0
    found = min(int(SHARE * n_trials) // n_repeats, 5)
    return found if found > 1 else 0


def leaders(study: optuna.Study, candidates: Sequence[FrozenTrial], n: int) -> list[int]:
    """Numbers of the ``n`` trials to repeat, the best candidates first; the user's own settings are among them."""
    found = [trial.number for trial in candidates[:n]]
    start = start_number(study)
    if start is not None and start not in found and any(trial.number == start for trial in candidates):
        found[-1:] = [start]
    return found


def still_to_repeat(study: optuna.Study, leaders: Sequence[int], n_repeats: int) -> list[Repeat]:
    """Repeats that were not done and are not being done; the draw that is missing for most comes first."""
    done = {
        repeat
        for trial in study.get_trials(deepcopy=False)
        if (repeat := repeat_of(trial)) and not (trial.state is TrialState.FAIL and _is_undone(trial))
    }
    todo = [Repeat(of, draw) for draw in range(1, n_repeats + 1) for of in leaders]
    return [repeat for repeat in todo if repeat not in done]


def _is_undone(trial: FrozenTrial) -> bool:
    """Whether a failed repeat tells nothing about its settings: it was interrupted, or another worker had it."""
    return records.reason(trial) in (INTERRUPTED, NOT_NEEDED, "")


class Spread(NamedTuple):
    """Leaders by their means, lower is better.

    Attributes:
        means: number of the leader -> mean of its values over the draws that all leaders have; infinite where one
            diverged.
        n_draws: values in each mean.
        noise: standard deviation of one value once leader and draw are known; NaN where that cannot be told.
    """

    means: Mapping[int, float]
    n_draws: int
    noise: float

    @property
    def of_difference(self) -> float:
        """Standard error of the difference of two means."""
        return self.noise * math.sqrt(2.0 / self.n_draws)


def spread(study: optuna.Study, trials: Iterable[FrozenTrial]) -> Spread | None:
    """Compare the leaders of a study over their draws.

    Args:
        study: its records.
        trials: that may lead, with values of their own.

    Returns:
        ``None`` where fewer than two were repeated.
    """
    sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
    own = {trial.number: sign * trial.values[0] for trial in trials}
    heard: dict[int, dict[int, float]] = {}
    for trial in study.get_trials(deepcopy=False):
        repeat = repeat_of(trial)
        if repeat is None or repeat.of not in own or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        value = sign * trial.values[0] if trial.state is TrialState.COMPLETE else math.inf
        heard.setdefault(repeat.of, {0: own[repeat.of]})[repeat.draw] = value if math.isfinite(value) else math.inf
    # of the draws that the user's own settings have, else of the most; a trial that led when the study was shorter, or
    # whose repeat a worker failed to come to, may have fewer
    start = start_number(study)
    compared = heard[start] if start in heard else max(heard.values(), key=len, default={})
    heard = {number: values for number, values in heard.items() if compared.keys() <= values.keys()}
    if len(heard) < 2:
        return None
    draws = sorted(compared)
    means = {number: statistics.fmean(values[draw] for draw in draws) for number, values in heard.items()}
    finite = {number: values for number, values in heard.items() if math.isfinite(means[number])}
    return Spread(means, len(draws), _noise(finite, means, draws))


def _noise(heard: Mapping[int, Mapping[int, float]], means: Mapping[int, float], draws: Sequence[int]) -> float:
    """What is left of the values without the effects of leader and draw (two-way analysis of variance)."""
    freedom = (len(heard) - 1) * (len(draws) - 1)
    if not freedom:
        return math.nan
    by_draw = {draw: statistics.fmean(values[draw] for values in heard.values()) for draw in draws}
    total = statistics.fmean(by_draw.values())
    squares = sum(
        (values[draw] - means[number] - by_draw[draw] + total) ** 2
        for number, values in heard.items()
        for draw in draws
    )
    return math.sqrt(squares / freedom)
