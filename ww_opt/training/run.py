"""A short training run as a generator of checkpoints. The caller stops when it wants."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from ww_opt.training.cohorts import is_cross_entropy
from ww_opt.training.divergence import divergence
from ww_opt.training.first_batch import explained
from ww_opt.training.init_scale import as_built
from ww_opt.training.judging import Judgement
from ww_opt.training.late_entry import LateEntry
from ww_opt.training.loop import Loop, Parts, drawn, drawn_at, endless, entry_of, no_batches, taken
from ww_opt.training.optimizers import Rates, build_optimizer
from ww_opt.training.randomness import Streams
from ww_opt.training.task import Task

__all__ = ["Checkpoint", "loss_before", "train"]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` optimizer steps.

    ``train_loss`` is the clean training loss: dropout off, no gradient, averaged over a few training batches.
    ``running_loss`` is the mean over the steps since the last checkpoint, dropout on. ``first_loss`` is the clean
    loss before the first step, of the weights before any ``init_scale``. All are NaN or infinite where training
    diverged; the run ends with that checkpoint.
    ``late`` is what :class:`ww_opt.LateExamples` have said so far. ``in_nats``: whether the loss is a cross-entropy.
    ``model`` is the live model, in eval mode; ``seconds`` is the time spent in training since the start, without the
    caller's own time at checkpoints. ``error`` is what the user's code raised because training had diverged.
    """

    step: int
    n_steps: int
    model: nn.Module
    train_loss: float
    running_loss: float
    first_loss: float
    seconds: float
    late: tuple[Judgement, ...] = ()
    in_nats: bool = True
    error: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether both losses are finite numbers."""
        return math.isfinite(self.train_loss) and math.isfinite(self.running_loss)


def train(
    model: nn.Module,
    task: Task,
    groups: Sequence[dict[str, Any]],
    *,
    n_steps: int,
    interval_steps: int,
    n_loss_batches: int = 8,
) -> Iterator[Checkpoint]:
    """Train ``model`` in place; yield a :class:`Checkpoint` every ``interval_steps`` steps and at the end.

    Looking changes nothing: the random states of torch, numpy and Python are put back after each checkpoint, so
    ``interval_steps`` and what the caller draws meanwhile leave the weights as they would have been. What the user's
    code raises where weights or outputs are not finite any more is taken for divergence.

    Args:
        model: trained in place, on ``task.device``, in the modes that it is in; see :class:`ww_opt.Task`.
        task: batches, loss, optimizer and schedule.
        groups: parameter groups, as from :func:`ww_opt.training.layerwise.parameter_groups`.
        n_steps: optimizer steps of the whole run; the schedule is laid over them.
        interval_steps: steps between checkpoints.
        n_loss_batches: training batches over which the clean loss is averaged.

    Raises:
        TypeError: the loss is no tensor, or the optimizer is none.
        ValueError: a count is out of range, a setting acts on nothing in the optimizer; or, before the first step, the
            task has no batches, or its loss is no scalar or has no gradient.
    """
    if not 1 <= interval_steps <= n_steps:
        raise ValueError(
            f"`1 <= interval_steps <= n_steps` must hold, but got interval_steps={interval_steps}, n_steps={n_steps}."
        )
    if n_loss_batches < 1:
        raise ValueError(f"`n_loss_batches >= 1` must hold, but got n_loss_batches={n_loss_batches}.")
    model.to(task.device)
    loop = Loop.of(model, task, build_optimizer(task.optimizer, groups))
    return _checkpoints(loop, n_steps, interval_steps, n_loss_batches)


def _checkpoints(loop: Loop, n_steps: int, interval_steps: int, n_loss_batches: int) -> Iterator[Checkpoint]:
    model, task = loop.model, loop.task
    task.start_anew()
    streams = Streams.now(task.device)
    entry = entry_of(task, n_steps)
    probe = _probe(task, entry, n_loss_batches)
    with explained(model, probe), as_built(model):
        first_loss = loop.clean_loss(probe)
        late_entry = loop.looked_at(probe[0])
    streams.restore()
    batches = endless(task)
    of_step = (drawn(task, batches) for _ in range(n_steps)) if entry is None else (drawn_at(task, i) for i in entry)
    late: list[Judgement] = []
    rates = Rates.of(loop.optimizer)
    seconds, in_nats = 0.0, task.in_nats
    for start in range(0, n_steps, interval_steps):
        stop = min(start + interval_steps, n_steps)
        started = time.perf_counter()
        running = torch.zeros((), device=task.device)
        train_loss, error = math.nan, ""
        step = start
        parts: Parts = [(1.0, batch) for batch in probe]
        try:
            for step in range(start, stop):
                for cohort in entry.joining(step) if entry else ():
                    assert late_entry is not None
                    late.append(loop.judged(late_entry, cohort, step))
                rates.scale(task.schedule(step / n_steps))
                parts = next(of_step)
                loss = loop.step(parts)
                running += loss.detach()
                in_nats = is_cross_entropy(loss) if in_nats is None else in_nats
            step = stop
            streams = Streams.now(task.device)
            train_loss = loop.clean_loss(probe)
        except Exception as raised:
            error = _divergence(raised, loop, parts) if step > 0 else ""
            if not error:
                raise
        losses = (train_loss, math.nan if error else float(running) / (stop - start), first_loss)
        seconds += time.perf_counter() - started
        checkpoint = Checkpoint(step, n_steps, model, *losses, seconds, tuple(late), in_nats is not False, error)
        yield checkpoint
        if stop == n_steps or not checkpoint.is_finite:
            return
        streams.restore()


def loss_before(
    model: nn.Module, task: Task, groups: Sequence[dict[str, Any]], *, n_steps: int, n_loss_batches: int = 8
) -> float:
    """Return the loss before the first step that :func:`train` would begin with, and train nothing.

    Raises:
        Exception: as :func:`train` before its first step.
    """
    model.to(task.device)
    loop = Loop.of(model, task, build_optimizer(task.optimizer, groups))
    task.start_anew()
    return loop.clean_loss(_probe(task, entry_of(task, n_steps), n_loss_batches))


def _probe(task: Task, entry: LateEntry | None, n_batches: int) -> list[Any]:
    """Take a fixed sample of training batches: the same examples at every checkpoint, so that losses compare."""
    probe = list(islice(task.epoch() if entry is None else taken(task, entry.present), n_batches))
    if not probe:
        raise no_batches(task)
    return probe


def _divergence(error: Exception, loop: Loop, parts: Parts) -> str:
    found = divergence(error, loop.model, lambda: [loop.loss(batch) for _, batch in parts])
    loop.sleep()
    return found
