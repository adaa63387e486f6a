"""When a study's budget comes to its end: its leaders are trained again, as trials of the study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search.objective import SpectralObjective
from ww_opt.search.ranking import by_value, groups, is_interrupted
from ww_opt.search.repeats import INTERRUPTED, MARK, Repeat, leaders, repeat_of, start_of, still_to_repeat
from ww_opt.search.sampler import believed

__all__ = ["drawn", "plan_repeat", "queue_again", "unpruned"]

_LONG = 3


def drawn(objective: SpectralObjective, trial: optuna.Trial) -> SpectralObjective:
    """The objective with the seeds and late examples of a repeat; as it is for every other trial."""
    repeat = repeat_of(trial)
    if repeat is None:
        return objective
    late = objective.task.late_entry
    moved = None if late is None else replace(late, seed=late.seed + repeat.draw)
    return replace(objective, seed=objective.seed + repeat.draw, task=replace(objective.task, late_entry=moved))


@contextmanager
def unpruned(trial: optuna.Trial) -> Iterator[None]:
    """Let a repeat, and the settings that the user came with, run to their end: their values are needed.

    Others are compared with the latter all the same.
    """
    host = trial.study
    before = host.pruner
    frozen = host.get_trials(deepcopy=False)[trial.number]
    fixed, start = frozen.system_attrs.get("fixed_params", {}), start_of(host)
    if repeat_of(trial):
        host.pruner = NopPruner()
    elif start and start.items() <= fixed.items():
        host.pruner = _Sparing(before)
    try:
        yield
    finally:
        host.pruner = before


class _Sparing(NopPruner):
    """Prunes nothing, and lets be asked what the study's own pruner compares trials by."""

    def __init__(self, own: BasePruner) -> None:
        self.wants_ahead = getattr(own, "wants_ahead", None)


def queue_again(trial: optuna.Trial, parameters: dict[str, object]) -> None:
    """Queue an interrupted trial again, as the repeat that it was."""
    mark = trial.user_attrs.get(MARK)
    trial.study.enqueue_trial(parameters, user_attrs={MARK: mark} if mark else None)


def plan_repeat(
    host: optuna.Study, n_trials: int, n_leaders: int, n_repeats: int, *, is_done: bool = False
) -> bool | None:
    """Queue the next repeat once the trials that are left are no more than the repeats to be done.

    Call it in :func:`ww_opt.study.turns.turn`. Workers of several machines may come at once all the same: of two that
    queue the same repeat the later one takes it back.

    Args:
        host: the study.
        n_trials: its budget.
        n_leaders: how many are repeated.
        n_repeats: how often each of them.
        is_done: the search is over before its budget.

    Returns:
        Whether there is something to run; ``None`` while others still run what may come to lead: ask again.
    """
    while n_leaders:
        trials = host.get_trials(deepcopy=False)
        # a repeat that waits is another worker's: whoever takes it leaves this one's to him
        if any(trial.state is TrialState.WAITING and repeat_of(trial) is None for trial in trials):
            return True
        n_left = n_trials - sum(not is_interrupted(trial) for trial in trials)
        if (n_left > n_leaders * n_repeats and not is_done) or n_left <= 0:
            return True
        if _are_searching(trials):
            return None
        todo = still_to_repeat(host, leaders(host, _candidates(host), n_leaders), n_repeats)
        if not todo or (n_left > len(todo) and not is_done):
            break
        repeat = todo[0]
        parameters = trials[repeat.of].params
        host.enqueue_trial(parameters, user_attrs={MARK: list(repeat)})
        if _is_first(host, repeat):
            return True
    return not is_done


def _are_searching(trials: Sequence[FrozenTrial]) -> bool:
    """Whether other workers still run trials of the search, which may come to lead.

    One that runs three times as long as the longest so far is not waited for: its worker may be dead.
    """
    longest = max((trial.duration for trial in trials if trial.duration is not None), default=timedelta())
    since = datetime.now() - _LONG * longest
    return any(
        trial.state is TrialState.RUNNING
        and repeat_of(trial) is None
        and trial.datetime_start is not None
        and trial.datetime_start > since
        for trial in trials
    )


def _candidates(host: optuna.Study) -> list[FrozenTrial]:
    """Trials that may lead, those first that are best by their value or by what is believed of their settings."""
    found = max(groups(host), key=len, default=[])
    best = by_value(host, found)
    means = believed(host, found)
    by_belief = sorted((trial for trial in found if trial.number in means), key=lambda trial: means[trial.number])
    order = dict.fromkeys(
        trial.number for place in range(len(found)) for own in (best, by_belief) for trial in own[place : place + 1]
    )
    by_number = {trial.number: trial for trial in found}
    return [by_number[number] for number in order]


def _is_first(host: optuna.Study, repeat: Repeat) -> bool:
    """Whether nobody queued the same before; what came later is taken back."""
    same = [
        trial
        for trial in host.get_trials(deepcopy=False)
        if repeat_of(trial) == repeat and trial.state is not TrialState.FAIL
    ]
    for late in same[1:]:
        if late.state is TrialState.WAITING:
            host._storage.set_trial_user_attr(late._trial_id, "ww_opt:reason", INTERRUPTED)
            host._storage.set_trial_state_values(late._trial_id, TrialState.FAIL)
    return len(same) < 2
