"""A source -> names, shapes and dtypes of all its tensors, without reading their numbers where the format allows it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ww_opt.spectral.reading.checkpoints import open_checkpoint
from ww_opt.spectral.reading.containers import state_dict_in
from ww_opt.spectral.reading.matrices import numbers, unwrapped, wrapper_prefix
from ww_opt.spectral.reading.state_dicts import tensor_in
from ww_opt.spectral.reading.weights import Source

__all__ = ["Header", "Headers", "headers", "is_vector"]


@dataclass(frozen=True)
class Header:
    """One tensor: its key in the state dict, its shape and dtype (as torch names it, without ``torch.``)."""

    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Headers:
    """The tensors of a source by name, wrappers left out.

    ``wrapper`` is the run of ``module.`` and ``_orig_mod.`` with which all keys begin, ``where`` the keys under which a
    checkpoint holds them, ``state`` what their numbers are read from. Scalars and what is no tensor are passed over.
    """

    entries: Mapping[str, Header]
    wrapper: str
    where: str
    state: Mapping[str, Any]

    def vector(self, name: str) -> Tensor | None:
        """The numbers of a vector; ``None`` for what is none, or holds no floating-point numbers."""
        if not is_vector(self.entries[name].shape):
            return None
        tensor = tensor_in(self.state[self.entries[name].key])
        if tensor is None or is_lazy(tensor) or tensor.is_meta:
            return None
        plain = numbers(tensor.detach())[0]
        return plain.flatten() if plain.is_floating_point() else None


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether all dimensions but one are 1: biases, norms and their running statistics, a layer with one output."""
    return math.prod(shape) == max(shape, default=0)


def headers(source: Source) -> Headers:
    """Read names, shapes and dtypes; of safetensors from the header alone.

    Raises:
        TypeError, FileNotFoundError, ValueError, ImportError: as :func:`ww_opt.spectral.reading.weights.read`.
    """
    state: Mapping[str, Any]
    where = ""
    if isinstance(source, nn.Module):
        state = source.state_dict()
    elif isinstance(source, str | os.PathLike):
        state, where = open_checkpoint(os.fspath(source))
    elif isinstance(source, Mapping):
        state, where = state_dict_in(source, "the mapping")
    else:
        raise TypeError(
            f"Models are compared as torch modules, state dicts or paths, but got {type(source).__name__}: pass the "
            "model itself, `model.state_dict()` or the file it was saved to."
        )
    keys = [key for key in state if isinstance(key, str)]
    wrapper = wrapper_prefix(keys)
    found = (_header(key, state) for key in keys)
    entries = {unwrapped(own.key, wrapper): own for own in found if own is not None and own.shape}
    return Headers(entries, wrapper, where, state)


def _header(key: str, state: Mapping[str, Any]) -> Header | None:
    told = getattr(state, "header", None)
    if told is not None:
        shape, dtype = told(key)
        return Header(key, shape, dtype)
    tensor = tensor_in(state[key])
    if tensor is None or is_lazy(tensor):
        return None
    return Header(key, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
