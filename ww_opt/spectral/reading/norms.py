"""Whether a norm follows a layer and takes its scale back: then nothing can be said about the layer's scale.

Known of an ``nn.Sequential``, whose order is the data's path, and of a batch or instance norm that stands right behind
its layer or bears its number (``conv1``, ``bn1``). In other modules the order of registration is not the data's path,
and between a layer and the norm named after it a residual may be added (BERT), so there it is not known. Of a state
dict only names are left; one that shows no norm at all is taken to have none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["Normed", "holder", "norms_of_module", "norms_of_state"]

Normed = Callable[[str], "bool | None"]
"""Name of the module that holds a weight -> whether a norm follows it; ``None``: not known."""

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# what multiplies its output by c where its input is multiplied by c > 0
_PASSING = (
    "Dropout", "FeatureAlphaDropout", "Identity", "ReLU", "LeakyReLU", "PReLU", "RReLU", "MaxPool", "AvgPool",
    "AdaptiveMaxPool", "AdaptiveAvgPool", "Flatten", "Unflatten", "Upsample", "PixelShuffle", "PixelUnshuffle",
    "ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad", "DropPath",
)  # fmt: skip
_PASSES = re.compile(rf"({'|'.join(_PASSING)})([123]d)?")
_NORM_NAME = re.compile(r"(^|_)(bn|ln|gn)(_?\d+)?($|_)|norm", re.IGNORECASE)
_NUMBER = re.compile(r"\d+$")


def holder(parameter: str) -> str:
    """Name of the module that holds a parameter: what ``Normed`` is asked with."""
    return parameter.rpartition(".")[0].partition(".parametrizations")[0]


def norms_of_module(model: nn.Module) -> Normed:
    """Return what tells of a module inside ``model``, by its path, whether a norm follows it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if not any(_is_norm(module) for module in modules.values()):
        return lambda _owner: False

    def normed(owner: str) -> bool | None:
        path, bent = owner, False
        while path:
            parent, _, name = path.rpartition(".")
            container = modules.get(parent)
            if container is None:
                return None
            later = _later(container, name)
            if type(container).forward is not nn.Sequential.forward:
                return _beside(container, name, later, modules.get(owner))
            for follower in _flat(later):
                if _is_norm(follower):
                    return None if bent else True
                if next(follower.children(), None) is not None:
                    return None if any(_is_norm(part) for part in follower.modules()) else False
                if next(follower.parameters(), None) is not None and not _passes(follower):
                    return False
                bent |= not _passes(follower)
            path = parent
        return False

    return normed


def _later(container: nn.Module, name: str) -> list[nn.Module]:
    names = list(container._modules)
    own = names.index(name) if name in names else len(names)
    return [module for module in list(container._modules.values())[own + 1 :] if module is not None]


def _flat(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules in the order in which data pass them, with those of an ``nn.Sequential`` in its place."""
    for module in modules:
        if type(module).forward is nn.Sequential.forward:
            yield from _flat(module.children())
        else:
            yield module


def _beside(container: nn.Module, name: str, later: Iterable[nn.Module], layer: nn.Module | None) -> bool | None:
    """Of a module with its own ``forward``: a batch norm of the layer's width right behind it, or of its number."""
    width = next((getattr(layer, own) for own in ("out_features", "out_channels", "nf") if hasattr(layer, own)), None)
    follower = next((module for module in _flat(later) if not _passes(module)), None)
    if width is not None and isinstance(follower, _NormBase) and follower.num_features == width:
        return True
    batch_norms = [
        own for own, part in container._modules.items() if isinstance(part, _NormBase) and part.num_features == width
    ]
    return True if _has_partner(name, batch_norms) else None


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, _NORMS):
        return True
    own = type(module).__name__
    if "norm" not in own.lower() or own == "LocalResponseNorm":
        return False
    return next(module.children(), None) is None and all(part.ndim < 2 for part in module.parameters())


def _passes(module: nn.Module) -> bool:
    return _PASSES.fullmatch(type(module).__name__) is not None


def _has_partner(name: str, batch_norms: Iterable[str]) -> bool:
    """Whether one of the norms bears the layer's number, as ``bn1`` does that of ``conv1``, or neither has one."""
    own = _NUMBER.search(name)
    return any((own and own[0]) == ((other := _NUMBER.search(norm)) and other[0]) for norm in batch_norms)


def norms_of_state(state: Mapping[str, Any]) -> Normed:
    """Return what tells of the owner of a weight, by its name in the state dict, whether a norm follows it."""
    owners: dict[str, bool] = {}  # whether it is a norm
    for key in state:
        if isinstance(key, str):
            owner, _, leaf = key.rpartition(".")
            own = owners.get(owner, False) or leaf == "running_mean" or _NORM_NAME.search(_last(owner)) is not None
            owners[owner] = own or (leaf == "weight" and _last(owner).isdigit() and _is_vector(state[key]))
    if not any(owners.values()):
        return lambda _owner: False
    is_sequential = all(owner.isdigit() for owner in owners)

    def normed(owner: str) -> bool | None:
        parent, name = owner.rpartition(".")[0], _last(owner)
        beside = [other for other in owners if other != owner and other.rpartition(".")[0] == parent]
        if name.isdigit():
            after = [other for other in beside if _last(other).isdigit() and int(_last(other)) > int(name)]
            follower = min(after, key=lambda other: int(_last(other)), default=None)
            if follower is not None and owners[follower]:
                return True if int(_last(follower)) == int(name) + 1 else None
            return False if is_sequential else None
        batch_norms = [_last(other) for other in beside if f"{other}.running_mean" in state]
        return True if _has_partner(name, batch_norms) else None

    return normed


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1
