"""A short training run as a generator of checkpoints. The caller stops when it wants."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ww_opt.training.late_entry import Judgement, LateExamples, judge

__all__ = ["Checkpoint", "Task", "constant", "cosine", "momentum_key", "train"]


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
        build_model: returns a fresh model; called once a trial, under a fixed seed.
        batches: returns the training batches of one epoch (a callable), or a re-iterable such as a DataLoader.
            What has a method ``to`` (tensors do) is moved to ``device``, also inside tuples, lists and mappings.
        loss: ``loss(model, batch)`` returns a scalar tensor, the mean loss of the batch.
        optimizer: called with the list of parameter groups; ``functools.partial`` sets further options.
        schedule: factor on every learning rate as a function of progress in [0, 1].
        clip_norm: largest norm of the gradient over all parameters; ``None``: no clipping.
        evaluate: **sealed.** ``evaluate(model)`` returns what ``metric`` names on held-out data.
            Neither the score nor the pruner nor the guard ever calls it; ``ww-opt run`` opens it once, at the end.
        device: where the model is trained.
        name: stands in tables and in MLflow.
        steps_per_epoch: optimizer steps that make up an epoch; only used to speak of epochs in reports.
        late_entry: the training examples by number. :func:`train` lets some of them join towards the end, and judges
            the model on them just before; batches then come from here, not from ``batches``. No data is lost. A
            ``SpectralObjective`` uses it with ``guard="late"`` alone.
        metric: what ``evaluate`` returns, by its name in reports: ``"R2"``, ``"IoU"``; shares of ``"accuracy"`` are
            told in percent.
        higher_is_better: which way the metric is better.

    Raises:
        TypeError: a callable is none, or ``batches`` can be walked through only once.
        ValueError: ``clip_norm`` or ``steps_per_epoch`` is not positive.
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
    metric: str = "accuracy"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        for field in ("build_model", "loss", "optimizer", "schedule", "evaluate"):
            value = getattr(self, field)
            if not callable(value) and not (field == "evaluate" and value is None):
                raise TypeError(f"Task.{field} must be callable, but got {type(value).__name__}.")
        if not callable(self.batches) and not isinstance(self.batches, Iterable):
            raise TypeError(
                "Task.batches must be a callable that returns the batches of one epoch, or an iterable such as a "
                f"DataLoader, but got {type(self.batches).__name__}."
            )
        if isinstance(self.batches, Iterator):
            raise TypeError(
                "Task.batches must give the batches anew each epoch, but got an iterator, which is empty after "
                "one: pass a function that returns it."
            )
        if not isinstance(self.late_entry, LateExamples | None):
            raise TypeError(
                f"Task.late_entry must be a LateExamples, but got {type(self.late_entry).__name__}: "
                "`LateExamples.from_loader(loader)` makes one."
            )
        if not (isinstance(self.metric, str) and self.metric.strip()):
            raise TypeError(f"Task.metric must be the name of what `evaluate` returns, but got {self.metric!r}.")
        if not isinstance(self.higher_is_better, bool):
            raise TypeError(f"Task.higher_is_better must be True or False, but got {self.higher_is_better!r}.")
        for field in ("clip_norm", "steps_per_epoch"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"`{field} > 0` must hold, but got {field}={value}: leave it out for none.")

    def epoch(self) -> Iterator[Any]:
        """Return an iterator over the training batches of one epoch, on ``device``."""
        batches = self.batches() if callable(self.batches) else self.batches
        return (_placed(batch, self.device) for batch in batches)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` optimizer steps.

    ``train_loss`` is the clean training loss: dropout off, no gradient, averaged over a few training batches.
    ``running_loss`` is the mean over the steps since the last checkpoint, dropout on. ``first_loss`` is the clean
    loss before the first step. All are NaN or infinite where training diverged; the run ends with that checkpoint.
    ``late`` is what examples that came late have said so far, of :class:`ww_opt.training.late_entry.LateExamples`.
    ``model`` is the live model, in eval mode; ``seconds`` is the time spent in training since the start, without the
    caller's own time at checkpoints.
    """

    step: int
    n_steps: int
    model: nn.Module
    train_loss: float
    running_loss: float
    first_loss: float
    seconds: float
    late: tuple[Judgement, ...] = ()

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

    Looking changes nothing: torch's random state is put back after each checkpoint, so ``interval_steps`` and what
    the caller draws meanwhile leave the weights as they would have been.

    Args:
        model: trained in place, on ``task.device``.
        task: batches, loss, optimizer and schedule.
        groups: parameter groups, as from :func:`ww_opt.training.layerwise.parameter_groups`.
        n_steps: optimizer steps of the whole run; the schedule is laid over them.
        interval_steps: steps between checkpoints.
        n_loss_batches: training batches over which the clean loss is averaged.

    Raises:
        ValueError: a count is out of range, momentum is set for an optimizer that has none, the loss is no scalar, or
            the task has no batches (the last two at the first step).
    """
    if not 1 <= interval_steps <= n_steps:
        raise ValueError(
            f"`1 <= interval_steps <= n_steps` must hold, but got interval_steps={interval_steps}, n_steps={n_steps}."
        )
    if n_loss_batches < 1:
        raise ValueError(f"`n_loss_batches >= 1` must hold, but got n_loss_batches={n_loss_batches}.")
    model.to(task.device)
    optimizer = _optimizer(task, groups)
    return _checkpoints(model, task, optimizer, n_steps, interval_steps, n_loss_batches)


def _checkpoints(
    model: nn.Module, task: Task, optimizer: Optimizer, n_steps: int, interval_steps: int, n_loss_batches: int
) -> Iterator[Checkpoint]:
    random_state = _random_state(task)
    # a fixed sample of training batches: the same examples at every checkpoint, so that losses compare
    entry = None if task.late_entry is None else task.late_entry.over(n_steps)
    probe = list(islice(task.epoch() if entry is None else _batches(task, entry.present), n_loss_batches))
    first_loss = _clean_loss(model, task, probe)
    _restore_random_state(task, random_state)
    batches = _endless(task) if entry is None else (_taken(task, index) for index in entry)
    late: list[Judgement] = []
    base_rates = [group["lr"] for group in optimizer.param_groups]
    seconds = 0.0
    for start in range(0, n_steps, interval_steps):
        stop = min(start + interval_steps, n_steps)
        started = time.perf_counter()
        running = torch.zeros((), device=task.device)
        for step in range(start, stop):
            late += [_judged(model, task, cohort, step) for cohort in (entry.joining(step) if entry else ())]
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * task.schedule(step / n_steps)
            running += _step(model, task, optimizer, next(batches))
        random_state = _random_state(task)
        train_loss = _clean_loss(model, task, probe)
        running_loss = float(running) / (stop - start)
        seconds += time.perf_counter() - started
        checkpoint = Checkpoint(stop, n_steps, model, train_loss, running_loss, first_loss, seconds, tuple(late))
        yield checkpoint
        if stop == n_steps or not checkpoint.is_finite:
            return
        _restore_random_state(task, random_state)


def momentum_key(optimizer: Optimizer) -> str | None:
    """Name of the option that momentum sets: ``momentum`` (SGD), ``betas`` (Adam's first), or ``None``."""
    return next((key for key in ("momentum", "betas") if key in optimizer.defaults), None)


def _optimizer(task: Task, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Build the optimizer, with ``momentum`` translated into its own option."""
    optimizer = task.optimizer([{key: value for key, value in group.items() if key != "momentum"} for group in groups])
    key = momentum_key(optimizer)
    for built, asked in zip(optimizer.param_groups, groups, strict=True):
        if "momentum" not in asked:
            continue
        if key is None:
            raise ValueError(
                f"Momentum acts on nothing in {type(optimizer).__name__}, but got momentum={asked['momentum']}: leave "
                "it out of the space, or use SGD or Adam."
            )
        built[key] = asked["momentum"] if key == "momentum" else (asked["momentum"], *built["betas"][1:])
    return optimizer


def _step(model: nn.Module, task: Task, optimizer: Optimizer, batch: Any) -> torch.Tensor:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    loss = _loss(model, task, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    if task.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), task.clip_norm)
    optimizer.step()
    return loss.detach()


def _endless(task: Task) -> Iterator[Any]:
    while True:
        n_batches = 0
        for batch in task.epoch():
            n_batches += 1
            yield batch
        if n_batches == 0:
            raise ValueError(f"A task needs at least one training batch an epoch, but {task.name!r} gave none.")


def _taken(task: Task, index: torch.Tensor) -> Any:
    assert task.late_entry is not None
    return _placed(task.late_entry.take(index), task.device)


def _batches(task: Task, index: torch.Tensor) -> Iterator[Any]:
    assert task.late_entry is not None
    return (_taken(task, part) for part in torch.split(index, task.late_entry.batch_size))


def _judged(model: nn.Module, task: Task, cohort: torch.Tensor, step: int) -> Judgement:
    """Judge the model, in eval mode, on examples that join now."""
    assert task.late_entry is not None
    model.eval()
    with torch.no_grad():
        parts = list(_batches(task, cohort))
        if task.late_entry.logits is None:
            sizes = [len(part) for part in torch.split(cohort, task.late_entry.batch_size)]
            total = sum(n * float(_loss(model, task, part)) for n, part in zip(sizes, parts, strict=True))
            return Judgement(step, len(cohort), math.nan, (total / len(cohort),))
        logits, labels = zip(*(task.late_entry.logits(model, part) for part in parts), strict=True)
    return judge(torch.cat([own.flatten(0, -2) for own in logits]), torch.cat([own.flatten() for own in labels]), step)


def _clean_loss(model: nn.Module, task: Task, batches: Sequence[Any]) -> float:
    model.eval()
    with torch.no_grad():
        losses = [float(_loss(model, task, batch)) for batch in batches]
    return sum(losses) / len(losses) if losses else math.nan


def _loss(model: nn.Module, task: Task, batch: Any) -> torch.Tensor:
    loss = task.loss(model, batch)
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"Task.loss must return a scalar tensor, but got {type(loss).__name__}: leave out `.item()`.")
    if loss.ndim != 0:
        raise ValueError(f"Task.loss must return a scalar, but got shape {tuple(loss.shape)}: take the batch's mean.")
    return loss


def _random_state(task: Task) -> tuple[torch.Tensor, torch.Tensor | None]:
    on_cuda = torch.device(task.device).type == "cuda"
    return torch.get_rng_state(), torch.cuda.get_rng_state(task.device) if on_cuda else None


def _restore_random_state(task: Task, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], task.device)


def _placed(value: Any, device: str | torch.device) -> Any:
    """Move what can be moved, inside tuples, lists and mappings too."""
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _placed(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_placed(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_placed(item, device) for item in value)
    return value
