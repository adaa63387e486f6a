"""Labelled examples in memory -> a task whose held-out part is sealed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.optim import Optimizer

from ww_opt.training.late_entry import LateExamples
from ww_opt.training.task import Task

_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Examples:
    """Inputs ``x`` [n, ...] and class numbers ``y``: [n], or [n, length] where every position has one."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: torch.Tensor) -> Examples:
        """Return the examples at ``index``."""
        return Examples(self.x[index], self.y[index])

    def to(self, device: str | torch.device) -> Examples:
        """Return the examples on ``device``."""
        return Examples(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Source:
    """Where examples come from. The split into training and test part is fixed; no option moves it.

    Args:
        name: stands in tables.
        load: returns the training and the test part; called at the first use, once.
        n_train: examples in the training part.
        n_classes: classes that a label may name.
    """

    name: str
    load: Callable[[], tuple[Examples, Examples]]
    n_train: int
    n_classes: int


@dataclass(frozen=True)
class Regime:
    """How the training part is thinned, corrupted and batched; the test part is left alone.

    Args:
        label_noise: share of the training labels replaced by another class, drawn uniformly, in [0, 1].
        n_train: training examples to keep, drawn without replacement; ``None``: all.
        batch_size: examples in a batch; an epoch's last one may be smaller.
        seed: draws what is kept and what is corrupted. The order of batches follows torch's global generator.

    Raises:
        ValueError: an option is out of range.
    """

    label_noise: float = 0.0
    n_train: int | None = None
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_noise <= 1.0:
            raise ValueError(f"`0 <= label_noise <= 1` must hold, but got label_noise={self.label_noise}.")
        if self.n_train is not None:
            check_at_least("n_train", self.n_train, 1)
        check_at_least("batch_size", self.batch_size, 1)

    def apply(self, examples: Examples, n_classes: int) -> Examples:
        """Return the training examples of this regime; under one seed, fewer are part of more."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(examples), generator=generator)[: self.n_train]
        kept = examples.take(order)
        return Examples(kept.x, with_label_noise(kept.y, n_classes, self.label_noise, generator))


def check_at_least(option: str, value: int, low: int) -> None:
    """Raise ``ValueError`` naming option and value where ``value < low``."""
    if value < low:
        raise ValueError(f"`{option} >= {low}` must hold, but got {option}={value}.")


def with_label_noise(y: torch.Tensor, n_classes: int, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Replace ``round(rate * n)`` of the labels, in any shape, by one of the ``n_classes - 1`` other classes."""
    noisy = y.flatten().clone()
    changed = torch.randperm(len(noisy), generator=generator)[: round(rate * len(noisy))]
    shift = torch.randint(1, n_classes, changed.shape, generator=generator)
    noisy[changed] = (noisy[changed] + shift) % n_classes
    return noisy.view_as(y)


def classification_task(
    source: Source, build_model: Callable[[], nn.Module], regime: Regime, optimizer: Callable[..., Optimizer]
) -> Task:
    """Build the task: cross-entropy on the regime's examples, accuracy on the sealed test part. Loads nothing yet.

    Raises:
        ValueError: the regime asks for more training examples than there are.
    """
    n_train = source.n_train if regime.n_train is None else regime.n_train
    if n_train > source.n_train:
        raise ValueError(f"`n_train <= {source.n_train}` must hold for {source.name}, but got n_train={n_train}.")

    @cache
    def training_examples() -> Examples:
        return regime.apply(source.load()[0], source.n_classes)

    def batches() -> Iterator[Examples]:
        examples = training_examples()
        return (examples.take(index) for index in torch.split(torch.randperm(len(examples)), regime.batch_size))

    def evaluate(model: nn.Module) -> float:
        return accuracy(model, source.load()[1])

    late = LateExamples(n_train, regime.batch_size, lambda index: training_examples().take(index), _logits)
    return Task(
        build_model=build_model,
        batches=batches,
        loss=cross_entropy,
        optimizer=optimizer,
        evaluate=evaluate,
        name=source.name,
        steps_per_epoch=math.ceil(n_train / regime.batch_size),
        late_entry=late,
    )


def cross_entropy(model: nn.Module, batch: Examples) -> torch.Tensor:
    """Mean cross-entropy over all labels of the batch; the model returns logits [..., n_classes]."""
    logits = model(batch.x)
    return nn.functional.cross_entropy(logits.flatten(0, -2), batch.y.flatten())


def _logits(model: nn.Module, batch: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    return model(batch.x), batch.y


def accuracy(model: nn.Module, examples: Examples) -> float:
    """Share of labels that the model, in eval mode, predicts; each module's mode is put back afterwards."""
    device = next(model.parameters()).device
    was_training = {module: module.training for module in model.modules()}
    n_right = 0
    model.eval()
    try:
        with torch.no_grad():
            for index in torch.split(torch.arange(len(examples)), _EVALUATION_BATCH):
                part = examples.take(index).to(device)
                n_right += int((model(part.x).argmax(-1) == part.y).sum())
    finally:
        for module, mode in was_training.items():
            module.training = mode
    return n_right / examples.y.numel()
