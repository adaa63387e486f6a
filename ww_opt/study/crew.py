"""The processes of a study on one machine: started with their share of it, replaced when they die, ended in time."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from ww_opt.search import records
from ww_opt.study.presence import place
from ww_opt.study.shared_storage import stamps

if TYPE_CHECKING:
    from ww_opt.study.study import Study

__all__ = ["Crew", "devices_of", "n_threads"]

_LOG = logging.getLogger(__name__)
_STOP_SECONDS = 8.0
"""How long workers may take to record an interrupted trial; whoever is not done then is killed, its trial queued."""
_OVERDUE_SECONDS = 10.0
"""How long after the limit a trial may still be running: by then its own process should have ended it."""
_MOST_DEATHS = 3
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_DEVICES = "CUDA_VISIBLE_DEVICES"


def n_threads(n_workers: int) -> int:
    """Threads that each of ``n_workers`` may use."""
    return max((os.cpu_count() or 1) // n_workers, 1)


def devices_of(study: Study) -> list[str]:
    """GPUs to be given to workers in turn; none where there are fewer than two, or the task names one by its number."""
    if str(study.objective.task.device) != "cuda":
        return []
    asked = os.environ.get(_DEVICES)
    found = asked.split(",") if asked else [str(number) for number in range(torch.cuda.device_count())]
    return [own.strip() for own in found] if len(found) > 1 else []


class Crew:
    """The workers of one command.

    Args:
        process: makes the process of a worker, by its number; replacements have numbers of their own.
        n_workers: how many are at work at a time.
        study: says how long a trial may take, and on what it runs.

    Attributes:
        killed: exit codes of those that died, the first of them first.
        has_given_up: too many died without a trial being finished meanwhile, and are not replaced any more.
    """

    def __init__(self, process: Callable[[int], SpawnProcess], n_workers: int, study: Study) -> None:
        self.killed: list[int] = []
        self.has_given_up = False
        self._process, self._n_workers, self._limit = process, n_workers, study.timeout_per_trial
        self._devices = devices_of(study)
        self._n_started = 0
        self._places: dict[int, SpawnProcess] = {}
        self._n_done, self._n_deaths = 0, 0

    @property
    def is_at_work(self) -> bool:
        """Whether any worker runs."""
        return any(process.is_alive() for process in self._places.values())

    def start(self) -> None:
        """Start them all; they never see a terminal's Ctrl-C: the parent sees it, and tells them once."""
        for where in range(self._n_workers):
            self._start_at(where)

    def replace_dead(self, n_done: int, *, is_wanted: bool) -> None:
        """Put new ones where workers have died, unless too many have since a trial was last finished.

        Args:
            n_done: trials that are finished now.
            is_wanted: whether there is work left.
        """
        if n_done > self._n_done:
            self._n_done, self._n_deaths = n_done, 0
        for where, process in list(self._places.items()):
            if process.is_alive() or not process.exitcode:
                continue
            del self._places[where]
            self.killed.append(process.exitcode)
            self._n_deaths += 1
            if not is_wanted:
                continue
            self.has_given_up = self._n_deaths >= _MOST_DEATHS * self._n_workers
            if not self.has_given_up:
                _LOG.warning("A worker died with exit code %d and is replaced.", process.exitcode)
                self._start_at(where)

    def end_overdue(self, host: optuna.Study) -> None:
        """Fail trials far beyond their limit, whose process cannot have heard of it, and kill that process."""
        if self._limit is None:
            return
        own = {process.pid: process for process in self._places.values() if process.is_alive()}
        for trial in host.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            found = [stamp.process for stamp in stamps(trial)]
            pids = [process.pid for process in found if process.place == place() and process.pid in own]
            since = trial.datetime_start
            if not pids or since is None or time.time() - since.timestamp() < self._limit + _OVERDUE_SECONDS:
                continue
            reason = f"it took longer than the {self._limit:g} seconds that a trial may; its process had to be killed"
            try:
                host._storage.set_trial_user_attr(trial._trial_id, *records.as_attribute("reason", reason))
                host._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                continue
            own[pids[-1]].kill()

    def stop(self) -> None:
        """Tell all of them to end, wait a while, and kill the rest."""
        for process in self._places.values():
            if process.is_alive():
                process.terminate()
        until = time.monotonic() + _STOP_SECONDS
        for process in self._places.values():
            process.join(max(until - time.monotonic(), 0.0))
            if process.is_alive():
                process.kill()
                process.join()

    def _start_at(self, where: int) -> None:
        process = self._process(self._n_started)
        self._n_started += 1
        share = {name: str(n_threads(self._n_workers)) for name in _THREADS if name not in os.environ}
        if self._devices:
            share[_DEVICES] = self._devices[where % len(self._devices)]
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with _environment(share):
                process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        self._places[where] = process


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
