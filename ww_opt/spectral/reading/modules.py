"""A module -> named weight matrices, each once: its own, computed ones, packed ones, and those of adapters."""

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

from ww_opt.spectral.findings import Role, Status
from ww_opt.spectral.reading.kinds import kind_of
from ww_opt.spectral.reading.lora import (
    Adapter,
    active_among,
    adapters_of,
    can_merge,
    has_other_adapter,
    is_base_used,
    merged_weight,
    saved_copies,
)
from ww_opt.spectral.reading.matrices import (
    LayerWeight,
    layer_name,
    memory_of,
    rows,
    unwrapped,
    version_of,
    wrapper_prefix,
)
from ww_opt.spectral.reading.norms import Normed, holder
from ww_opt.spectral.reading.roles import Facts, Verdict, role_of

__all__ = ["module_rows"]

_TRAINED = "_ww_opt_trained"  # mark of what was trained before it was frozen (``ww_opt.FreezeSchedule``)


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
    """One weight: ``tensor``, the parameter itself, or where it is made of others, ``read``, which computes it.

    ``verdict`` is what its surroundings say of it, ``trained_by`` the parameters that train it beside its own.
    """

    place: _Place
    key: str
    parameters: tuple[str, ...]
    read: Callable[[], Tensor] | None = None
    tensor: Tensor | None = None
    kind: str = ""
    note: str = ""
    verdict: Verdict | None = None
    trained_by: tuple[str, ...] = ()


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def module_rows(model: nn.Module, normed: Normed) -> Iterator[LayerWeight]:
    """List the weights of a module; see :func:`ww_opt.spectral.reading.weights.named_weights`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    prefix = wrapper_prefix(parameters)
    names: dict[Hashable, list[str]] = {}
    for name, parameter in parameters.items():
        if _is_matrix(name, parameter):
            names.setdefault(memory_of(parameter), []).append(name)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    seen: set[Hashable] = set()
    for piece in _pieces(model):
        others: list[str] = []
        if piece.tensor is not None:
            memory = memory_of(piece.tensor)
            if memory in seen:
                continue
            seen.add(memory)
            others = [name for name in names.get(memory, ()) if name not in piece.parameters]
            if others:
                piece = replace(piece, note="; ".join(filter(None, (f"tied with {', '.join(others)}", piece.note))))
        is_frozen = trained.isdisjoint((*piece.parameters, *piece.trained_by, *others))
        is_frozen = is_frozen and not hasattr(piece.place.module, _TRAINED)
        follows = normed(holder(piece.parameters[0]) if piece.parameters else piece.place.path)
        yield from _piece_rows(piece, prefix, (is_frozen, follows), tuple(others))


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it has two or more dimensions; of an uninitialised parameter the name alone can tell."""
    return not name.endswith("bias") if is_lazy(parameter) else parameter.ndim >= 2


def _piece_rows(
    piece: _Piece, prefix: str, known: tuple[bool, bool | None], ties: tuple[str, ...]
) -> Iterator[LayerWeight]:
    """Rows of one weight; ``known``: whether it is frozen, and whether a norm follows it."""
    is_frozen, normed = known
    place, tensor, status, note = piece.place, piece.tensor, Status.SUCCESS, piece.note
    if tensor is not None and is_lazy(tensor):
        tensor, status, note = None, Status.EMPTY, "not initialised yet: pass one batch through the model first"
    elif piece.read is not None:
        try:
            with torch.no_grad():
                tensor = piece.read()
        except Exception as error:  # foreign code: a parametrisation that fails must not cost the other layers
            status, note = Status.UNREADABLE, f"{note}; {type(error).__name__}: {error}"
    kind = piece.kind or ("parameter" if tensor is None else kind_of(place.module, piece.key, tensor))
    bias, owner = getattr(place.module, "bias", None), unwrapped(place.owner, prefix)
    facts = Facts(
        path=owner,
        leaf=piece.key,
        shape=_shape(tensor) or (),
        bias=_shape(bias),
        is_told=kind != "parameter" or (piece.key == "weight" and _is_torchs_own(place.module)),
        is_frozen=is_frozen,
        ties=ties,
    )
    verdict = piece.verdict or role_of(kind, facts)
    row = LayerWeight(
        name=layer_name(owner, piece.key, kind),
        kind=kind,
        parameter="+".join(piece.parameters),
        index=place.index,
        matrices=None,
        status=status,
        role=verdict.role,
        facts=facts,
        note="; ".join(filter(None, (note, verdict.note))),
        version=None if piece.tensor is None else version_of(piece.tensor),
        normed=normed,
    )
    if tensor is None:
        yield row
    else:
        yield from rows(row, tensor, piece.key, getattr(place.module, "groups", 1) if "conv" in kind else 1)


def _is_torchs_own(module: nn.Module) -> bool:
    """Whether torch made its class, as that of a norm, so that its weight is no layer's unless its kind is known."""
    return type(module).__module__.startswith("torch.nn.modules") and type(module) is not nn.Module


def _shape(value: object) -> tuple[int, ...] | None:
    """Of an uninitialised tensor, and of a quantised module's bias, which is a method, the empty one."""
    if isinstance(value, Tensor):
        return () if is_lazy(value) else tuple(value.shape)
    return () if callable(value) else None


def _pieces(model: nn.Module) -> Iterator[_Piece]:
    """All weights in module order, each parameter once by name; nothing is read yet."""
    named = list(model.named_modules())
    indices = {id(module): index for index, (_, module) in enumerate(named)}
    done: set[str] = set()
    below: dict[str, Verdict] = {}
    owners: dict[str, str] = {}
    for path, module in named:
        place = _Place(path, owners.get(path, path), module, indices[id(module)])
        if "base_layer" in module._modules:
            owners[place.full("base_layer")] = path
        adapters = adapters_of(module)
        below |= {place.full(child): verdict for child, verdict in _verdicts_below(module, bool(adapters)).items()}
        found = list(_lora_pieces(place, adapters, indices) if adapters else _own_pieces(place))
        outer = [below[path[:end]] for end in _ends(path) if path[:end] in below] if below else []
        if outer:
            found = [replace(piece, verdict=outer[0]) for piece in found]
        # a module inside LoRA or a parametrisation has had its rows with the layer that it serves
        fresh = [piece for piece in found if not done.issuperset(piece.parameters)]
        for piece in found:
            done.update(piece.parameters)
        yield from fresh


def _ends(path: str) -> list[int]:
    """Where the path of each module around this one ends, outermost first, and its own."""
    return [place for place, letter in enumerate(path) if letter == "."] + [len(path)]


def _verdicts_below(module: nn.Module, is_lora: bool) -> dict[str, Verdict]:
    """What a module of peft says of its children: copies that are not in use, and adapters of other kinds than LoRA."""
    unused = Verdict(Role.BASE, "not in use: another copy of the layer is")
    found = {child: unused for child, is_used in saved_copies(module).items() if not is_used}
    if "base_layer" in module._modules and (is_lora or has_other_adapter(module)):
        found |= {child: Verdict(Role.ADAPTER) for child in module._modules if child != "base_layer"}
        if not is_lora and not is_base_used(module):
            how = f"beneath an adapter ({type(module).__name__}) whose merged weight is not known here"
            found["base_layer"] = Verdict(Role.UNSURE, how)
    return found


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
    active, weight = active_among(module, adapters), next((piece for piece in own if piece.key == "weight"), None)
    verdict, is_merged = None, weight is not None and can_merge(module)
    if not is_base_used(module):
        beneath = "beneath adapters whose merged weight is not known here: merge them (`merge_and_unload()`)"
        verdict = Verdict(Role.BASE) if is_merged else Verdict(Role.UNSURE, beneath)
    trained_by = tuple(sorted(sides))
    yield from (replace(piece, verdict=verdict, trained_by=trained_by) for piece in own)
    for name, adapter in adapters.items():
        shown = replace(place, owner=_join(place.owner, "lora", name))
        names = tuple(place.full(key) for key in adapter.parameters)
        note = adapter.note if name in active else "; ".join(filter(None, ("not active", adapter.note)))
        yield _Piece(shown, "weight", names, adapter.product, kind="lora", note=note)
    if weight is not None and is_merged and verdict is not None:
        shown = replace(base, owner=_join(place.owner, "merged"))
        read_base = weight.read or partial(cast, Tensor, weight.tensor)
        read = partial(merged_weight, module, read_base, tuple(adapters[name] for name in active))
        note = "base weight and LoRA: " + ", ".join(active)
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
