"""A task with many tuned layers: a residual perceptron of 26 layers on MNIST-1D, 78 parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from objectives import _mnist1d
from objectives._classification import Regime, Source, classification_task
from ww_opt.training.task import Task

__all__ = ["make_task"]

N_BLOCKS = 24


class _Block(nn.Module):
    """``x + dropout(relu(linear(norm(x))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.dropout(torch.relu(self.linear(self.norm(x))))
        return result


def _build(width: int) -> nn.Module:
    entry = nn.Sequential(nn.Linear(_mnist1d.LENGTH, width), nn.ReLU(), nn.Dropout(0.0))
    blocks = nn.Sequential(*(_Block(width) for _ in range(N_BLOCKS)))
    return nn.Sequential(entry, blocks, nn.LayerNorm(width), nn.Linear(width, _mnist1d.N_CLASSES))


def make_task(
    *,
    label_noise: float = 0.0,
    n_train: int | None = None,
    batch_size: int = 64,
    width: int = 48,
    optimizer: Callable[..., Optimizer] = partial(AdamW, lr=1e-3),
    seed: int = 0,
) -> Task:
    """Build the task; options as in ``objectives.mnist1d_mlp``."""
    source = Source("deep", _mnist1d.load, _mnist1d.N_TRAIN, _mnist1d.N_CLASSES)
    regime = Regime(label_noise, n_train, batch_size, seed)
    return classification_task(source, partial(_build, width), regime, optimizer)
