"""One trial from its beginning to its record: why it failed, what interrupted it, how long it may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import optuna

from ww_opt.search import records
from ww_opt.search.objective import SpectralObjective
from ww_opt.search.ranking import INTERRUPTED
from ww_opt.study.endings import Failures, Passed, free_memory
from ww_opt.study.interruptions import Interruptions
from ww_opt.study.leaders import drawn, queue_again, unpruned
from ww_opt.study.shared_storage import stamps

__all__ = ["TooLong", "limited", "recorded"]


class TooLong(Exception):
    """A trial took longer than the study allows."""


def recorded(
    objective: SpectralObjective, interruptions: Interruptions, failures: Failures, limit: float | None = None
) -> Callable[[optuna.Trial], float]:
    """Let a trial remember why it failed: once it has, its record is closed.

    Args:
        objective: what a trial does.
        interruptions: raise inside it.
        failures: after which the study goes on.
        limit: seconds that a trial may take.
    """

    def call(trial: optuna.Trial) -> float:
        _forget_reports(trial)
        try:
            with unpruned(trial), limited(limit):
                return interruptions.let_through(drawn(objective, trial), trial)
        except optuna.TrialPruned:
            raise
        except KeyboardInterrupt:
            records.write(trial, reason=INTERRUPTED)
            frozen = trial.study.get_trials(deepcopy=False)[trial.number]
            # one that was done again itself may not have come to suggest all it was given
            if params := frozen.system_attrs.get("fixed_params", {}) | frozen.params:
                queue_again(trial, params)
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, TooLong) else f"{type(error).__name__}: {error}"
            records.write(trial, reason=reason)
            if not failures.may_pass(trial, error):
                raise
        # outside of `except`: the error is gone by now, and with it the model that its traceback held
        free_memory()
        raise Passed(reason)

    return call


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise :class:`TooLong` after a time, wherever Python is by then; code that never returns to it is not reached.

    Only in a main thread, and where the system has timers; elsewhere nothing is limited.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if seconds is None or not is_main or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TooLong(f"it took longer than the {seconds:g} seconds that a trial may (timeout_per_trial)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _forget_reports(trial: optuna.Trial) -> None:
    """Let a trial that another process began report from the start: Optuna ignores a step that was reported before.

    What it reports takes the place of what lies in the storage, and pruners see in it what it has reported itself.
    """
    own = trial._cached_frozen_trial
    if len(stamps(own)) > 1 and own.intermediate_values:
        own.intermediate_values = {}
