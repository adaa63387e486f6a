"""A study's budget, looked at and taken in one go: n workers never run more trials than there are."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search import records
from ww_opt.search.ranking import is_interrupted
from ww_opt.search.repeats import NOT_NEEDED
from ww_opt.study.shared_storage import SharedStorage
from ww_opt.study.stale import BEAT_SECONDS, GRACE_SECONDS, is_alive, requeue_stale
from ww_opt.study.storages import file_of
from ww_opt.study.turns import turn

__all__ = [
    "AtWork",
    "NoneLeft",
    "leave_at_once",
    "n_finished",
    "n_taken",
    "remember_budget",
    "remembered_budget",
    "turn_name",
]

_BUDGET = "ww_opt:n_trials"
_INTERRUPTED = 130
_LAST_SECONDS = 1.5
_LOG = logging.getLogger(__name__)


class NoneLeft(Exception):
    """The budget was used up, or is being used up by other workers, between a look at it and the ask."""


def n_finished(host: optuna.Study) -> int:
    """Count the trials that used up budget: finished ones, failed ones too, but not those that the user interrupted."""
    return sum(trial.state.is_finished() and not is_interrupted(trial) for trial in host.get_trials(deepcopy=False))


def n_taken(host: optuna.Study) -> int:
    """Count the trials that used up budget or are about to: those, too, that a living process runs."""
    return sum(_counts(trial, host) for trial in host.get_trials(deepcopy=False))


def remember_budget(host: optuna.Study, n_trials: int) -> None:
    """Leave with a study how many trials it is to have in all, for workers that are not told."""
    if host.user_attrs.get(_BUDGET) != n_trials:
        host.set_user_attr(_BUDGET, n_trials)


def remembered_budget(host: optuna.Study) -> int | None:
    """Return what :func:`remember_budget` left; ``None`` where nothing was."""
    found = host.user_attrs.get(_BUDGET)
    return None if found is None else int(found)


def turn_name(host: optuna.Study) -> str:
    """Return what :func:`ww_opt.study.turns.turn` knows a study by."""
    address = getattr(host._storage, "address", "")
    file = file_of(address)
    return f"{address if file is None else file.resolve()} {host.study_name}"


class AtWork(AbstractContextManager["AtWork"]):
    """This process asks a study for trials: within its budget, one process of a machine at a time, and seen alive.

    While it is entered, ``host.ask`` first puts back what dead processes left, and raises :class:`NoneLeft` where the
    budget is taken. Between machines two may ask at once; then the trial with the higher number is withdrawn before it
    begins. A thread says every 15 seconds that the process is alive.
    """

    def __init__(self, host: optuna.Study, n_trials: int) -> None:
        self._host, self._n_trials = host, n_trials
        self._ends = threading.Event()
        self._trusts_others_after = 0.0
        self._asked: optuna.Trial | None = None

    def __enter__(self) -> AtWork:
        original = self._host.ask

        def ask(*args: Any, **kwargs: Any) -> optuna.Trial:
            with turn(turn_name(self._host)):
                self.tidy()
                if n_taken(self._host) >= self._n_trials:
                    raise NoneLeft
                trial = original(*args, **kwargs)
            self._withdraw_beyond(trial)
            self._asked = trial
            return trial

        vars(self._host)["ask"] = ask  # on this instance alone
        if isinstance(self._host._storage, SharedStorage):
            threading.Thread(target=self._beat, args=(self._host._storage,), name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        self._ends.set()
        vars(self._host).pop("ask", None)

    def tidy(self) -> None:
        """Put back what dead processes left."""
        requeue_stale(self._host, may_judge_others=time.monotonic() >= self._trusts_others_after)

    def has_room(self) -> bool:
        """Whether there is budget left for a trial, after putting back what dead processes left."""
        with turn(turn_name(self._host)):
            self.tidy()
        return n_taken(self._host) < self._n_trials

    @contextmanager
    def bearing_loss(self) -> Iterator[None]:
        """Go on where another machine took this process for gone, and the trial was ended, or begun again, there."""
        storage = self._host._storage
        try:
            yield
        except (UpdateFinishedTrialError, ValueError) as error:
            asked = self._asked
            if asked is None or not isinstance(storage, SharedStorage) or storage.ended == asked._trial_id:
                raise
            now = storage.get_trial(asked._trial_id)
            if now.state is TrialState.RUNNING and isinstance(error, ValueError):
                raise
            _LOG.warning("Trial %d was taken over by another worker, for this one had not been heard of.", now.number)
        finally:
            self._asked = None

    def _withdraw_beyond(self, trial: optuna.Trial) -> None:
        earlier = [own for own in self._host.get_trials(deepcopy=False) if own.number < trial.number]
        if sum(_counts(own, self._host) for own in earlier) >= self._n_trials:
            records.write(trial, reason=NOT_NEEDED)
            self._host._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            raise NoneLeft

    def _beat(self, storage: SharedStorage) -> None:
        last = time.monotonic()
        while not self._ends.wait(BEAT_SECONDS):
            try:
                storage.beat()
            except Exception:  # the storage is away, and so it is for others: none of them is taken for gone
                continue
            if time.monotonic() - last > 3 * BEAT_SECONDS:
                self._trusts_others_after = time.monotonic() + GRACE_SECONDS
            last = time.monotonic()


def leave_at_once(host: optuna.Study, on_stuck: Callable[[], None] | None = None) -> None:
    """Put the trial that this process runs back into the queue, and end the process, from any thread.

    Where the storage cannot be reached in time, the trial is left as one of a process that is gone.
    """
    storage = host._storage
    running = storage.running if isinstance(storage, SharedStorage) else None
    if running is not None:
        put_back = threading.Thread(
            target=storage.set_trial_state_values, args=(running, TrialState.WAITING), daemon=True
        )
        put_back.start()
        put_back.join(_LAST_SECONDS)
    if on_stuck is not None:
        on_stuck()
    os._exit(_INTERRUPTED)


def _counts(trial: FrozenTrial, host: optuna.Study) -> bool:
    if trial.state is TrialState.RUNNING:
        return is_alive(trial, host._storage) is True
    return trial.state.is_finished() and not is_interrupted(trial)
