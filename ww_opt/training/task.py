"""What is trained: the user's callables, and checks of what is easily mixed up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.loss import _Loss
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from ww_opt.training.late_entry import LateExamples
from ww_opt.training.optimizers import needs_closure

__all__ = ["Task", "constant", "cosine", "placed"]

_HALF = (torch.bfloat16, torch.float16)


def cosine(progress: float) -> float:
    """Cosine decay of the learning rate from 1 at ``progress`` 0 to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float) -> float:  # noqa: ARG001
    """No decay."""
    return 1.0


@dataclass(frozen=True)
class Task:
    """What is trained: three callables, and the few things a run needs besides. No validation data.

    Args:
        build_model: returns a fresh model; called once a trial, under a fixed seed. What it leaves in eval mode while
            the rest is in train mode stays in eval mode. A model that is in eval mode as a whole, as
            ``from_pretrained`` returns it, is trained in train mode, but for parts whose parameters are all frozen.
        batches: returns the training batches of one epoch (a callable), or a re-iterable such as a DataLoader.
            What has a method ``to`` (tensors do) is moved to ``device``, also inside tuples, lists and mappings.
        loss: ``loss(model, batch)`` returns a scalar tensor, the mean loss of the batch.
        optimizer: called with the list of parameter groups; ``functools.partial`` sets further options. Its ``train``
            and ``eval``, which schedule-free optimizers have, are called as the model's are.
        schedule: factor on every learning rate as a function of progress in [0, 1]; rates of None are left alone.
        clip_norm: largest norm of the gradient over all parameters; ``None``: no clipping.
        evaluate: **sealed.** ``evaluate(model)`` returns what ``metric`` names on held-out data.
            Neither the score nor the pruner nor the guard ever calls it; ``ww-opt run`` opens it once, at the end.
        device: where the model is trained.
        name: stands in tables and in MLflow.
        steps_per_epoch: optimizer steps that make up an epoch; only used to speak of epochs in reports.
        late_entry: the training examples by number. :func:`ww_opt.training.run.train` lets some of them join towards
            the end, and judges the model on them just before; batches then come from here, not from ``batches``. No
            data is lost. A ``SpectralObjective`` uses it with ``guard="late"`` alone.
        in_nats: whether the loss is a cross-entropy; guards treat others by their ratio to the first loss. ``None``:
            told from torch's graph of the first step.
        metric: what ``evaluate`` returns, by its name in reports: ``"R2"``, ``"IoU"``; shares of ``"accuracy"`` are
            told in percent.
        higher_is_better: which way the metric is better.
        amp: ``torch.bfloat16`` or ``torch.float16``: what autocast computes losses and logits in; weights stay as they
            are. Gradients of float16 are scaled. ``evaluate`` is left to the user. ``None``: no autocast.
        accumulate: batches whose gradients make up one optimizer step; the loss of a step is their mean. Steps, looks
            and late entry count optimizer steps.

    Raises:
        TypeError: a callable is none or another thing than asked for, or ``batches`` can be walked through only once.
        ValueError: ``clip_norm``, ``steps_per_epoch`` or ``accumulate`` is not positive, ``amp`` is another type, or
            the optimizer needs a closure.
    """

    build_model: Callable[[], nn.Module]
    batches: Callable[[], Iterable[Any]] | Iterable[Any]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    optimizer: Callable[..., Optimizer] = torch.optim.AdamW
    schedule: Callable[[float], float] = cosine
    clip_norm: float | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    device: str | torch.device = "cpu"
    name: str = "task"
    steps_per_epoch: int | None = None
    late_entry: LateExamples | None = None
    in_nats: bool | None = None
    amp: torch.dtype | None = None
    accumulate: int = 1
    metric: str = "accuracy"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        _check_mix_ups(self)
        for field in ("build_model", "loss", "optimizer", "schedule", "evaluate"):
            value = getattr(self, field)
            if not callable(value) and not (field == "evaluate" and value is None):
                raise TypeError(f"Task.{field} must be callable, but got {type(value).__name__}.")
        _check_batches(self.batches)
        if not isinstance(self.late_entry, LateExamples | None):
            raise TypeError(
                f"Task.late_entry must be a LateExamples, but got {type(self.late_entry).__name__}: "
                "`LateExamples.from_loader(loader)` makes one."
            )
        for field in ("clip_norm", "steps_per_epoch"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"`{field} > 0` must hold, but got {field}={value}: leave it out for none.")
        if not (isinstance(self.metric, str) and self.metric.strip()):
            raise TypeError(f"Task.metric must be the name of what `evaluate` returns, but got {self.metric!r}.")
        if not isinstance(self.higher_is_better, bool):
            raise TypeError(f"Task.higher_is_better must be True or False, but got {self.higher_is_better!r}.")
        if not isinstance(self.accumulate, int) or isinstance(self.accumulate, bool):
            raise TypeError(f"`accumulate` must be a whole number, but got accumulate={self.accumulate!r}.")
        if self.accumulate < 1:
            raise ValueError(f"`accumulate >= 1` must hold, but got accumulate={self.accumulate}.")
        if self.amp is not None and self.amp not in _HALF:
            raise ValueError(f"`amp` must be torch.bfloat16, torch.float16 or None, but got amp={self.amp!r}.")

    def epoch(self) -> Iterator[Any]:
        """Return an iterator over the training batches of one epoch, on ``device``."""
        batches = self.batches() if callable(self.batches) else self.batches
        return (placed(batch, self.device) for batch in batches)

    def start_anew(self) -> None:
        """End what a DataLoader with persistent workers kept: their random streams go on from trial to trial."""
        if isinstance(self.batches, DataLoader) and self.batches.persistent_workers:
            self.batches._iterator = None


def _check_mix_ups(task: Task) -> None:
    """Refuse what is callable, or nearly so, but something else than what is asked for."""
    if isinstance(task.build_model, nn.Module):
        raise TypeError(
            f"Task.build_model must return a fresh model for each trial, but got a model, {_kind(task.build_model)}: "
            "trials would go on from each other's weights. Give a function that builds it, such as `lambda: Net()`."
        )
    if isinstance(task.loss, _Loss | type):
        name = task.loss.__name__ if isinstance(task.loss, type) else _kind(task.loss)
        raise TypeError(
            f"Task.loss is called with the model and a batch, but got {name}, which takes outputs and targets: write "
            "`lambda model, batch: criterion(model(batch[0]), batch[1])`."
        )
    if getattr(task.loss, "__module__", "") == "torch.nn.functional":
        name = getattr(task.loss, "__name__", "loss")
        raise TypeError(
            f"Task.loss is called with the model and a batch, but got torch's {name}, which takes outputs and targets: "
            f"write `lambda model, batch: {name}(model(batch[0]), batch[1])`."
        )
    if isinstance(task.optimizer, Optimizer):
        raise TypeError(
            f"Task.optimizer is called with each trial's parameter groups, but got a {_kind(task.optimizer)} that was "
            f"built already: give the class, or `functools.partial({_kind(task.optimizer)}, ...)` for its options."
        )
    if needs_closure(task.optimizer):
        raise ValueError(
            "Task.optimizer must step without a closure, but got one that needs it, as LBFGS does: use SGD or Adam."
        )
    if isinstance(task.schedule, type):
        raise TypeError(
            f"Task.schedule is called with the progress in [0, 1] and returns a factor, but got the class "
            f"{task.schedule.__name__}: write a function, such as `lambda progress: 1 - progress`."
        )


def _check_batches(batches: object) -> None:
    if isinstance(batches, torch.Tensor | Mapping | str):
        raise TypeError(
            f"Task.batches must give batches one by one, but got a {_kind(batches)}: put them into a list, or give a "
            "function that returns them."
        )
    if isinstance(batches, Dataset) and not isinstance(batches, Iterable):
        raise TypeError(
            f"Task.batches must give batches, but got a {_kind(batches)}, which gives examples: "
            "`DataLoader(dataset, batch_size=64, shuffle=True)` makes batches of them."
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            "Task.batches must give the batches anew each epoch, but got an iterator, which is empty after "
            "one: pass a function that returns it."
        )
    if not callable(batches) and not isinstance(batches, Iterable):
        raise TypeError(
            "Task.batches must be a callable that returns the batches of one epoch, or an iterable such as a "
            f"DataLoader, but got {_kind(batches)}."
        )


def _kind(value: object) -> str:
    return type(value).__name__


def placed(value: Any, device: str | torch.device) -> Any:
    """Move what can be moved, inside tuples, lists and mappings too."""
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: placed(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(placed(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(placed(item, device) for item in value)
    return value
