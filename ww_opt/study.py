"""A study as a value: objective, sampler, pruner, budget; and how it runs, stops and goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from ww_opt import records
from ww_opt.objective import SpectralObjective
from ww_opt.pruner import SpectralPruner

Observer = Callable[[optuna.Study, FrozenTrial], None]

__all__ = ["INTERRUPTED", "Observer", "Study", "n_finished", "open_study", "run", "weights_file"]

INTERRUPTED = "interrupted by the user"
"""Reason of a trial that Ctrl-C ended: it uses up no budget and is done again."""


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question: what is tried, how it is searched, and for how long.

    Args:
        name: of the study in Optuna's storage and in MLflow.
        objective: what a trial does.
        n_trials: trials in all, resumed ones included.
        timeout: seconds after which no new trial starts, for one call of :func:`run`; ``None``: no limit.
        sampler: called with a seed; Optuna's TPE by default.
        pruner: any of Optuna's, or ours.
        seed: of the sampler. It is joined with the number of trials already there, so that a resumed study does not draw
            its first points again.
        keep_weights: ``all`` completed trials, or the ``best`` one alone, where models are large.
    """

    name: str
    objective: SpectralObjective
    n_trials: int = 40
    timeout: float | None = None
    sampler: Callable[[int], BaseSampler] = _tpe
    pruner: BasePruner = field(default_factory=SpectralPruner)
    seed: int = 0
    keep_weights: str = "all"

    def __post_init__(self) -> None:
        if self.n_trials < 1:
            raise ValueError(f"`n_trials >= 1` must hold, but got n_trials={self.n_trials}.")
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"`timeout > 0` must hold, but got timeout={self.timeout}.")
        if self.keep_weights not in ("all", "best"):
            raise ValueError(f"`keep_weights` must be 'all' or 'best', but got {self.keep_weights!r}.")


def open_study(study: Study, storage: str | BaseStorage | None = None, *, worker: int = 0) -> optuna.Study:
    """Create the study in Optuna's storage, or load it where it exists already.

    Args:
        study: what is run.
        storage: a database URL, the path of a journal file (ends in ``.journal`` or ``.log``), a storage, or ``None``:
            in memory.
        worker: number of the process, part of the sampler's seed.

    Raises:
        ValueError: the stored study has another direction: its values cannot be compared with ours.
    """
    host = optuna.create_study(
        study_name=study.name,
        storage=_storage(storage),
        direction=study.objective.direction,
        pruner=study.pruner,
        load_if_exists=True,
    )
    if host.direction.name.lower() != study.objective.direction:
        raise ValueError(
            f"Study {study.name!r} in the storage must {study.objective.direction} like its objective, but it was created "
            f"to {host.direction.name.lower()}: choose another --study-name."
        )
    entropy = np.random.SeedSequence([study.seed, len(host.get_trials(deepcopy=False)), worker])
    host.sampler = study.sampler(int(entropy.generate_state(1)[0]))
    return host


def _storage(storage: str | BaseStorage | None) -> str | BaseStorage | None:
    if isinstance(storage, str) and storage.endswith((".journal", ".log")) and "://" not in storage:
        return JournalStorage(JournalFileBackend(storage))
    return storage


def n_finished(host: optuna.Study) -> int:
    """Count the trials that used up budget: all finished ones but those that the user interrupted."""
    return sum(trial.state.is_finished() and records.reason(trial) != INTERRUPTED for trial in host.get_trials(deepcopy=False))


def weights_file(directory: Path, number: int) -> Path:
    """Where the weights of a completed trial are kept, as a state dict."""
    return directory / f"trial-{number:05d}.pt"


def run(
    study: Study,
    host: optuna.Study,
    directory: Path,
    observers: Sequence[Observer] = (),
    *,
    may_start: Callable[[], bool] | None = None,
) -> None:
    """Run trials in this process until the study has ``n_trials`` or its time is up.

    An interrupted trial is recorded as failed, and its settings come first when the study goes on.

    Args:
        study: what is run.
        host: from :func:`open_study`.
        directory: where weights are kept.
        observers: called after each trial.
        may_start: asked before each trial; several workers share one budget. Default: ``n_trials`` are not reached.

    Raises:
        KeyboardInterrupt: after everything was recorded.
        Exception: what the objective raised; the trial is recorded as failed with the reason.
    """
    objective = _recorded(replace(study.objective, on_trained=_keeper(directory)))
    deadline = math.inf if study.timeout is None else time.monotonic() + study.timeout
    may_start = may_start or (lambda: n_finished(host) < study.n_trials)
    callbacks = [*observers, *([_only_best(directory)] if study.keep_weights == "best" else [])]
    while time.monotonic() < deadline and may_start():
        n_before = len(host.get_trials(deepcopy=False))
        try:
            host.optimize(objective, n_trials=1, callbacks=callbacks)
        except KeyboardInterrupt:
            for trial in host.get_trials(deepcopy=False)[n_before:]:
                if records.reason(trial) == INTERRUPTED:
                    host.enqueue_trial(trial.params)
            raise


def _recorded(objective: SpectralObjective) -> Callable[[optuna.Trial], float]:
    """Let a trial remember why it failed: once it has, its record is closed."""

    def call(trial: optuna.Trial) -> float:
        try:
            return objective(trial)
        except optuna.TrialPruned:
            raise
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            records.write(trial, reason=INTERRUPTED if interrupted else f"{type(error).__name__}: {error}")
            raise

    return call


def _keeper(directory: Path) -> Callable[[optuna.Trial, nn.Module], None]:
    def save(trial: optuna.Trial, model: nn.Module) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        target = weights_file(directory, trial.number)
        # written aside and renamed: a crash leaves no half file behind
        torch.save(model.state_dict(), target.with_suffix(".part"))
        target.with_suffix(".part").replace(target)

    return save


def _only_best(directory: Path) -> Observer:
    def clean(host: optuna.Study, trial: FrozenTrial) -> None:
        complete = [t.number for t in host.get_trials(deepcopy=False) if t.state is TrialState.COMPLETE]
        for number in complete:
            if number != host.best_trial.number:
                weights_file(directory, number).unlink(missing_ok=True)

    return clean
