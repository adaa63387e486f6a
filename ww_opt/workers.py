"""A study on several processes of one machine. The parent trains nothing: it watches the storage."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import torch

from ww_opt.references import load_study
from ww_opt.study import Observer, Study, n_finished, open_study, run

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

__all__ = ["Job", "run_workers"]

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


def run_workers(job: Job, host: optuna.Study, n_workers: int, observers: Sequence[Observer] = ()) -> None:
    """Run a study on ``n_workers`` processes that share its storage and its budget of trials.

    Raises:
        KeyboardInterrupt: after all workers have recorded their trials and ended.
        RuntimeError: a worker failed.
    """
    study = job.study()
    context = multiprocessing.get_context("spawn")
    left = context.Value("i", max(study.n_trials - n_finished(host), 0))
    seen = {trial.number for trial in host.get_trials(deepcopy=False) if trial.state.is_finished()}
    processes = [context.Process(target=_work, args=(job, worker, n_workers, left)) for worker in range(n_workers)]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            _show(host, seen, observers)
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        _stop(processes)
        raise
    finally:
        _show(host, seen, observers)
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {n_workers} workers failed; their messages stand above.")


def _show(host: optuna.Study, seen: set[int], observers: Sequence[Observer]) -> None:
    for trial in host.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial.number not in seen:
            seen.add(trial.number)
            for observer in observers:
                observer(host, trial)


def _stop(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        if process.is_alive() and process.pid is not None:
            # a terminal has told them already; a scheduler told the parent alone
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join()


def _work(job: Job, worker: int, n_workers: int, left: Synchronized[int]) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(max((os.cpu_count() or 1) // n_workers, 1))
    study = job.study()

    def may_start() -> bool:
        with left.get_lock():
            left.value -= 1
            return left.value >= 0

    try:
        run(study, open_study(study, job.storage, worker=worker), job.directory, may_start=may_start)
    except KeyboardInterrupt:
        with left.get_lock():
            left.value = 0
