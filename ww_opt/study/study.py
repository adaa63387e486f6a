"""A study as a value: objective, sampler, pruner, budget; and how it runs, stops and goes on."""

from __future__ import annotations

import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from ww_opt.search import records
from ww_opt.search.objective import SpectralObjective
from ww_opt.search.pruner import SpectralPruner
from ww_opt.spectral.scores import FORMULA
from ww_opt.study.weights_folder import claim, keep_all, keep_only_best

Observer = Callable[[optuna.Study, FrozenTrial], None]

__all__ = [
    "INTERRUPTED",
    "Observer",
    "Study",
    "is_bad_input",
    "n_finished",
    "open_study",
    "run",
]

_SQLITE_SECONDS = 60
INTERRUPTED = "interrupted by the user"
"""Reason of a trial that Ctrl-C ended: it uses up no budget and is done again."""


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question: what is tried, how it is searched, and for how long.

    Args:
        name: of the study in Optuna's storage, in MLflow and of its folder.
        objective: what a trial does.
        n_trials: trials in all, resumed ones included.
        timeout: seconds after which no new trial starts, for one call of :func:`run`; ``None``: no limit.
        sampler: called with a seed; Optuna's TPE by default.
        pruner: any of Optuna's, or ours.
        seed: of the sampler. It is joined with the number of trials already there, so that a resumed study does not
            draw its first points again.
        keep_weights: ``all`` completed trials, or the ``best`` one alone, where models are large.
        n_repeats: how often the pick is trained again at the end, with other seeds, to know the noise of the score.

    Raises:
        TypeError: a field is of another type.
        ValueError: a number is out of range, or the name is no name of a folder.
    """

    name: str
    objective: SpectralObjective
    n_trials: int = 40
    timeout: float | None = None
    sampler: Callable[[int], BaseSampler] = _tpe
    pruner: BasePruner = field(default_factory=SpectralPruner)
    seed: int = 0
    keep_weights: Literal["all", "best"] = "all"
    n_repeats: int = 2

    def __post_init__(self) -> None:
        for name, kind in (("objective", SpectralObjective), ("pruner", BasePruner), ("n_trials", int), ("seed", int)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Study.{name} must be a {kind.__name__}, but got {getattr(self, name)!r}.")
        if not callable(self.sampler):
            raise TypeError(
                f"Study.sampler is called with a seed, but got {self.sampler!r}: write "
                f"`lambda seed: {type(self.sampler).__name__}(seed=seed)`."
            )
        if self.name in ("", ".", "..") or not set(self.name).isdisjoint("/\\\0"):
            raise ValueError(f"The name of a study must be one of a folder, but got {self.name!r}: use letters and -.")
        if self.seed < 0:
            raise ValueError(f"`seed >= 0` must hold, but got seed={self.seed}.")
        if self.n_trials < 1:
            raise ValueError(f"`n_trials >= 1` must hold, but got n_trials={self.n_trials}.")
        if self.n_repeats < 0:
            raise ValueError(f"`n_repeats >= 0` must hold, but got n_repeats={self.n_repeats}.")
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
        ValueError: the stored study has another direction, score, guard or length of run: its values cannot be ranked
            with ours.
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
            f"Study {study.name!r} in the storage must {study.objective.direction} like its objective, but it was "
            f"created to {host.direction.name.lower()}: choose another --study-name."
        )
    _check_same_values(host, study.objective)
    entropy = np.random.SeedSequence([study.seed, len(host.get_trials(deepcopy=False)), worker])
    host.sampler = study.sampler(int(entropy.generate_state(1)[0]))
    return host


def _check_same_values(host: optuna.Study, objective: SpectralObjective) -> None:
    """Refuse to rank values that were made in another way; the space and the budget may change."""
    ours = {
        "score": objective.score,
        "guard": objective.guard,
        "n_steps": objective.n_steps,
        "formula": FORMULA,
    }
    theirs = host.user_attrs.get("ww_opt:objective")
    if theirs is None:
        host.set_user_attr("ww_opt:objective", ours)
    elif theirs != ours:
        raise ValueError(
            f"Study {host.study_name!r} in the storage must have been run with the same objective, {ours}, since its "
            f"values are ranked together, but it was run with {theirs}: choose another --study-name."
        )


def _storage(storage: str | BaseStorage | None) -> str | BaseStorage | None:
    if isinstance(storage, str) and storage.endswith((".journal", ".log")) and "://" not in storage:
        return JournalStorage(JournalFileBackend(storage))
    if isinstance(storage, str) and storage.startswith("sqlite"):
        # workers write one after the other, and a busy disk makes them wait longer than the default of 5 seconds
        return RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": _SQLITE_SECONDS}})
    return storage


def n_finished(host: optuna.Study) -> int:
    """Count the trials that used up budget: all finished ones but those that the user interrupted."""
    return sum(
        trial.state.is_finished() and records.reason(trial) != INTERRUPTED for trial in host.get_trials(deepcopy=False)
    )


def run(
    study: Study,
    host: optuna.Study,
    directory: Path,
    observers: Sequence[Observer] = (),
    *,
    may_start: Callable[[], bool] | None = None,
) -> None:
    """Run trials in this process until the study has ``n_trials`` or its time is up.

    Ctrl-C and SIGTERM end the trial at hand: it is recorded as failed, and its settings come first when the study goes
    on. Between trials they wait until the books are closed.

    Args:
        study: what is run.
        host: from :func:`open_study`.
        directory: where weights are kept.
        observers: called after each trial.
        may_start: asked before each trial; several workers share one budget. Default: ``n_trials`` are not reached.

    Raises:
        ValueError: the folder holds the weights of another study.
        KeyboardInterrupt: after everything was recorded.
        Exception: what the objective raised; the trial is recorded as failed with the reason.
    """
    claim(directory, host)
    may_start = may_start or (lambda: n_finished(host) < study.n_trials)
    deadline = math.inf if study.timeout is None else time.monotonic() + study.timeout
    callbacks = [*observers, *([keep_only_best(directory)] if study.keep_weights == "best" else [])]
    with _Interruptions() as interruptions:
        objective = _recorded(replace(study.objective, on_trained=keep_all(directory)), interruptions)
        while not interruptions.is_due and time.monotonic() < deadline and may_start():
            host.optimize(objective, n_trials=1, callbacks=callbacks)
    if interruptions.is_due:
        raise KeyboardInterrupt


class _Interruptions(AbstractContextManager["_Interruptions"]):
    """Ctrl-C and SIGTERM, once, as a KeyboardInterrupt inside a trial; elsewhere ``is_due`` says that there was one.

    What comes after the first is ignored: a terminal and a scheduler may tell the same process twice. A signal that
    was ignored already (``nohup``) still is. In a thread other than the main one, signals stay as they are.
    """

    def __init__(self) -> None:
        self.is_due = False
        self._may_raise = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interruptions:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def let_through(self, objective: Callable[[optuna.Trial], float], trial: optuna.Trial) -> float:
        """Run a trial, and raise what comes meanwhile or came before."""
        self._may_raise = True
        try:
            if self.is_due:
                raise KeyboardInterrupt
            return objective(trial)
        finally:
            self._may_raise = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        is_first, self.is_due = not self.is_due, True
        if is_first and self._may_raise:
            raise KeyboardInterrupt


def _recorded(objective: SpectralObjective, interruptions: _Interruptions) -> Callable[[optuna.Trial], float]:
    """Let a trial remember why it failed: once it has, its record is closed."""

    def call(trial: optuna.Trial) -> float:
        try:
            return interruptions.let_through(objective, trial)
        except optuna.TrialPruned:
            raise
        except KeyboardInterrupt:
            records.write(trial, reason=INTERRUPTED)
            frozen = trial.study.get_trials(deepcopy=False)[trial.number]
            # one that was done again itself may not have come to suggest all it was given
            if params := frozen.system_attrs.get("fixed_params", {}) | frozen.params:
                trial.study.enqueue_trial(params)
            raise
        except Exception as error:
            records.write(trial, reason=f"{type(error).__name__}: {error}")
            raise

    return call


def is_bad_input(error: BaseException) -> bool:
    """Whether a check of this package raised the error: its message says all. Any other deserves its traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = Path(last.filename).is_relative_to(Path(__file__).parents[1])
    is_on_purpose = (last.line or "").startswith("raise ")
    return is_ours and is_on_purpose and isinstance(error, ValueError | TypeError | OSError | ImportError)
