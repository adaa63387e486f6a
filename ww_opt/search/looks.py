"""The looks of one trial: when they fall, what they cost, and in which thread the weights are diagnosed."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import optuna
import torch
from optuna.trial import FrozenTrial
from torch import nn

from ww_opt.search import records
from ww_opt.search.report import report, rung_steps
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.rows import Diagnosis
from ww_opt.spectral.scores import Score
from ww_opt.training.cadence import CADENCES, Cadence

__all__ = ["Looks", "Moment", "cadence_of", "look_share"]

_LOG = logging.getLogger(__name__)
_N_LOOKS = "ww_opt:n_looks"


def cadence_of(
    trial: optuna.Trial, n_steps: int, interval_steps: int | None, budget: float, joining: tuple[int, ...] = ()
) -> Cadence:
    """Return the cadence of a trial's run; where an earlier trial of its study has settled one, that.

    A look falls on each rung of the study's pruner, whatever it costs: what is pruned there saves more.

    Args:
        trial: the running trial.
        n_steps: optimizer steps of the run.
        interval_steps: steps between looks; ``None``: as the budget allows.
        budget: share of the training time that looks may take.
        joining: steps done when a cohort joins.
    """
    host = getattr(trial, "study", None)
    found = None if host is None or interval_steps is not None else host.user_attrs.get(_N_LOOKS)
    deciding = (*joining, *rung_steps(trial, n_steps))
    return Cadence(n_steps, interval_steps, budget, deciding, n_looks=found if found in CADENCES else None)


@dataclass(frozen=True)
class Moment:
    """What is reported beside a diagnosis; see :func:`ww_opt.report`."""

    step: int
    train_loss: float
    first_loss: float | None


class Looks:
    """Looks at the model of one trial, in this thread or in one beside it.

    Beside it a snapshot of the weights is diagnosed while training goes on, and what it says is reported at the next
    check point, before anything that happened since: records, values and the pruner's answers are the same. Only the
    last look is waited for at once.

    Args:
        trial: the running trial.
        cadence: when looks fall; is told what they cost.
        score: what is reported.
        in_background: whether weights are diagnosed in a thread beside the training.

    Attributes:
        value: the last one reported; NaN before.
    """

    def __init__(self, trial: optuna.Trial, cadence: Cadence, score: Score, *, in_background: bool = False) -> None:
        self.value = float("nan")
        self._trial, self._cadence, self._score = trial, cadence, score
        self._pool = ThreadPoolExecutor(1, "ww_opt") if in_background else None
        self._twin: nn.Module | None = None
        self._waiting: tuple[Moment, Future[Diagnosis]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def look(self, model: nn.Module, moment: Moment) -> None:
        """Diagnose the model and report, now or, from a snapshot, at the next check point.

        Raises:
            optuna.TrialPruned: see :func:`ww_opt.report`.
        """
        # without a finite loss nothing is diagnosed, and at the end there is nothing left to train meanwhile
        may_wait = self._pool is not None and moment.step < self._cadence.n_steps
        if may_wait and math.isfinite(moment.train_loss) and self._has_twin_of(model):
            assert self._pool is not None
            assert self._twin is not None
            self._waiting = moment, self._pool.submit(diagnose, self._twin)
            self._cadence.is_waited_for = True
        else:
            self._report(model, moment)

    def catch_up(self) -> None:
        """Report what was diagnosed beside the training.

        Raises:
            optuna.TrialPruned: see :func:`ww_opt.report`.
        """
        if self._waiting is not None:
            (moment, found), self._waiting = self._waiting, None
            self._cadence.is_waited_for = False
            self._report(found.result(), moment)

    @contextmanager
    def counted(self, *, training: float, step: int, before: float = 0.0) -> Iterator[None]:
        """Count what happens inside as a look; with the last one of the trial, keep what all have cost.

        Only a run that came to its end settles the cadence of its study: in a pruned one a single look may have met the
        machine's noise.

        Args:
            training: seconds of training since the start of the run.
            step: optimizer steps done.
            before: seconds that the look has taken already.
        """
        trial, cadence = self._trial, self._cadence
        started = time.perf_counter()
        is_pruned = False
        try:
            yield
        except optuna.TrialPruned:
            is_pruned = True
            raise
        finally:
            cadence.spent(time.perf_counter() - started + before, training, step)
            if is_pruned:
                _keep(trial, cadence)
        if step == cadence.n_steps:
            _keep(trial, cadence)
            host: Any = getattr(trial, "study", None)
            if host is not None and cadence.n_looks is not None and host.user_attrs.get(_N_LOOKS) not in CADENCES:
                host.set_user_attr(_N_LOOKS, cadence.n_looks)

    def _report(self, seen: nn.Module | Diagnosis, moment: Moment) -> None:
        losses: Any = {"train_loss": moment.train_loss, "first_loss": moment.first_loss}
        n_steps = self._cadence.n_steps
        self.value = report(self._trial, seen, moment.step, n_steps=n_steps, score=self._score, **losses)

    def _has_twin_of(self, model: nn.Module) -> bool:
        """Bring the snapshot up to date; whether there is one."""
        try:
            if self._twin is None or _flags(model) != _flags(self._twin):
                self._twin = copy.deepcopy(model)
            else:
                _copy(model, self._twin)
        except Exception as error:  # foreign modules: locks, handles, tensors with a graph
            self._twin = None
            _tell_of_copies(type(model).__name__, f"{type(error).__name__}: {error}")
        return self._twin is not None


def _flags(model: nn.Module) -> list[bool]:
    return [own.requires_grad for own in model.parameters()]


@torch.no_grad()
def _copy(model: nn.Module, twin: nn.Module) -> None:
    """Copy what has changed: a layer that stood still keeps its version, and is not diagnosed again."""
    tensors = ([*module.parameters(), *module.buffers()] for module in (twin, model))
    for mine, theirs in zip(*tensors, strict=True):
        if not torch.equal(mine, theirs):
            mine.copy_(theirs)


def _keep(trial: optuna.Trial, cadence: Cadence) -> None:
    records.write(trial, seconds={"training": cadence.training, "looks": cadence.looking})


def look_share(trials: Iterable[FrozenTrial]) -> float:
    """Return what looks took of the training time of these trials, a share; NaN where none of them knows."""
    found = [own for trial in trials if (own := records.read(trial, "seconds"))]
    training = sum(own["training"] for own in found)
    return sum(own["looks"] for own in found) / training if training > 0 else float("nan")


@cache
def _tell_of_copies(kind: str, why: str) -> None:
    _LOG.warning(
        "Looks in the background need a copy of the model, but %s cannot be copied (%s): it is diagnosed while "
        "training waits. Leave `in_background` out, or give the class a `__deepcopy__`.",
        kind,
        why,
    )
