"""A module -> named weight matrices: the only file that knows layer types."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ww_opt.spectral.findings import Status
from ww_opt.spectral.reading.lora import Adapter, adapters_of, can_merge, merged_weight
from ww_opt.spectral.reading.matrices import (
    LayerWeight,
    layer_name,
    memory_of,
    rows,
    unwrapped,
    version_of,
    wrapper_prefix,
)

__all__ = ["module_rows"]

# by class name along the method resolution order: torch's own, torch's quantised twins, Hugging Face's, subclasses
_KINDS = {
    "Linear": "linear",
    "Bilinear": "bilinear",
    "Embedding": "embedding",
    "EmbeddingBag": "embedding",
    "MultiheadAttention": "attention",
    "LSTM": "lstm",
    "LSTMCell": "lstm",
    "GRU": "gru",
    "GRUCell": "gru",
    "RNN": "rnn",
    "RNNCell": "rnn",
    "Conv1D": "conv1d_hf",
    **{f"Conv{transposed}{n}d": "conv" for n in (1, 2, 3) for transposed in ("", "Transpose")},
}
_N_DIMS = {"linear": (2,), "bilinear": (3,), "embedding": (2,), "conv1d_hf": (2,), "conv": (3, 4, 5)}


@dataclass(frozen=True)
class _Place:
    """A module in the model: its path, and the name that its weights are shown under."""

    path: str
    owner: str
    module: nn.Module
    index: int

    def full(self, key: str) -> str:
        return _join(self.path, key)


@dataclass(frozen=True)
class _Piece:
    """One weight: ``tensor``, the parameter itself, or where it is made of others, ``read``, which computes it."""

    place: _Place
    key: str
    parameters: tuple[str, ...]
    read: Callable[[], Tensor] | None = None
    tensor: Tensor | None = None
    kind: str = ""
    note: str = ""


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def module_rows(model: nn.Module) -> Iterator[LayerWeight]:
    """List the weights of a module; see :func:`ww_opt.spectral.reading.weights.named_weights`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    prefix = wrapper_prefix(parameters)
    names: dict[Hashable, list[str]] = {}
    for name, parameter in parameters.items():
        if _is_matrix(name, parameter):
            names.setdefault(memory_of(parameter), []).append(name)
    seen: set[Hashable] = set()
    for piece in _pieces(model):
        if piece.tensor is not None:
            memory = memory_of(piece.tensor)
            if memory in seen:
                continue
            seen.add(memory)
            others = [name for name in names.get(memory, ()) if name not in piece.parameters]
            if others:
                piece = replace(piece, note=f"tied with {', '.join(others)}")
        yield from _piece_rows(piece, prefix)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it has two or more dimensions; of an uninitialised parameter the name alone can tell."""
    return not name.endswith("bias") if is_lazy(parameter) else parameter.ndim >= 2


def _piece_rows(piece: _Piece, prefix: str) -> Iterator[LayerWeight]:
    place, tensor, status, note = piece.place, piece.tensor, Status.SUCCESS, piece.note
    if tensor is not None and is_lazy(tensor):
        tensor, status, note = None, Status.EMPTY, "not initialised yet: pass one batch through the model first"
    elif piece.read is not None:
        try:
            with torch.no_grad():
                tensor = piece.read()
        except Exception as error:  # foreign code: a parametrisation that fails must not cost the other layers
            status, note = Status.UNREADABLE, f"{note}; {type(error).__name__}: {error}"
    kind = piece.kind or ("parameter" if tensor is None else _kind(place.module, piece.key, tensor))
    row = LayerWeight(
        name=layer_name(unwrapped(place.owner, prefix), piece.key, kind),
        kind=kind,
        parameter="+".join(piece.parameters),
        index=place.index,
        matrices=None,
        status=status,
        note=note,
        version=None if piece.tensor is None else version_of(piece.tensor),
    )
    if tensor is None:
        yield row
    else:
        yield from rows(row, tensor, piece.key, getattr(place.module, "groups", 1) if "conv" in kind else 1)


def _kind(module: nn.Module, key: str, weight: Tensor) -> str:
    name = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in _KINDS), "")
    if isinstance(module, torch.jit.ScriptModule):
        name = str(getattr(module, "original_name", ""))
    kind = _KINDS.get(name, "parameter")
    if kind in _N_DIMS and (key != "weight" or weight.ndim not in _N_DIMS[kind]):
        return "parameter"
    if kind != "conv":
        return kind
    groups = getattr(module, "groups", 1)
    grouping = "" if groups == 1 else "depthwise_" if weight.shape[1] == 1 else "grouped_"
    return f"{grouping}conv{'_transpose' if 'Transpose' in name else ''}{weight.ndim - 2}d"


def _pieces(model: nn.Module) -> Iterator[_Piece]:
    """All weights in module order, each parameter once by name; nothing is read yet."""
    indices = {id(module): index for index, module in enumerate(model.modules())}
    done: set[str] = set()
    for path, module in model.named_modules():
        place = _Place(path, path, module, indices[id(module)])
        adapters = adapters_of(module)
        found = list(_lora_pieces(place, adapters, indices) if adapters else _own_pieces(place))
        # a module inside LoRA or a parametrisation has had its rows with the layer that it serves
        fresh = [piece for piece in found if not done.issuperset(piece.parameters)]
        for piece in found:
            done.update(piece.parameters)
        yield from fresh


def _own_pieces(place: _Place) -> Iterator[_Piece]:
    """The weights that a module holds itself: computed from others, packed, or plain parameters."""
    computed = [*_parametrised(place), *_hooked(place)]
    yield from computed
    yield from _packed(place)
    raw = {name for piece in computed for name in piece.parameters}
    for key, parameter in place.module._parameters.items():
        if parameter is not None and _is_matrix(key, parameter) and place.full(key) not in raw:
            yield _Piece(place, key, (place.full(key),), tensor=parameter)


def _parametrised(place: _Place) -> Iterator[_Piece]:
    """Weights under ``torch.nn.utils.parametrize``."""
    chains = getattr(place.module, "parametrizations", None) if "parametrizations" in place.module._modules else None
    for key, chain in chains.items() if isinstance(chains, nn.ModuleDict) else ():
        if not isinstance(chain, ParametrizationList):
            continue
        names = _matrices(place, f"parametrizations.{key}.", chain.named_parameters())
        note = "effective weight of " + ", ".join(type(step).__name__.strip("_") for step in chain)
        if names:
            yield _Piece(place, key, names, partial(_evaluate, chain), note=note)


def _hooked(place: _Place) -> Iterator[_Piece]:
    """Weights that a hook computes before each forward pass: old weight_norm and spectral_norm, pruning."""
    read: Callable[[], Tensor]
    for hook in place.module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            key, read = hook.name, partial(hook.compute_weight, place.module)
        elif isinstance(hook, SpectralNorm):
            key, read = hook.name, partial(hook.compute_weight, place.module, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod):
            key, read = hook._tensor_name, partial(hook.apply_mask, place.module)
        else:
            continue
        own = {f"{key}_g", f"{key}_v", f"{key}_orig"}
        raw = ((name, value) for name, value in place.module.named_parameters(recurse=False) if name in own)
        names = _matrices(place, "", raw)
        if names:
            yield _Piece(place, key, names, read, note=f"effective weight of {type(hook).__name__}")


def _packed(place: _Place) -> Iterator[_Piece]:
    """Weights of torch's quantised modules, which are packed and no parameters."""
    if not type(place.module).__module__.startswith("torch.ao.nn."):
        return
    weight, get_weight = getattr(place.module, "weight", None), getattr(place.module, "get_weight", None)
    if callable(weight):
        yield _Piece(place, "weight", (place.full("weight"),), weight)
    elif callable(get_weight):
        for key, tensor in get_weight().items():
            yield _Piece(place, key, (place.full(key),), tensor.detach)


def _lora_pieces(place: _Place, adapters: Mapping[str, Adapter], indices: Mapping[int, int]) -> Iterator[_Piece]:
    """The base weight of a layer with LoRA, one product per adapter, and their sum."""
    module = place.module
    inner = getattr(module, "base_layer", None)
    base = place
    if isinstance(inner, nn.Module):
        base = replace(place, path=place.full("base_layer"), module=inner, index=indices[id(inner)])
    sides = {place.full(name) for adapter in adapters.values() for name in adapter.parameters}
    own = [piece for piece in _own_pieces(base) if not sides.issuperset(piece.parameters)]
    yield from own
    for name, adapter in adapters.items():
        shown = replace(place, owner=_join(place.owner, "lora", name))
        names = tuple(place.full(key) for key in adapter.parameters)
        yield _Piece(shown, "weight", names, adapter.product, kind="lora", note=adapter.note)
    weight = next((piece for piece in own if piece.key == "weight"), None)
    if weight is not None and can_merge(module):
        shown = replace(base, owner=_join(place.owner, "merged"))
        read_base = weight.read or partial(cast, Tensor, weight.tensor)
        read = partial(merged_weight, module, read_base, tuple(adapters.values()))
        note = "base weight and LoRA: " + ", ".join(adapters)
        yield _Piece(shown, "weight", (*weight.parameters, *sorted(sides)), read, note=note)


def _matrices(place: _Place, prefix: str, parameters: Iterable[tuple[str, nn.Parameter]]) -> tuple[str, ...]:
    return tuple(place.full(prefix + name) for name, parameter in parameters if parameter.ndim >= 2)


def _evaluate(chain: ParametrizationList) -> Tensor:
    """The weight in evaluation mode: in training mode spectral_norm moves its buffers whenever it is read."""
    modes = [(part, part.training) for part in chain.modules()]
    try:
        for part, _ in modes:
            part.training = False
        # the list itself, not the module's attribute: that one would fill the cache of `parametrize.cached()`
        return cast(Tensor, chain())
    finally:
        for part, mode in modes:
            part.training = mode
