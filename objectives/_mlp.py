"""The multilayer perceptron of `digits` and `mnist1d_mlp`."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn


def mlp(n_inputs: int, width: int, n_classes: int) -> nn.Module:
    """Build ``n_inputs - 2 width - width - width - n_classes`` with ReLU; dropout (off) behind hidden layers."""
    sizes = (n_inputs, 2 * width, width, width)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (n_in, n_out) in enumerate(pairwise(sizes), start=1):
        modules[f"hidden{number}"] = nn.Linear(n_in, n_out)
        modules[f"relu{number}"] = nn.ReLU()
        modules[f"dropout{number}"] = nn.Dropout(0.0)
    modules["output"] = nn.Linear(width, n_classes)
    return nn.Sequential(modules)
