"""A device that is not there: its tensors compute on the CPU, and break every rule that a GPU's would.

``python -m tests.spectral.measuring.pretended`` diagnoses a model on the CPU and there, and prints the differences. It
has a process of its own because torch takes a backend for good.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ww_opt.spectral import diagnose
from ww_opt.spectral.measuring import spectra

MOVES = ("_to_copy", "copy_")


class OnDevice(torch.Tensor):
    """A tensor of the pretended device. NumPy cannot read it, and it does not mix with tensors of the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=torch.device("pretended:0"), **layout)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, dict(kwargs or {}))

    def tolist(self) -> Any:
        return self.inner.tolist()  # a transfer that torch makes itself


class Device(TorchDispatchMode):
    """Sees to what the CPU's tensors ask of the device: factories and moves."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, dict(kwargs or {}))


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    found: list[torch.Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, torch.Tensor) else None, [args, kwargs])
    here = [x for x in found if isinstance(x, OnDevice)]
    if here and name not in MOVES and any(x.ndim and not isinstance(x, OnDevice) for x in found):
        raise RuntimeError(f"{name}: expected all tensors on the same device, but found two devices")
    target = kwargs.pop("device", None)
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, OnDevice) else x, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable:
        return args[0]
    if (target is None and not here) or (target is not None and torch.device(target).type == "cpu"):
        return result
    return tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, result)


def moved(model: nn.Module) -> nn.Module:
    """Put a model's parameters on the pretended device, in place."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.detach().clone()), requires_grad=False)
    return model


def main() -> None:
    """Diagnose on the CPU and on each device in both conventions; print the largest relative difference, then fail."""
    _setup_privateuseone_for_python_backend("pretended")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Conv2d(8, 16, 3), nn.Linear(64, 200), nn.Embedding(300, 40), nn.LSTM(48, 48)
    ).requires_grad_(False)  # what is moved has no gradients, and a row says so
    with torch.no_grad():
        model[0].weight[3, 5] = 4.0  # a trap
        model[2].weight.add_(0.3)  # a shifted mean
        model[3].weight[:, 20:] = 0.0  # lost rank, and so a QR
    real = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    places = [lambda: moved(copy.deepcopy(model))]
    if real is not None and real.type != "pretended":
        places.append(lambda: copy.deepcopy(model).to(real))
    worst = 0.0
    for convention, more, side, place in itertools.product(
        ("default", "weightwatcher"), (False, True), (0, 9999), places
    ):
        spectra._ON_DEVICE = side  # eigenvalues there, and on the CPU
        options: Any = {"convention": convention, "randomize": more, "mp_fit": more, "erg": more}
        with Device():
            there = diagnose(place(), **options).to_frame()
        worst = max(worst, difference(diagnose(model, **options).to_frame(), there))
    print(worst)


def difference(here: pd.DataFrame, there: pd.DataFrame) -> float:
    """Largest difference of two tables, relative, or absolute under 1e-3 (rounding, in a layer without full rank)."""
    numbers = here.select_dtypes("number").columns
    pd.testing.assert_frame_equal(here.drop(columns=numbers), there.drop(columns=numbers))
    a, b = here[numbers].to_numpy(float), there[numbers].to_numpy(float)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    return float(np.nanmax(np.abs(a - b) / np.maximum(np.abs(a), 1e-3)))


if __name__ == "__main__":
    main()
