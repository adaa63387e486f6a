"""A study on several processes of one machine. The parent trains nothing: it watches the storage."""

from __future__ import annotations

import math
import multiprocessing
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, TypeVar

import optuna
import torch

from ww_opt.study.budget import n_finished, turn_name
from ww_opt.study.crew import Crew, n_threads
from ww_opt.study.endings import NOTHING_LEFT, Observer, is_exhausted
from ww_opt.study.faults import is_bad_input
from ww_opt.study.patience import Patience
from ww_opt.study.references import load_study
from ww_opt.study.secrets import shown
from ww_opt.study.stale import requeue_stale
from ww_opt.study.study import Study, open_study, run
from ww_opt.study.turns import turn
from ww_opt.study.weights_folder import claim

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
    """What the workers share: whether it is over, until when, and queues for what went wrong and who stopped the study.

    Nothing that is asked at each trial has a lock: a worker that is killed while it holds one would hold it for ever.
    """

    n_workers: int
    is_over: Any
    ends_at: float
    failures: SimpleQueue[_Failure]
    stops: SimpleQueue[str]

    def end(self) -> None:
        """Let no worker start another trial."""
        self.is_over.value = True


class WorkerFailed(RuntimeError):
    """A worker's trial raised what is no fault of the input; the message is its traceback."""


def run_workers(job: Job, host: optuna.Study, n_workers: int, observers: Sequence[Observer] = ()) -> str:
    """Run a study on ``n_workers`` processes that share its storage and its budget of trials.

    When one of them fails, or somebody calls ``study.stop()``, the others end with the trial at hand. One that dies is
    replaced, and its trial done again, unless too many die without a trial being finished. One whose trial exceeds
    ``timeout_per_trial`` and cannot be stopped otherwise is killed and replaced; that trial has failed.

    Returns:
        Who stopped the study, as from :func:`ww_opt.study.study.run`.

    Raises:
        KeyboardInterrupt: after all workers have recorded their trials and ended.
        ValueError: the input is bad, as a worker found out.
        WorkerFailed: something else went wrong in a worker, or they die.
    """
    study = job.study()
    claim(job.directory, host)
    if is_exhausted(host):
        return NOTHING_LEFT
    context = multiprocessing.get_context("spawn")
    ends_at = math.inf if study.timeout is None else time.time() + study.timeout
    team = _Team(n_workers, context.RawValue("b", False), ends_at, context.SimpleQueue(), context.SimpleQueue())
    seen = {trial.number for trial in host.get_trials(deepcopy=False) if trial.state.is_finished()}
    crew = Crew(lambda worker: context.Process(target=_work, args=(job, worker, team)), n_workers, study)
    found: list[_Failure] = []
    try:
        crew.start()
        while True:
            _show(host, seen, observers, team)
            found += _taken(team.failures)
            crew.end_overdue(host)
            is_wanted = not team.is_over.value and time.time() < ends_at and n_finished(host) < study.n_trials
            crew.replace_dead(len(seen), is_wanted=is_wanted)
            if not crew.is_at_work:
                break
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        crew.stop()
        with turn(turn_name(host)):
            requeue_stale(host)
        _raise_first(found + _taken(team.failures))
        raise
    finally:
        _show(host, seen, observers, team)
    _raise_first(found + _taken(team.failures))
    if crew.has_given_up:
        raise WorkerFailed(
            f"{len(crew.killed)} workers died, with exit codes {crew.killed[:8]} (-9: out of memory?), and too many of "
            "them without a trial being finished meanwhile."
        )
    return next(iter(_taken(team.stops)), "")


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


def _work(job: Job, worker: int, team: _Team) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(max(min(torch.get_num_threads(), n_threads(team.n_workers)), 1))
    try:
        study = job.study()
        if study.timeout is not None:
            study = replace(study, timeout=max(team.ends_at - time.time(), 1e-3))
        # the parent has opened it: where it cannot be reached now, it will be
        patience = Patience(shown(job.storage))
        host = patience.tried(lambda _: open_study(study, job.storage, worker=worker, is_checked=True))
        if who := run(study, host, job.directory, may_start=lambda: not team.is_over.value):
            _stopped(team, who)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        team.end()
        is_ours = is_bad_input(error)
        team.failures.put(_Failure(str(error) if is_ours else traceback.format_exc(), is_ours))
