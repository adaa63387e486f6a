"""Model, state dict or checkpoint file -> named weight matrices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from ww_opt.spectral.reading.checkpoints import open_checkpoint
from ww_opt.spectral.reading.containers import state_dict_in
from ww_opt.spectral.reading.matrices import LayerWeight
from ww_opt.spectral.reading.modules import module_rows
from ww_opt.spectral.reading.norms import norms_of_module, norms_of_state
from ww_opt.spectral.reading.state_dicts import state_rows

Source: TypeAlias = "nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]"

__all__ = ["LayerWeight", "Reading", "Source", "named_weights", "read"]


def named_weights(source: Source) -> Iterator[LayerWeight]:
    """List every weight of two or more dimensions, lazily and in module order: its matrices, or why there are none.

    * Tied weights come once, at their first place; a note names the others.
    * A parametrised or pruned weight (weight_norm, spectral_norm, ...) comes as the effective weight.
    * A layer with LoRA gives its base weight, one product per adapter (``<name>.lora.<adapter>``) and the sum of them
      (``<name>.merged``); the sum is left out for DoRA, where adapters are merged already, and in state dicts.
    * Buffers are no weights; packed quantised weights are. A file does not tell buffers from weights: there, what is no
      layer's ``weight`` is listed with another role.

    Reading changes nothing in the source and never runs a forward pass of the model. NaN and infinity are passed on.

    Args:
        source: a module; a mapping from names to tensors, or a checkpoint that holds one under whatever key; or a path
            to a file of torch or safetensors, or to a folder of such shards.

    Raises:
        TypeError: the source is none of these.
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, or holds several networks, or nothing in it, or in the model, has two or
            more dimensions (this one is raised by the iterator).
        ImportError: a safetensors file, and the package `safetensors` is not installed.
    """
    return read(source).weights


@dataclass(frozen=True)
class Reading:
    """The weights of a source, and the keys, joined by dots, under which a checkpoint holds them; empty: none."""

    weights: Iterator[LayerWeight]
    where: str = ""


def read(source: Source) -> Reading:
    """As :func:`named_weights`, and say where in a checkpoint the weights were found."""
    if isinstance(source, nn.Module):
        rows = module_rows(source, norms_of_module(source))
        return Reading(_at_least_one(rows, f"the model {type(source).__name__}"))
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        state, where = open_checkpoint(path)
        rows = state_rows(state, norms_of_state(state), is_transient=True)
        return Reading(_at_least_one(rows, f"the checkpoint {path}"), where)
    if isinstance(source, Mapping):
        state, where = state_dict_in(source, "the mapping")
        return Reading(_at_least_one(state_rows(state, norms_of_state(state)), "the mapping"), where)
    raise TypeError(
        f"Weights are read from a torch module, a state dict or a path, but got {type(source).__name__}: "
        "pass the model itself, `model.state_dict()` or the file it was saved to."
    )


def _at_least_one(found: Iterator[LayerWeight], what: str) -> Iterator[LayerWeight]:
    is_empty = True
    for row in found:
        is_empty = False
        yield row
    if is_empty:
        raise ValueError(
            f"A diagnosis needs at least one weight of 2 or more dimensions, but {what} has none: pass what holds "
            "the layers, such as the whole model or its state dict."
        )
