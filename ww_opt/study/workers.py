"""A study on several processes of one machine. The parent trains nothing: it watches the storage."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import optuna
import torch

from ww_opt.study.beginning import enqueue_start
from ww_opt.study.endings import NOTHING_LEFT, Observer, is_exhausted
from ww_opt.study.faults import is_bad_input
from ww_opt.study.references import load_study
from ww_opt.study.study import Study, n_finished, open_study, run
from ww_opt.study.weights_folder import claim

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

__all__ = ["Job", "WorkerFailed", "run_workers"]

T = TypeVar("T")
_POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Job:
    """What a worker process needs to find the study again: it loads the file anew."""

    reference: str
    storage: str
    directory: Path
    changes: dict[str, object]

    def study(self) -> Study:
        """Load the study, with what the command line changed about it."""
        return replace(load_study(self.reference), **self.changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Failure:
    message: str
    is_bad_input: bool


@dataclass(frozen=True)
class _Team:
    """What the workers share: trials left to start, and queues for what went wrong and who stopped the study."""

    n_workers: int
    left: Synchronized[int]
    failures: SimpleQueue[_Failure]
    stops: SimpleQueue[str]

    def end(self) -> None:
        """Let no worker start another trial."""
        with self.left.get_lock():
            self.left.value = 0


class WorkerFailed(RuntimeError):
    """A worker's trial raised what is no fault of the input; the message is its traceback."""


def run_workers(job: Job, host: optuna.Study, n_workers: int, observers: Sequence[Observer] = ()) -> str:
    """Run a study on ``n_workers`` processes that share its storage and its budget of trials.

    When one of them fails, or somebody calls ``study.stop()``, the others end with the trial at hand.

    Returns:
        Who stopped the study, as from :func:`ww_opt.study.study.run`.

    Raises:
        KeyboardInterrupt: after all workers have recorded their trials and ended.
        ValueError: the input is bad, as a worker found out.
        WorkerFailed: something else went wrong in a worker.
    """
    claim(job.directory, host)
    if is_exhausted(host):
        return NOTHING_LEFT
    if n_finished(host) < job.study().n_trials:
        enqueue_start(host)
    context = multiprocessing.get_context("spawn")
    left = context.Value("i", max(job.study().n_trials - n_finished(host), 0))
    failures: SimpleQueue[_Failure] = context.SimpleQueue()
    seen = {trial.number for trial in host.get_trials(deepcopy=False) if trial.state.is_finished()}
    stops: SimpleQueue[str] = context.SimpleQueue()
    team = _Team(n_workers, left, failures, stops)
    processes = [context.Process(target=_work, args=(job, worker, team)) for worker in range(n_workers)]
    found: list[_Failure] = []
    try:
        _start(processes)
        while any(process.is_alive() for process in processes):
            _show(host, seen, observers, team)
            found += _taken(failures)
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        _stop(processes)
        _raise_first(found + _taken(failures))
        raise
    finally:
        _show(host, seen, observers, team)
    _raise_first(found + _taken(failures))
    if killed := [process.exitcode for process in processes if process.exitcode]:
        raise WorkerFailed(f"{len(killed)} of {n_workers} workers died, with exit codes {killed} (-9: out of memory?).")
    return next(iter(_taken(stops)), "")


def _taken(queue: SimpleQueue[T]) -> list[T]:
    found = []
    while not queue.empty():
        found.append(queue.get())
    return found


def _raise_first(found: Sequence[_Failure]) -> None:
    for failure in found[:1]:
        raise ValueError(failure.message) if failure.is_bad_input else WorkerFailed(failure.message)


def _show(host: optuna.Study, seen: set[int], observers: Sequence[Observer], team: _Team) -> None:
    """Show observers what has ended; they may stop the study, although no ``optimize`` runs in this process."""
    vars(host)["stop"] = lambda: _stopped(team, "The study was stopped by `study.stop()` in a callback.")
    try:
        for trial in host.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in seen:
                seen.add(trial.number)
                for observer in observers:
                    observer(host, trial)
    finally:
        del vars(host)["stop"]


def _stopped(team: _Team, who: str) -> None:
    team.end()
    team.stops.put(who)


def _start(processes: Sequence[SpawnProcess]) -> None:
    """Start processes that never see a terminal's Ctrl-C: the parent sees it, and tells them once."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for process in processes:
            process.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        if process.pid is not None:
            process.join()


def _work(job: Job, worker: int, team: _Team) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(max(min(torch.get_num_threads(), (os.cpu_count() or 1) // team.n_workers), 1))

    def may_start() -> bool:
        with team.left.get_lock():
            team.left.value -= 1
            return team.left.value >= 0

    try:
        study = job.study()
        host = open_study(study, job.storage, worker=worker, is_checked=True)
        if who := run(study, host, job.directory, may_start=may_start):
            _stopped(team, who)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        team.end()
        is_ours = is_bad_input(error)
        team.failures.put(_Failure(str(error) if is_ours else traceback.format_exc(), is_ours))
