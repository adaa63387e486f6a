"""Handwritten digits of scikit-learn (8 x 8 pixels), a multilayer perceptron. About two seconds a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from optuna.distributions import FloatDistribution
from torch.optim import SGD, Optimizer

from objectives._classification import Examples, Regime, Source, check_at_least, classification_task
from objectives._mlp import mlp
from ww_opt.search.space import LayerwiseSpace
from ww_opt.training.task import Task

N_STEPS = 900
INTERVAL_STEPS = 75
SPACE = LayerwiseSpace(
    lr=FloatDistribution(1e-4, 1e-1, log=True),
    weight_decay=FloatDistribution(1e-6, 1e-2, log=True),
    dropout=FloatDistribution(0.0, 0.5),
)

_N_PIXELS, _N_CLASSES, _N_TRAIN = 64, 10, 1347


def make_task(
    *,
    label_noise: float = 0.0,
    n_train: int | None = None,
    batch_size: int = 64,
    width: int = 128,
    optimizer: Callable[..., Optimizer] = partial(SGD, lr=0.05, momentum=0.9),
    seed: int = 0,
) -> Task:
    """Build the task: 1347 digits to train on, 450 sealed.

    Args:
        label_noise: share of the training labels replaced by a wrong class, in [0, 1].
        n_train: training examples to keep; ``None``: all 1347.
        batch_size: examples in a batch.
        width: units of the last two hidden layers; the first has twice as many.
        optimizer: called with the parameter groups.
        seed: draws the kept examples and the wrong labels.

    Raises:
        ValueError: an option is out of range.
    """
    check_at_least("width", width, 1)
    source = Source("digits", _load, _N_TRAIN, _N_CLASSES)
    regime = Regime(label_noise, n_train, batch_size, seed)
    return classification_task(source, partial(mlp, _N_PIXELS, width, _N_CLASSES), regime, optimizer)


@cache
def _load() -> tuple[Examples, Examples]:
    from sklearn.datasets import load_digits  # slow to import

    x, y = load_digits(return_X_y=True)
    examples = Examples(torch.as_tensor(x / 16.0, dtype=torch.float32), torch.as_tensor(y, dtype=torch.int64))
    # shuffled: the file is ordered by writer
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    return examples.take(order[:_N_TRAIN]), examples.take(order[_N_TRAIN:])
