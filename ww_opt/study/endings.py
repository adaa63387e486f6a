"""What ends a study before its budget: who calls ``study.stop()``, and failures that are no fault of one setting."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from types import TracebackType

import optuna
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search.ranking import is_interrupted
from ww_opt.study.faults import is_bad_input

Observer = Callable[[optuna.Study, FrozenTrial], None]

__all__ = [
    "IN_A_ROW",
    "NOTHING_LEFT",
    "Failures",
    "Observer",
    "Passed",
    "Stops",
    "free_memory",
    "is_exhausted",
]

IN_A_ROW = 3
"""Failures in a row that end a study: that many are a fault of the code, not of one setting."""
NOTHING_LEFT = "The sampler has nothing left to try."
_STOPPED = "The study was stopped by `study.stop()` in {who}."


class Passed(Exception):
    """A trial failed, is on record, and the study goes on."""


class Failures:
    """Tell a fault of one setting from a fault of the code; Optuna's storage is the memory, so workers agree.

    Args:
        catch: exceptions after which a study may go on.
    """

    def __init__(self, catch: tuple[type[Exception], ...]) -> None:
        self._catch = catch
        self._started = datetime.now()

    def may_pass(self, trial: optuna.Trial, error: Exception) -> bool:
        """Whether the study goes on after a trial raised; says in the error's notes why not, where it could have.

        It does not where a check of this package refused the input, while no trial has completed or was pruned, nor
        when this one is the third in a row to fail since this run began.
        """
        if not isinstance(error, self._catch):
            return False
        if is_bad_input(error):  # a check of ours: no other setting would pass it
            return False
        ended = [
            own
            for own in trial.study.get_trials(deepcopy=False)
            if own.number != trial.number and own.state.is_finished() and not is_interrupted(own)
        ]
        if all(own.state is TrialState.FAIL for own in ended):
            error.add_note("No trial of the study has completed yet, so this is taken for a fault of the code.")
            return False
        recent = [own for own in ended if own.datetime_complete and own.datetime_complete >= self._started]
        recent.sort(key=lambda own: own.datetime_complete or datetime.min)
        last = recent[-(IN_A_ROW - 1) :]
        if len(last) == IN_A_ROW - 1 and all(own.state is TrialState.FAIL for own in last):
            numbers = ", ".join(str(number) for number in sorted([*(own.number for own in last), trial.number]))
            error.add_note(f"Trials {numbers} failed in a row, so this is taken for a fault of the code.")
            return False
        return True


class Stops(AbstractContextManager["Stops"]):
    """Hear ``study.stop()`` of samplers, observers and objectives between the single calls of ``optimize``.

    ``said`` is a sentence once somebody has called it, and empty until then.
    """

    def __init__(self, host: optuna.Study) -> None:
        self.said = ""
        self._host = host
        self._who = NOTHING_LEFT

    def __enter__(self) -> Stops:
        original = self._host.stop

        def stop() -> None:
            original()
            self.said = self.said or self._who

        vars(self._host)["stop"] = stop  # on this instance alone
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        vars(self._host).pop("stop", None)

    @property
    def is_over(self) -> bool:
        """Whether the study ends now: a sampler that has finished does not keep waiting trials from being done."""
        return bool(self.said) and not (self.said == NOTHING_LEFT and _are_waiting(self._host))

    def inside(self, objective: Callable[[optuna.Trial], float]) -> Callable[[optuna.Trial], float]:
        """Return the objective so that a stop while it runs is known for its own."""

        def call(trial: optuna.Trial) -> float:
            self._who = _STOPPED.format(who="the objective")
            try:
                return objective(trial)
            finally:
                self._who = NOTHING_LEFT  # next the sampler is told how the trial ended

        return call

    def after_trial(self, _host: optuna.Study, _trial: FrozenTrial) -> None:
        """First of the callbacks: a stop from here on is one of theirs, until the next trial begins."""
        self._who = _STOPPED.format(who="a callback")


def is_exhausted(host: optuna.Study) -> bool:
    """Whether the sampler says that it has nothing left, as a grid does when a finished study is run again."""
    asked = getattr(host.sampler, "is_exhausted", None)
    if not callable(asked) or not host.get_trials(deepcopy=False) or _are_waiting(host):
        return False
    return bool(asked(host))


def _are_waiting(host: optuna.Study) -> bool:
    return bool(host.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def free_memory() -> None:
    """Give back what a failed trial held, so that one that ran out of memory does not take the next with it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
