"""State dicts -> named weight matrices: what a layer is, told from names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ww_opt.spectral.findings import Status
from ww_opt.spectral.reading.lora import Adapter
from ww_opt.spectral.reading.matrices import (
    ATTENTION,
    LayerWeight,
    layer_name,
    memory_of,
    rows,
    unwrapped,
    version_of,
    wrapper_prefix,
)

__all__ = ["state_dict_in", "state_rows"]

_NESTED = ("state_dict", "model", "model_state_dict", "net", "params")
_ADAPTER = re.compile(r"(?:(?P<owner>.*)\.)?lora_(?:embedding_)?(?P<side>[AB])(?:\.(?P<name>.+))?")
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(?P<layer>_l\d+(_reverse)?)?")
_PACKED = re.compile(r"(^|\.)_packed_params\._packed_(params|weight)$")
_PARAMETRISED = re.compile(r"(?:(?P<owner>.*)\.)?parametrizations\.(?P<leaf>\w+)\.original(?P<part>[01]?)")
_OLD_STYLE = re.compile(r"(?:(?P<owner>.*)\.)?(?P<leaf>weight\w*)_(?P<part>g|v|orig)")
_EMBEDDING = re.compile(r"(^|\.)(wte|wpe)(\.|$)|emb")
_RAW = "raw weight: its parametrisation is not in a state dict"


def state_dict_in(mapping: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The state dict itself, or the one that a checkpoint holds under ``state_dict``, ``model`` or the like.

    Raises:
        ValueError: there are no tensors in it; the message lists its keys.
    """
    for key in _NESTED:
        inner = mapping.get(key)
        if isinstance(inner, Mapping) and _has_tensors(inner):
            return inner
    if _has_tensors(mapping):
        return mapping
    raise ValueError(
        f"A state dict must map names to tensors, alone or under one of {', '.join(_NESTED)}, but {what} holds only "
        f"{[str(key) for key in mapping][:8]}: pass `model.state_dict()`."
    )


def _has_tensors(mapping: Mapping[str, Any]) -> bool:
    return any(_tensor(value) is not None for value in mapping.values())


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, tuple) and value:  # quantised modules pack (weight, bias)
        value = value[0]
    return value if isinstance(value, Tensor) else None


@dataclass(frozen=True, eq=False)
class _Entry:
    """One weight of a state dict and the keys that it is made of."""

    owner: str
    leaf: str
    keys: tuple[str, ...]
    tensor: Tensor
    note: str = ""
    kind: str = ""


def state_rows(state: Mapping[str, Any], *, is_transient: bool = False) -> Iterator[LayerWeight]:
    """List the weights of a state dict; kinds are told from names and shapes.

    A convolution's groups and direction are not in its shape: it is taken as one group, (out, in, *kernel).
    Buffers of two or more dimensions cannot be told from weights and are listed too. Values that are no tensors are
    passed over. Ties are looked for in a ``dict`` alone: another mapping may read from disk at every access.

    Args:
        state: names to tensors.
        is_transient: the tensors come from a file and are gone after the reading, so they have no version.
    """
    names = [key for key in state if isinstance(key, str)]
    prefix = wrapper_prefix(names)
    ties = _ties(state, names) if isinstance(state, dict) else {}
    done: set[str] = set()
    for index, key in enumerate(names):
        tensor = None if key in done else _tensor(state[key])
        if tensor is None:
            continue
        entry = _lora(key, state) or _computed(key, tensor, state) or _plain(key, tensor)
        done.update(entry.keys, ties.get(key, ()))
        if entry.tensor.ndim < 2:
            continue
        kind = entry.kind or _kind(entry, state)
        tie = f"tied with {', '.join(ties[key])}" if key in ties else ""
        guess = f"read without its module: taken as {kind} with one group" if kind.startswith("conv") else ""
        row = LayerWeight(
            name=layer_name(unwrapped(entry.owner, prefix), entry.leaf, kind),
            kind=kind,
            parameter="+".join(entry.keys),
            index=index,
            matrices=None,
            status=Status.EMPTY,
            note="; ".join(text for text in (entry.note, tie, guess) if text),
            version=version_of(tensor) if entry.tensor is tensor and not is_transient else None,
        )
        yield from rows(row, entry.tensor, entry.leaf)


def _ties(state: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """First name -> the later names of the same memory."""
    places: dict[Hashable, list[str]] = {}
    for name in names:
        tensor = _tensor(state[name])
        if tensor is not None and tensor.ndim >= 2:
            places.setdefault(memory_of(tensor), []).append(name)
    return {first: tuple(others) for first, *others in places.values() if others}


def _plain(key: str, tensor: Tensor) -> _Entry:
    owner, _, leaf = _PACKED.sub(r"\1weight", key).rpartition(".")
    owner = owner.removesuffix("base_layer").removesuffix(".") if f".{owner}".endswith(".base_layer") else owner
    return _Entry(owner, leaf, (key,), tensor)


def _lora(key: str, state: Mapping[str, Any]) -> _Entry | None:
    """The product of an adapter's two sides; the merged weight needs a scaling that no state dict has."""
    found = _ADAPTER.fullmatch(key.removesuffix(".weight"))
    if not found:
        return None
    side = found.start("side")
    keys = tuple(f"{key[:side]}{letter}{key[side + 1 :]}" for letter in "AB")
    a, b = (_tensor(state.get(name)) for name in keys)
    if a is None or b is None:
        return None
    adapter = Adapter(a, b, (keys[0], keys[1]), scaling=None)
    owner = ".".join(part for part in (found["owner"], "lora", found["name"] or "default") if part)
    return _Entry(owner, "weight", keys, adapter.product(), adapter.note, kind="lora")


def _computed(key: str, tensor: Tensor, state: Mapping[str, Any]) -> _Entry | None:
    """The effective weight of weight_norm and of pruning; the raw one of other parametrisations."""
    found = _PARAMETRISED.fullmatch(key) or _OLD_STYLE.fullmatch(key)
    if not found:
        return None
    owner, leaf, stem = found["owner"] or "", found["leaf"], key[: found.start("part")]
    for keys in ((f"{stem}0", f"{stem}1"), (f"{stem}g", f"{stem}v")):
        if key in keys:
            g, v = (_tensor(state.get(name)) for name in keys)
            if g is None or v is None or not _is_size_of(g, v):
                return None
            return _Entry(owner, leaf, keys, _weight_norm(g, v), "effective weight of WeightNorm")
    mask = _tensor(state.get(f"{stem}mask"))
    if found["part"] == "orig" and mask is not None:
        return _Entry(owner, leaf, (key, f"{stem}mask"), tensor * mask, "effective weight of pruning")
    return _Entry(owner, leaf, (key,), tensor, _RAW)


def _is_size_of(g: Tensor, v: Tensor) -> bool:
    """Whether g has one entry per row, column ... of v, or one in all, as weight_norm makes it."""
    if g.ndim == 0:
        return True
    wide = [axis for axis, length in enumerate(g.shape) if length != 1]
    return g.ndim == v.ndim and len(wide) <= 1 and all(g.shape[axis] == v.shape[axis] for axis in wide)


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Weight g v / |v| (Salimans and Kingma 2016, eq. 2), norms over the dimensions along which g has one entry."""
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    norms: Tensor = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
    return v * (g / norms)


def _kind(entry: _Entry, state: Mapping[str, Any]) -> str:
    n_dims = entry.tensor.ndim
    if entry.leaf in ATTENTION or entry.leaf in ("bias_k", "bias_v"):
        return "attention"
    recurrent = _RECURRENT.fullmatch(entry.leaf)
    if recurrent and n_dims == 2:
        return _recurrent_kind(entry, recurrent["layer"] or "", state)
    if entry.leaf != "weight" or n_dims > 5:
        return "parameter"
    if n_dims > 2:
        return f"conv{n_dims - 2}d"
    return "embedding" if _EMBEDDING.search(entry.owner.lower()) else "linear"


def _recurrent_kind(entry: _Entry, layer: str, state: Mapping[str, Any]) -> str:
    """The number of gates, rows over hidden units, tells which it is."""
    stem = f"{entry.owner}." if entry.owner else ""
    if f"{stem}weight_hr{layer}" in state:
        return "lstm"  # the only one that has projections
    hidden = _tensor(state.get(f"{stem}weight_hh{layer}"))
    if hidden is None or hidden.ndim != 2 or hidden.shape[1] == 0:
        return "parameter"
    n_gates, rest = divmod(entry.tensor.shape[0], hidden.shape[1])
    return "parameter" if rest else {4: "lstm", 3: "gru", 1: "rnn"}.get(n_gates, "parameter")
