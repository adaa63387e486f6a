"""MNIST-1D: ten classes of noisy 40-sample signals, generated here (no download; two to three seconds a process).

Greydanus and Kobak, "Scaling down deep learning with MNIST-1D", ICML 2024.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import torch

from objectives._classification import Examples

LENGTH = 40
N_CLASSES = 10
N_TRAIN = 4000


@cache
def load() -> tuple[Examples, Examples]:
    """Return 4000 training and 1000 test signals, x [n, 40], the same as in the published data set's recipe."""
    from mnist1d.data import get_dataset_args, make_dataset  # slow to import: it draws

    states = random.getstate(), np.random.get_state()
    try:
        data = make_dataset(get_dataset_args())  # seeds Python's and numpy's global generators
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return _examples(data["x"], data["y"]), _examples(data["x_test"], data["y_test"])


def _examples(x: np.ndarray, y: np.ndarray) -> Examples:
    return Examples(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.int64))
