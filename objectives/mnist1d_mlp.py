"""MNIST-1D, a multilayer perceptron: it overfits, which is the point. About three seconds a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from optuna.distributions import FloatDistribution
from torch.optim import SGD, Optimizer

from objectives import _mnist1d
from objectives._classification import Regime, Source, check_at_least, classification_task
from objectives._mlp import mlp
from ww_opt.search.space import LayerwiseSpace
from ww_opt.training.task import Task

N_STEPS = 1800
INTERVAL_STEPS = 150
SPACE = LayerwiseSpace(
    lr=FloatDistribution(1e-4, 1e-1, log=True),
    weight_decay=FloatDistribution(1e-6, 1e-2, log=True),
    dropout=FloatDistribution(0.0, 0.5),
)


def make_task(
    *,
    label_noise: float = 0.0,
    n_train: int | None = None,
    batch_size: int = 64,
    width: int = 128,
    optimizer: Callable[..., Optimizer] = partial(SGD, lr=0.05, momentum=0.9),
    seed: int = 0,
) -> Task:
    """Build the task: 4000 signals to train on, 1000 sealed.

    Args:
        label_noise: share of the training labels replaced by a wrong class, in [0, 1].
        n_train: training examples to keep; ``None``: all 4000.
        batch_size: examples in a batch.
        width: units of the last two hidden layers; the first has twice as many.
        optimizer: called with the parameter groups.
        seed: draws the kept examples and the wrong labels.

    Raises:
        ValueError: an option is out of range.
    """
    check_at_least("width", width, 1)
    source = Source("mnist1d_mlp", _mnist1d.load, _mnist1d.N_TRAIN, _mnist1d.N_CLASSES)
    regime = Regime(label_noise, n_train, batch_size, seed)
    return classification_task(source, partial(mlp, _mnist1d.LENGTH, width, _mnist1d.N_CLASSES), regime, optimizer)
