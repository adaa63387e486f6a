"""What every step of a run does: forward and back, one optimizer step, and looks in eval mode."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ww_opt.training.cohorts import even_parts, judge_cohort, look_at_first_batch
from ww_opt.training.first_batch import check_gradient
from ww_opt.training.judging import Judgement
from ww_opt.training.late_entry import LateEntry, LateExamples
from ww_opt.training.modes import Modes, set_optimizer_mode
from ww_opt.training.randomness import undisturbed
from ww_opt.training.task import Task, placed

__all__ = ["Cohorts", "Loop", "Parts", "drawn", "drawn_at", "endless", "entry_of", "no_batches", "taken"]

Parts = Sequence[tuple[float, Any]]
"""The batches of one optimizer step, each with its share in the loss."""


@dataclass(frozen=True, eq=False)
class Loop:
    """A model, what it is trained on, and with what; ``scaler`` is there where gradients of float16 need one."""

    model: nn.Module
    task: Task
    optimizer: Optimizer
    modes: Modes
    scaler: torch.amp.GradScaler | None

    @classmethod
    def of(cls, model: nn.Module, task: Task, optimizer: Optimizer) -> Loop:
        """Make the loop; the modes that ``model`` is in now are those it is trained in."""
        kind = torch.device(task.device).type
        scaler = torch.amp.GradScaler(kind) if task.amp is torch.float16 else None
        return cls(model, task, optimizer, Modes.of(model), scaler)

    def step(self, parts: Parts) -> torch.Tensor:
        """Do one optimizer step; return the loss, whose graph is still there to be read."""
        self.modes.train(self.optimizer)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.task.device)
        for share, batch in parts:
            loss = share * self.loss(batch) if len(parts) > 1 else self.loss(batch)
            check_gradient(loss)
            scaled = loss if self.scaler is None else self.scaler.scale(loss)
            scaled.backward()  # type: ignore[no-untyped-call]
            total = total + loss if len(parts) > 1 else loss
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.task.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return total

    def loss(self, batch: Any) -> torch.Tensor:
        """Return the task's loss of a batch.

        Raises:
            TypeError: it is no tensor.
            ValueError: it is no scalar.
        """
        with self.autocast():
            loss = self.task.loss(self.model, batch)
        if not isinstance(loss, torch.Tensor):
            raise TypeError(
                f"Task.loss must return a scalar tensor, but got {type(loss).__name__}: leave out `.item()`."
            )
        if loss.ndim != 0:
            raise ValueError(
                f"Task.loss must return a scalar, but got shape {tuple(loss.shape)}: take the batch's mean."
            )
        return loss

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision that losses and logits are computed in."""
        if self.task.amp is None:
            return nullcontext()
        return torch.autocast(torch.device(self.task.device).type, dtype=self.task.amp)

    def sleep(self) -> None:
        """Put model and optimizer into eval mode."""
        self.model.eval()
        set_optimizer_mode(self.optimizer, False)

    def clean_loss(self, batches: Sequence[Any]) -> float:
        """Return the mean loss in eval mode; NaN without batches."""
        self.sleep()
        with torch.no_grad():
            losses = [float(self.loss(batch)) for batch in batches]
        return sum(losses) / len(losses) if losses else math.nan

    def looked_at(self, batch: Any) -> LateExamples | None:
        """Return the task's late entry with what a first batch tells of it; what does not fit is told now."""
        late = self.task.late_entry
        self.sleep()
        with self.autocast():
            return None if late is None else look_at_first_batch(self.model, late, batch)

    def judged(self, late: LateExamples, cohort: torch.Tensor, step: int) -> Judgement:
        """Judge the model, in eval mode, on examples that join now."""
        device = self.task.device
        self.sleep()
        with self.autocast():
            return judge_cohort(self.model, late, cohort, step, lambda i: placed(late.take(i), device), self.loss)


class Cohorts:
    """Who joins late, and what they said of the model just before; nobody is asked twice.

    Args:
        loop: whose model is judged.
        entry: who joins when; ``None``: nobody does.
        late: how they judge.
    """

    def __init__(self, loop: Loop, entry: LateEntry | None, late: LateExamples | None) -> None:
        self.said: list[Judgement] = []
        self._loop, self._entry, self._late = loop, entry, late
        self._asked = -1

    def judge_joining(self, step: int) -> None:
        """Let judge who joins with this step, counted from 0; random streams are left as they were."""
        if self._entry is None or self._late is None or step <= self._asked:
            return
        self._asked = step
        for cohort in self._entry.joining(step):
            with undisturbed(self._loop.task.device):
                self.said.append(self._loop.judged(self._late, cohort, step))

    def judge_waiting(self, step: int) -> Judgement | None:
        """Ask all who are still to join after ``step`` steps; ``None`` where nobody is. Nothing is remembered."""
        if self._entry is None or self._late is None or not len(waiting := self._entry.waiting(step)):
            return None
        with undisturbed(self._loop.task.device):
            return self._loop.judged(self._late, waiting, step)


def entry_of(task: Task, n_steps: int) -> LateEntry | None:
    """Lay the task's late entry over a run, one index batch an optimizer step; ``None`` where it has none."""
    late = task.late_entry
    if late is None:
        return None
    return (replace(late, batch_size=late.batch_size * task.accumulate) if task.accumulate > 1 else late).over(n_steps)


def endless(task: Task) -> Iterator[Any]:
    """Return the batches of epoch after epoch.

    Raises:
        ValueError: an epoch has none.
    """
    while True:
        n_batches = 0
        for batch in task.epoch():
            n_batches += 1
            yield batch
        if n_batches == 0:
            raise no_batches(task)


def no_batches(task: Task) -> ValueError:
    """Return the error of a task whose epoch is empty."""
    return ValueError(f"A task needs at least one training batch an epoch, but {task.name!r} gave none.")


def drawn(task: Task, batches: Iterator[Any]) -> Parts:
    """Take the batches of the next optimizer step."""
    return [(1.0 / task.accumulate, next(batches)) for _ in range(task.accumulate)]


def drawn_at(task: Task, index: torch.Tensor) -> Parts:
    """Take the examples of one optimizer step by number, in batches of nearly one size."""
    assert task.late_entry is not None
    parts = even_parts(index, task.late_entry.batch_size) if task.accumulate > 1 else (index,)
    return [(len(part) / len(index), placed(task.late_entry.take(part), task.device)) for part in parts]


def taken(task: Task, index: torch.Tensor) -> Iterator[Any]:
    """Take examples by number, batch by batch."""
    late = task.late_entry
    assert late is not None
    return (placed(late.take(part), task.device) for part in even_parts(index, late.batch_size))
