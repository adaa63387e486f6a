"""A short training run as a generator of checkpoints. The caller stops when it wants."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from ww_opt.training.cadence import Cadence
from ww_opt.training.cohorts import is_cross_entropy
from ww_opt.training.divergence import divergence
from ww_opt.training.first_batch import explained
from ww_opt.training.init_scale import as_built
from ww_opt.training.judging import Judgement
from ww_opt.training.late_entry import LateEntry
from ww_opt.training.loop import Cohorts, Loop, Parts, drawn, drawn_at, endless, entry_of, no_batches, taken
from ww_opt.training.optimizers import Rates, build_optimizer
from ww_opt.training.randomness import Streams
from ww_opt.training.task import Task

__all__ = ["Checkpoint", "first_batch", "loss_before", "train"]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` optimizer steps.

    ``train_loss`` is the clean training loss: dropout off, no gradient, averaged over a few training batches.
    ``running_loss`` is the mean over the steps since the last checkpoint, dropout on. ``first_loss`` is the clean
    loss before the first step, of the weights before any ``init_scale``. All are NaN or infinite where training
    diverged; the run ends with that checkpoint.
    ``late`` is what :class:`ww_opt.LateExamples` have said so far, those among them who join with the next step.
    ``in_nats``: whether the loss is a cross-entropy. ``model`` is the live model, in eval mode. ``seconds`` is the time
    spent in training since the start, without that of checkpoints: ``loss_seconds`` for this one's clean loss, and the
    caller's own. ``is_first``: no checkpoint came before; ``has_new_late``: somebody was judged since the last one.
    ``error`` is what the user's code raised because training had diverged. ``judge_ahead()`` asks those late examples
    that are still to join: it takes a forward pass, returns ``None`` where there are none and changes nothing, but must
    be called before the run goes on.
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
    loss_seconds: float = 0.0
    is_first: bool = False
    has_new_late: bool = False
    judge_ahead: Callable[[], Judgement | None] = field(default=lambda: None, repr=False, compare=False)

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
    interval_steps: int | Cadence,
    n_loss_batches: int = 8,
) -> Iterator[Checkpoint]:
    """Train ``model`` in place; yield a :class:`Checkpoint` every ``interval_steps`` steps and at the end.

    Who joins late is judged just before, and before the checkpoint of that step. At a checkpoint the caller may freeze
    layers of the model (:class:`ww_opt.FreezeSchedule`).

    Looking changes nothing: the random states of torch, numpy and Python are put back after each checkpoint, so
    ``interval_steps`` and what the caller draws meanwhile leave the weights as they would have been. What the user's
    code raises where weights or outputs are not finite any more is taken for divergence.

    Args:
        model: trained in place, on ``task.device``, in the modes that it is in; see :class:`ww_opt.Task`.
        task: batches, loss, optimizer and schedule.
        groups: parameter groups, as from :func:`ww_opt.training.layerwise.parameter_groups`.
        n_steps: optimizer steps of the whole run; the schedule is laid over them.
        interval_steps: steps between checkpoints, or a cadence that says when one is due. Between those the loss alone
            is asked whether training has diverged.
        n_loss_batches: training batches over which the clean loss is averaged.

    Raises:
        TypeError: the loss is no tensor, or the optimizer is none.
        ValueError: a count is out of range, a setting acts on nothing in the optimizer; or, before the first step, the
            task has no batches, or its loss is no scalar or has no gradient.
    """
    cadence = interval_steps if isinstance(interval_steps, Cadence) else Cadence(n_steps, interval_steps)
    if n_loss_batches < 1:
        raise ValueError(f"`n_loss_batches >= 1` must hold, but got n_loss_batches={n_loss_batches}.")
    model.to(task.device)
    loop = Loop.of(model, task, build_optimizer(task.optimizer, groups))
    return _checkpoints(loop, cadence, n_loss_batches)


def _checkpoints(loop: Loop, cadence: Cadence, n_loss_batches: int) -> Iterator[Checkpoint]:
    model, task, n_steps = loop.model, loop.task, cadence.n_steps
    task.start_anew()
    streams = Streams.now(task.device)
    entry = entry_of(task, n_steps)
    probe = _probe(task, entry, n_loss_batches)
    with explained(model, probe), as_built(model):
        first_loss = loop.clean_loss(probe)
        cohorts = Cohorts(loop, entry, loop.looked_at(probe[0]))
    streams.restore()
    batches = endless(task)
    of_step = (drawn(task, batches) for _ in range(n_steps)) if entry is None else (drawn_at(task, i) for i in entry)
    rates = Rates.of(loop.optimizer)
    seconds, in_nats = 0.0, task.in_nats
    start = step = since = n_said = 0
    running = torch.zeros((), device=task.device)
    for stop in cadence.steps:
        started = time.perf_counter()
        train_loss, error = math.nan, ""
        parts: Parts = [(1.0, batch) for batch in probe]
        ended = 0.0
        try:
            for step in range(start, stop):
                cohorts.judge_joining(step)
                rates.scale(task.schedule(step / n_steps))
                parts = next(of_step)
                loss = loop.step(parts)
                running += loss.detach()
                in_nats = is_cross_entropy(loss) if in_nats is None else in_nats
            step = stop
            cohorts.judge_joining(stop)
            start, ended = stop, time.perf_counter()
            if not cadence.is_due(stop) and math.isfinite(float(running)):
                seconds += ended - started
                continue
            streams = Streams.now(task.device)
            train_loss = loop.clean_loss(probe)
        except Exception as raised:
            error = _divergence(raised, loop, parts) if step > 0 else ""
            if not error:
                raise
        now = time.perf_counter()
        ended = ended or now
        seconds += ended - started
        losses = (train_loss, math.nan if error else float(running) / (stop - since), first_loss)
        checkpoint = Checkpoint(
            *(step, n_steps, model, *losses, seconds, tuple(cohorts.said), in_nats is not False, error),
            loss_seconds=now - ended,
            is_first=since == 0,
            has_new_late=len(cohorts.said) > n_said,
            judge_ahead=partial(cohorts.judge_waiting, step),
        )
        yield checkpoint
        if stop == n_steps or not checkpoint.is_finite:
            return
        since, n_said, running = stop, len(cohorts.said), torch.zeros_like(running)
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


def first_batch(task: Task, n_steps: int) -> Any:
    """Return a training batch, one of those that the clean loss is averaged over; draws from the streams as they are.

    Raises:
        ValueError: the task has no batches.
    """
    return _probe(task, entry_of(task, n_steps), 1)[0]


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
