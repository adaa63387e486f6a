"""A study as a value: objective, sampler, pruner, budget; and how it runs, stops and goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from ww_opt.search.faults import DEFAULT_FAULTS
from ww_opt.search.objective import SpectralObjective
from ww_opt.search.pruner import SpectralPruner
from ww_opt.search.ranking import INTERRUPTED
from ww_opt.search.repeats import n_leaders
from ww_opt.search.sampler import LayerwiseSampler
from ww_opt.search.stopping import is_converged
from ww_opt.study.beginning import enqueue_start, recognise
from ww_opt.study.budget import AtWork, NoneLeft, leave_at_once, n_finished, turn_name
from ww_opt.study.endings import NOTHING_LEFT, Failures, Observer, Passed, Stops, is_exhausted
from ww_opt.study.faults import is_bad_input, place_of
from ww_opt.study.identity import check_same_values
from ww_opt.study.interruptions import Interruptions
from ww_opt.study.leaders import plan_repeat
from ww_opt.study.one_trial import recorded
from ww_opt.study.storages import open_storage, reading
from ww_opt.study.turns import turn
from ww_opt.study.weights_folder import claim, keep_all, keep_only_best

__all__ = [
    "INTERRUPTED",
    "Observer",
    "Study",
    "is_bad_input",
    "n_finished",
    "open_study",
    "run",
]


_POLL_SECONDS = 0.3
CONVERGED = "The search has converged: no trial promises more than half of the noise of the score."


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def _faults_alone() -> BasePruner:
    return SpectralPruner(rules=DEFAULT_FAULTS)


def _layerwise(seed: int) -> BaseSampler:
    return LayerwiseSampler(seed=seed)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question: what is tried, how it is searched, and for how long.

    Args:
        name: of the study in Optuna's storage, in MLflow and of its folder.
        objective: what a trial does.
        n_trials: trials in all, resumed ones included.
        timeout: seconds after which no new trial starts, for one call of :func:`run`; ``None``: no limit.
        timeout_per_trial: seconds after which a trial fails, with that for its reason; ``None``: no limit. Where it
            hangs outside of Python its process has to be ended: ``ww-opt run`` does that, :func:`run` cannot.
        sampler: called with a seed; :class:`ww_opt.LayerwiseSampler` by default.
        pruner: any of Optuna's, or ours; by default :class:`ww_opt.SpectralPruner` with its faults alone. With its
            ranks, ``SpectralPruner()``, it saves up to half of the steps, and the search learns less from each trial.
        seed: of the sampler. It is joined with the number of trials already there, so that a resumed study does not
            draw its first points again.
        keep_weights: ``all`` completed trials, or the ``best`` one alone, where models are large.
        catch: exceptions of a trial after which the study goes on: the trial is recorded as failed, with the reason,
            and uses up budget. A fault of the code, not of one setting, ends the study all the same: while no trial
            has completed or was pruned yet, and when three in a row have failed. ``()``: the first one ends it.
        stop_early: end the search when four trials in a row promise less than half of the noise, as
            :class:`ww_opt.LayerwiseSampler` says of its own; leaders are still repeated. Other samplers do not say.
        n_repeats: how often each of the leaders is trained again at the end, with other seeds and other late examples:
            their means decide. They are trials of the study and take a quarter of ``n_trials`` at most; the settings
            that the user came with are among them. Under 8 for each repeat (16 trials by default) nothing is repeated
            but the pick, beyond ``n_trials``, to know the noise of the score. 0: nothing is.
        start: the first trial of a fresh study. ``True``: the present configuration, what the optimizer that
            ``task.optimizer`` builds and the model's own dropout have, taken into the bounds; a mapping from parameter
            to value (``{"lr/all": 1e-3}``), the rest being the sampler's; ``False``: the sampler's. Its record has
            ``origin``.
        carry_over: an earlier study whose best settings (three, :func:`ww_opt.carried_over`) a fresh one tries next, in
            its own space: another depth, width or bounds. Its name in the same storage, ``NAME@STORAGE``, or a study.
        changed_space: what happens where a stored study was run in other bounds: ``refuse``, or ``rescale``: go on with
            the new ones; old trials inside them count, others are not ranked any more.

    Raises:
        TypeError: a field is of another type.
        ValueError: a number is out of range, or the name is no name of a folder.
    """

    name: str
    objective: SpectralObjective
    n_trials: int = 40
    timeout: float | None = None
    timeout_per_trial: float | None = None
    sampler: Callable[[int], BaseSampler] = _layerwise
    pruner: BasePruner = field(default_factory=_faults_alone)
    seed: int = 0
    keep_weights: Literal["all", "best"] = "all"
    n_repeats: int = 2
    stop_early: bool = False
    catch: tuple[type[Exception], ...] = (Exception,)
    start: bool | Mapping[str, float] = True
    carry_over: str | optuna.Study | None = None
    changed_space: Literal["refuse", "rescale"] = "refuse"

    def __post_init__(self) -> None:
        for name, kind in (("objective", SpectralObjective), ("pruner", BasePruner), ("n_trials", int), ("seed", int)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Study.{name} must be a {kind.__name__}, but got {getattr(self, name)!r}.")
        if not callable(self.sampler):
            raise TypeError(
                f"Study.sampler is called with a seed, but got {self.sampler!r}: write "
                f"`lambda seed: {type(self.sampler).__name__}(seed=seed)`."
            )
        if not isinstance(self.catch, tuple) or not all(_is_exception(own) for own in self.catch):
            raise TypeError(f"Study.catch must be a tuple of exception classes, but got {self.catch!r}.")
        if not isinstance(self.start, bool | Mapping):
            raise TypeError(
                f"Study.start must be True, False or a mapping from parameter to value, but got {self.start!r}."
            )
        if not isinstance(self.carry_over, str | optuna.Study | None):
            raise TypeError(f"Study.carry_over must be a name, a study or None, but got {self.carry_over!r}.")
        if self.changed_space not in ("refuse", "rescale"):
            raise ValueError(f"`changed_space` must be 'refuse' or 'rescale', but got {self.changed_space!r}.")
        if self.name in ("", ".", "..") or not set(self.name).isdisjoint("/\\\0"):
            raise ValueError(f"The name of a study must be one of a folder, but got {self.name!r}: use letters and -.")
        if self.seed < 0:
            raise ValueError(f"`seed >= 0` must hold, but got seed={self.seed}.")
        if self.n_trials < 1:
            raise ValueError(f"`n_trials >= 1` must hold, but got n_trials={self.n_trials}.")
        if self.n_repeats < 0:
            raise ValueError(f"`n_repeats >= 0` must hold, but got n_repeats={self.n_repeats}.")
        for name in ("timeout", "timeout_per_trial"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name} > 0` must hold, but got {name}={value}.")
        if self.keep_weights not in ("all", "best"):
            raise ValueError(f"`keep_weights` must be 'all' or 'best', but got {self.keep_weights!r}.")


def open_study(
    study: Study, storage: str | BaseStorage | None = None, *, worker: int = 0, is_checked: bool = False
) -> optuna.Study:
    """Create the study in Optuna's storage, or load it where it exists already.

    Args:
        study: what is run.
        storage: a database URL, the path of a journal file (ends in ``.journal`` or ``.log``), a storage, or ``None``:
            in memory.
        worker: number of the process, part of the sampler's seed.
        is_checked: another process has found task and space to be those of the stored study, which takes a model.

    Raises:
        StorageError: the storage cannot be used; the message says why.
        ValueError: the stored study has another direction, several directions, another score, guard, length of run or
            task: its values cannot be ranked with ours; or another space; or the sampler cannot be made; or ``start``
            is no point of the space, or nothing can be carried over.
    """
    opened = open_storage(storage)
    host = reading(
        storage,
        lambda: optuna.create_study(
            study_name=study.name,
            storage=opened,
            direction=study.objective.direction,
            pruner=study.pruner,
            load_if_exists=True,
        ),
    )
    directions = " and ".join(direction.name.lower() for direction in host.directions)
    if directions != study.objective.direction:
        raise ValueError(
            f"Study {study.name!r} in the storage must {study.objective.direction} like its objective, but it was "
            f"created to {directions}: choose another --study-name."
        )
    check_same_values(host, study.objective)
    if not is_checked:
        may_change = study.changed_space == "rescale"
        recognise(host, study.objective, start=study.start, carry_over=study.carry_over, may_change=may_change)
    entropy = np.random.SeedSequence([study.seed, len(host.get_trials(deepcopy=False)), worker])
    host.sampler = _sampler(study, int(entropy.generate_state(1)[0]))
    return host


def _sampler(study: Study, seed: int) -> BaseSampler:
    try:
        sampler: object = study.sampler(seed)
    except Exception as error:
        raise ValueError(
            f"`Study.sampler` must return a sampler when it is called with a seed, but it raised "
            f"{type(error).__name__}: {error}{place_of(error)}."
        ) from error
    if not isinstance(sampler, BaseSampler):
        raise TypeError(f"`Study.sampler` must return one of Optuna's samplers, but it returned {sampler!r}.")
    return sampler


def run(
    study: Study,
    host: optuna.Study,
    directory: Path,
    observers: Sequence[Observer] = (),
    *,
    may_start: Callable[[], bool] = lambda: True,
    on_stuck: Callable[[], None] | None = None,
) -> str:
    """Run trials in this process until the study has ``n_trials``, its time is up, or somebody calls ``study.stop()``.

    Ctrl-C and SIGTERM end the trial at hand: it is recorded as failed, and its settings come first when the study goes
    on. Between trials they wait until the books are closed. Where that has not come to its end after eight seconds, the
    trial is put back into the queue, and the process exits with code 130.

    Args:
        study: what is run.
        host: from :func:`open_study`.
        directory: where weights are kept.
        observers: called after each trial.
        may_start: asked before each trial, beside the budget, which all processes of the study share.
        on_stuck: called before such an exit, to say how to go on.

    Returns:
        Who stopped the study before its budget was used up, in a sentence; empty where nobody did.

    Raises:
        ValueError: the folder holds the weights of another study.
        KeyboardInterrupt: after everything was recorded.
        Exception: what the objective raised, where ``study.catch`` does not go on; the trial is recorded as failed with
            the reason.
    """
    claim(directory, host)
    if is_exhausted(host):
        return NOTHING_LEFT
    deadline = math.inf if study.timeout is None else time.monotonic() + study.timeout
    callbacks = [*observers, *([keep_only_best(directory)] if study.keep_weights == "best" else [])]
    at_work = AtWork(host, study.n_trials)
    with Interruptions(lambda: leave_at_once(host, on_stuck)) as interruptions, Stops(host) as stops, at_work:
        kept = replace(study.objective, on_trained=keep_all(directory))
        objective = stops.inside(recorded(kept, interruptions, Failures(study.catch), study.timeout_per_trial))
        while not (interruptions.is_due or stops.is_over) and time.monotonic() < deadline and may_start():
            if not at_work.has_room():
                if n_finished(host) >= study.n_trials:
                    break
                time.sleep(_POLL_SECONDS)  # others run the last trials; should one of them die, its trial is done here
                continue
            with turn(turn_name(host)):
                enqueue_start(host)
                is_planned = _next_is_planned(study, host)
            if is_planned is None:
                time.sleep(_POLL_SECONDS)
                continue
            if not is_planned:
                return CONVERGED
            with suppress(NoneLeft), at_work.bearing_loss():
                host.optimize(objective, n_trials=1, callbacks=[stops.after_trial, *callbacks], catch=(Passed,))
    if interruptions.is_due:
        raise KeyboardInterrupt
    return stops.said


def _next_is_planned(study: Study, host: optuna.Study) -> bool | None:
    """Whether there is a trial to run: one more of the search, or a repeat, which is queued; ``None``: wait."""
    n, is_done = n_leaders(study.n_trials, study.n_repeats), study.stop_early and is_converged(host)
    return plan_repeat(host, study.n_trials, n, study.n_repeats, is_done=is_done)
