"""What MNIST-1D owes to its host: the global random generators as they were; and that batch norm can be had."""

import random

import numpy as np
import torch
from torch import nn

from objectives import _mnist1d, mnist1d_cnn


def test_generating_leaves_the_global_generators_alone() -> None:
    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.random()
    random.seed(7)
    np.random.seed(7)
    _mnist1d.load.cache_clear()
    train, test = _mnist1d.load()
    assert (random.random(), np.random.random()) == expected
    assert (len(train), len(test)) == (_mnist1d.N_TRAIN, 1000)
    assert train.x.dtype == torch.float32


def test_batch_norm_follows_each_convolution_on_demand() -> None:
    plain, normed = (mnist1d_cnn.make_task(batch_norm=on).build_model() for on in (False, True))
    assert [sum(isinstance(m, nn.BatchNorm1d) for m in model.modules()) for model in (plain, normed)] == [0, 3]
    assert normed(torch.zeros(2, _mnist1d.LENGTH)).shape == (2, _mnist1d.N_CLASSES)
