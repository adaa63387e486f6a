"""MNIST-1D, a convolutional network of three layers, with or without batch norm. About four seconds a run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from optuna.distributions import FloatDistribution
from torch import nn
from torch.optim import SGD, Optimizer

from objectives import _mnist1d
from objectives._classification import Regime, Source, classification_task
from ww_opt.search.space import LayerwiseSpace
from ww_opt.training.task import Task

N_STEPS = 780
INTERVAL_STEPS = 65
SPACE = LayerwiseSpace(
    lr=FloatDistribution(1e-4, 1e-1, log=True),
    weight_decay=FloatDistribution(1e-6, 1e-2, log=True),
    dropout=FloatDistribution(0.0, 0.5),
)

_CHANNELS = 64
_KERNELS = (5, 3, 3)
_STRIDE = 2


def make_task(
    *,
    label_noise: float = 0.0,
    n_train: int | None = None,
    batch_size: int = 64,
    batch_norm: bool = False,
    optimizer: Callable[..., Optimizer] = partial(SGD, lr=0.1, momentum=0.9),
    seed: int = 0,
) -> Task:
    """Build the task: 4000 signals to train on, 1000 sealed.

    Args:
        label_noise: share of the training labels replaced by a wrong class, in [0, 1].
        n_train: training examples to keep; ``None``: all 4000.
        batch_size: examples in a batch.
        batch_norm: whether a batch norm follows each convolution.
        optimizer: called with the parameter groups.
        seed: draws the kept examples and the wrong labels.

    Raises:
        ValueError: an option is out of range.
    """
    source = Source("mnist1d_cnn", _mnist1d.load, _mnist1d.N_TRAIN, _mnist1d.N_CLASSES)
    return classification_task(
        source, partial(_cnn, batch_norm), Regime(label_noise, n_train, batch_size, seed), optimizer
    )


def _cnn(batch_norm: bool) -> nn.Module:
    """Signals [n, 40] -> logits [n, 10]; three convolutions that halve the length, 40 to 5, and dropout (off)."""
    modules: OrderedDict[str, nn.Module] = OrderedDict(signal=nn.Unflatten(1, (1, _mnist1d.LENGTH)))
    n_in = 1
    for number, size in enumerate(_KERNELS, start=1):
        modules[f"conv{number}"] = nn.Conv1d(n_in, _CHANNELS, size, stride=_STRIDE, padding=size // 2)
        if batch_norm:
            modules[f"norm{number}"] = nn.BatchNorm1d(_CHANNELS)
        modules[f"relu{number}"] = nn.ReLU()
        modules[f"dropout{number}"] = nn.Dropout(0.0)
        n_in = _CHANNELS
    modules["flatten"] = nn.Flatten()
    modules["output"] = nn.Linear(_CHANNELS * _mnist1d.LENGTH // _STRIDE ** len(_KERNELS), _mnist1d.N_CLASSES)
    return nn.Sequential(modules)
