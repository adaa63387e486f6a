"""State dicts -> named weight matrices: what a layer is, told from names and shapes, and here and there entries."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ww_opt.spectral.findings import Role, Status
from ww_opt.spectral.reading.lora import Adapter
from ww_opt.spectral.reading.matrices import (
    ATTENTION,
    LayerWeight,
    layer_name,
    memory_of,
    numbers,
    rows,
    unwrapped,
    version_of,
    wrapper_prefix,
)
from ww_opt.spectral.reading.names import is_adapter_part, is_embedding
from ww_opt.spectral.reading.norms import Normed, holder
from ww_opt.spectral.reading.roles import Facts, Verdict, role_of

__all__ = ["state_rows", "tensor_in"]

_ADAPTER = re.compile(r"(?:(?P<owner>.*)\.)?lora_(?:embedding_)?(?P<side>[AB])(?:\.(?P<name>.+))?")
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(?P<layer>_l\d+(_reverse)?)?")
_PACKED = re.compile(r"(^|\.)_packed_params\._packed_(params|weight)$")
_PARAMETRISED = re.compile(r"(?:(?P<owner>.*)\.)?parametrizations\.(?P<leaf>\w+)\.original(?P<part>[01]?)")
_OLD_STYLE = re.compile(r"(?:(?P<owner>.*)\.)?(?P<leaf>weight\w*)_(?P<part>g|v|orig)")
_KERNEL = 31
"""Longest side of a usual kernel. A third dimension far above it is no kernel, but columns of stacked matrices."""
_RAW = "raw weight: its parametrisation is not in a state dict"


def tensor_in(value: Any) -> Tensor | None:
    """The tensor that a value of a state dict is, or packs together with a bias; ``None``: it is none."""
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

    @property
    def stem(self) -> str:
        """What the first key has before the leaf, wrappers and all."""
        return self.keys[0].removesuffix(self.leaf)


def state_rows(state: Mapping[str, Any], normed: Normed, *, is_transient: bool = False) -> Iterator[LayerWeight]:
    """List the weights of a state dict; kinds are told from names and shapes.

    A convolution's groups and direction are not in its shape: it is taken as one group, (out, in, *kernel).
    Buffers of two or more dimensions are listed too: what is no layer's ``weight`` has another role. Values that are no
    tensors are passed over. Ties are looked for in a ``dict`` alone, since another mapping may read from disk at every
    access; one that knows of ties says so by an attribute ``ties``.

    Args:
        state: names to tensors.
        normed: whether a norm follows what a module holds.
        is_transient: the tensors come from a file and are gone after the reading, so they have no version.
    """
    names = [key for key in state if isinstance(key, str)]
    prefix = wrapper_prefix(names)
    ties = _ties(state, names) if isinstance(state, dict) else getattr(state, "ties", {})
    adapted = {name.split(".lora_")[0] for name in names if ".lora_" in name}
    done: set[str] = set()
    for index, key in enumerate(names):
        tensor = None if key in done else tensor_in(state[key])
        if tensor is None:
            continue
        entry = _lora(key, state) or _computed(key, tensor, state) or _plain(key, tensor)
        done.update(entry.keys, ties.get(key, ()))
        if entry.tensor.ndim < 2:
            continue
        bias = tensor_in(state.get(f"{entry.stem}bias")) if entry.leaf == "weight" else None
        kind = entry.kind or _kind(entry, bias, ties.get(key, ()), state)
        tie = f"tied with {', '.join(ties[key])}" if key in ties else ""
        guess = f"read without its module: taken as {kind} with one group" if kind.startswith("conv") else ""
        facts = Facts(
            path=unwrapped(entry.owner, prefix),
            leaf=entry.leaf,
            shape=tuple(entry.tensor.shape),
            bias=None if bias is None else tuple(bias.shape),
            ties=ties.get(key, ()),
        )
        verdict = _verdict(entry, kind, facts, adapted, state)
        row = LayerWeight(
            name=layer_name(facts.path, entry.leaf, kind),
            kind=kind,
            parameter="+".join(entry.keys),
            index=index,
            matrices=None,
            status=Status.EMPTY,
            role=verdict.role,
            facts=facts,
            note="; ".join(text for text in (entry.note, tie, guess, verdict.note) if text),
            version=version_of(tensor) if entry.tensor is tensor and not is_transient else None,
            normed=normed(holder(entry.keys[0])),
        )
        yield from rows(row, entry.tensor, entry.leaf)


def _ties(state: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """First name -> the later names of the same memory."""
    places: dict[Hashable, list[str]] = {}
    for name in names:
        tensor = tensor_in(state[name])
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
    a, b = (tensor_in(state.get(name)) for name in keys)
    if a is None or b is None:
        return None
    adapter = Adapter(a, b, (keys[0], keys[1]), scaling=None)
    owner = ".".join(part for part in (found["owner"], "lora", found["name"] or "default") if part)
    return _Entry(owner, "weight", keys, adapter.product(), adapter.note, kind="lora")


def _computed(key: str, tensor: Tensor, state: Mapping[str, Any]) -> _Entry | None:
    """The effective weight of weight_norm, spectral_norm and pruning; the raw one of other parametrisations."""
    found = _PARAMETRISED.fullmatch(key) or _OLD_STYLE.fullmatch(key)
    if not found:
        return None
    owner, leaf, stem = found["owner"] or "", found["leaf"], key[: found.start("part")]
    for keys in ((f"{stem}0", f"{stem}1"), (f"{stem}g", f"{stem}v")):
        if key in keys:
            g, v = (tensor_in(state.get(name)) for name in keys)
            if g is None or v is None or not _is_size_of(g, v):
                return None
            return _Entry(owner, leaf, keys, _weight_norm(g, v), "effective weight of WeightNorm")
    spectral = (f"{owner}.".lstrip(".") + f"parametrizations.{leaf}.0._") if not found["part"] else stem
    u, v = (tensor_in(state.get(f"{spectral}{name}")) for name in "uv")
    is_only = f"{spectral.removesuffix('0._')}1._u" not in state
    if u is not None and v is not None and u.ndim == v.ndim == 1 and is_only:
        sides = (f"{spectral}u", f"{spectral}v")
        return _Entry(owner, leaf, (key, *sides), _spectral_norm(tensor, u, v), "effective weight of SpectralNorm")
    mask = tensor_in(state.get(f"{stem}mask"))
    if found["part"] == "orig" and mask is not None:
        return _Entry(owner, leaf, (key, f"{stem}mask"), tensor * mask, "effective weight of pruning")
    return _Entry(owner, leaf, (key,), tensor, _RAW)


def _spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Weight W / (u^T W v) (Miyato et al. 2018, eq. 8), W turned such that its rows are those that u has entries of."""
    for axis, length in enumerate(weight.shape):
        if length == len(u) and weight.numel() == length * len(v):
            return weight / torch.vdot(u, torch.mv(weight.movedim(axis, 0).flatten(1), v))
    return weight


def _is_size_of(g: Tensor, v: Tensor) -> bool:
    """Whether g has one entry per row, column ... of v, or one in all, as weight_norm makes it."""
    if g.ndim == 0:
        return True
    wide = [axis for axis, length in enumerate(g.shape) if length != 1]
    return g.ndim == v.ndim and len(wide) <= 1 and all(g.shape[axis] == v.shape[axis] for axis in wide)


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Weight g v / |v| (Salimans and Kingma 2016, eq. 2), norms over the dimensions along which g has one entry."""
    dim = next((axis for axis, length in enumerate(g.shape) if length != 1), -1)
    weight: Tensor = torch._weight_norm(v, g, dim)  # torch's own, so that a file gives the module's bits
    return weight


def _kind(entry: _Entry, bias: Tensor | None, ties: Sequence[str], state: Mapping[str, Any]) -> str:
    shape = entry.tensor.shape
    if entry.leaf in ATTENTION or entry.leaf in ("bias_k", "bias_v"):
        return "attention"
    recurrent = _RECURRENT.fullmatch(entry.leaf)
    if recurrent and len(shape) == 2:
        return _recurrent_kind(entry, recurrent["layer"] or "", state)
    if entry.leaf != "weight" or len(shape) > 5:
        return "parameter"
    if len(shape) == 2:
        owners = (entry.owner, *(name.rpartition(".")[0] for name in ties))
        return "embedding" if bias is None and any(map(is_embedding, owners)) else "linear"
    return f"conv{len(shape) - 2}d" if _is_kernel(entry, shape, bias) else "parameter"


def _is_kernel(entry: _Entry, shape: Sequence[int], bias: Tensor | None) -> bool:
    """Whether the last sides are those of a kernel, and the weight no stack of matrices and no table or mask."""
    if "conv" in entry.owner.lower() or "WeightNorm" in entry.note or (len(shape) == 3 and shape[1] == 1):
        return True
    if len(shape) == 3:
        has_own_bias = bias is not None and tuple(bias.shape) == tuple(shape[:1])
        return shape[2] <= _KERNEL or has_own_bias
    return max(shape[2:]) <= 2 * _KERNEL or max(shape[:2]) > 1


def _verdict(entry: _Entry, kind: str, facts: Facts, adapted: set[str], state: Mapping[str, Any]) -> Verdict:
    """What an entry is, by its names first; then by its entries, for masks are patterns."""
    key = entry.keys[0]
    if ".original_module." in key and any(f"{key.split('.original_module.')[0]}.modules_to_save." in k for k in state):
        return Verdict(Role.BASE, "not in use: the copy in modules_to_save is")
    if kind != "lora" and is_adapter_part(f"{facts.path}.{facts.leaf}"):
        return Verdict(Role.ADAPTER)
    if ".base_layer." in f".{key}" or (entry.leaf == "weight" and entry.stem.removesuffix(".") in adapted):
        return Verdict(Role.UNSURE, "beneath adapters whose scaling is not in a state dict: give the merged model")
    found = role_of(kind, facts)
    if found.role is not Role.HIDDEN:
        return found
    if entry.note == _RAW:
        return Verdict(Role.UNSURE)
    if kind == "conv1d" and facts.shape[2] > _KERNEL and facts.shape[1] > 1 and "conv" not in facts.path.lower():
        return Verdict(Role.UNSURE, f"a kernel of {facts.shape[2]} positions, or stacked matrices")
    if _is_pattern(entry.tensor):
        return Verdict(Role.TABLE, "two values at most: a mask or the like")
    return found


def _is_pattern(tensor: Tensor) -> bool:
    """Whether it holds one value or two, as masks do; zeros alone are what many layers start from."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided or tensor.numel() < 4:
        return False
    flat = numbers(tensor.detach())[0].reshape(-1)
    for part in (flat[:: max(1, flat.numel() // 256)], flat):  # a few of them tell for nearly all
        first = part[0]
        other = part[part != first]
        is_zero, is_varied = (
            len(other) == 0 and bool(first == 0),
            len(other) > 0 and not bool((other == other[0]).all()),
        )
        if bool(first.isnan()) or is_zero or is_varied:
            return False
    return True


def _recurrent_kind(entry: _Entry, layer: str, state: Mapping[str, Any]) -> str:
    """The number of gates, rows over hidden units, tells which it is."""
    stem = f"{entry.owner}." if entry.owner else ""
    if f"{stem}weight_hr{layer}" in state:
        return "lstm"  # the only one that has projections
    hidden = tensor_in(state.get(f"{stem}weight_hh{layer}"))
    if hidden is None or hidden.ndim != 2 or hidden.shape[1] == 0:
        return "parameter"
    n_gates, rest = divmod(entry.tensor.shape[0], hidden.shape[1])
    return "parameter" if rest else {4: "lstm", 3: "gru", 1: "rnn"}.get(n_gates, "parameter")
