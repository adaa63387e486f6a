"""Trials whose process is gone go back into the queue, in one write: whoever dies meanwhile, nothing is lost."""

from __future__ import annotations

import logging
import time

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search import records
from ww_opt.study.presence import is_gone
from ww_opt.study.shared_storage import SharedStorage, Stamp, stamps

__all__ = ["BEAT_SECONDS", "GRACE_SECONDS", "MOST_ATTEMPTS", "is_alive", "requeue_stale"]

_LOG = logging.getLogger(__name__)
BEAT_SECONDS = 15.0
"""How often a process says that it is alive, for other machines to read."""
GRACE_SECONDS = 120.0
"""Age of the last sign of life after which a process of another machine is taken for gone. Clocks must agree better."""
MOST_ATTEMPTS = 3
"""Processes that a trial may cost: one that runs out of memory each time would otherwise be begun for ever."""


def is_alive(trial: FrozenTrial, storage: object, *, may_judge_others: bool = True) -> bool | None:
    """Whether a running trial is still being run; ``None`` where it has no stamp, for it is not one of ours."""
    found = stamps(trial)
    if not found or not isinstance(storage, SharedStorage):
        return None
    return any(_is_alive(stamp, trial, storage, may_judge_others) for stamp in found)


def requeue_stale(host: optuna.Study, *, may_judge_others: bool = True) -> list[int]:
    """Put running trials whose process is gone back into the queue, with their settings.

    The same trial waits again under its number: one write, so that nobody can die halfway, and what comes of the study
    has as many trials as it should. One that has cost :data:`MOST_ATTEMPTS` processes fails, with the reason.
    Call it in :func:`ww_opt.study.turns.turn`. Between machines, where two may come at once, the same trial could be
    run twice at the worst; the first to finish counts.

    Args:
        host: the study.
        may_judge_others: whether processes of other machines may be taken for gone by the age of their last sign.

    Returns:
        Numbers of the trials that wait again or failed.
    """
    storage = host._storage
    done = []
    for trial in host.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_alive(trial, storage, may_judge_others=may_judge_others) is not False:
            continue
        last = max(stamps(trial), key=lambda stamp: stamp.at)
        who = f"process {last.process.pid} on {last.process.place.partition('|')[0]}"
        try:
            if len(stamps(trial)) < MOST_ATTEMPTS:
                storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
                _LOG.warning("Trial %d was left by %s, which is gone; it is done again.", trial.number, who)
            else:
                reason = f"its process died {MOST_ATTEMPTS} times, last {who}: killed, or out of memory?"
                storage.set_trial_user_attr(trial._trial_id, *records.as_attribute("reason", reason))
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                _LOG.warning("Trial %d failed: %s", trial.number, reason)
        except UpdateFinishedTrialError:  # it has ended meanwhile, or another machine was quicker
            continue
        done.append(trial.number)
    return done


def _is_alive(stamp: Stamp, trial: FrozenTrial, storage: SharedStorage, may_judge_others: bool) -> bool:
    if storage.is_own(stamp):
        return trial._trial_id == storage.running
    gone = is_gone(stamp.process)
    if gone is not None:
        return not gone
    return not may_judge_others or time.time() - stamp.at < GRACE_SECONDS
