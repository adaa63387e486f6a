"""Settings per layer -> optimizer parameter groups and dropout.

A *layer* is what owns a weight of two or more dimensions: a leaf module (``encoder.0``) or, where a
container holds the weight itself, the parameter (``cls_token``). Biases, norm parameters and dropout belong
to the layer they follow in the module's order (to the first layer where none comes before); the parameters
share its learning rate and get no weight decay. A *label function* maps layer names to labels; settings are
a ``dict`` from label to :class:`LayerSettings`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

Label = Callable[[str], str]

_PARAMETRIZATIONS = "parametrizations"  # torch's name for the module that holds the original tensors

__all__ = [
    "Label",
    "Layer",
    "LayerSettings",
    "add_dropout",
    "apply_dropout",
    "by_block",
    "by_layer",
    "labelled",
    "layers",
    "parameter_groups",
    "tied",
]


@dataclass(frozen=True)
class LayerSettings:
    """What one label's layers are trained with; ``None`` leaves the optimizer's or the model's own value."""

    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    dropout: float | None = None


@dataclass(frozen=True)
class Layer:
    """One layer: its matrices, the 1-d parameters that follow it, and the dropout modules behind it."""

    name: str
    weights: tuple[str, ...]
    followers: tuple[str, ...] = ()
    dropouts: tuple[str, ...] = ()


def by_layer(name: str) -> str:
    """Every layer on its own."""
    return name


def tied(name: str) -> str:  # noqa: ARG001
    """One label, ``all``, for the whole model."""
    return "all"


def by_block(depth: int = 1) -> Label:
    """Layers whose dotted names agree in all but the last ``depth`` parts share a label.

    ``by_block()`` puts ``blocks.0.attn`` and ``blocks.0.mlp`` into ``blocks.0``; a name with too few
    parts keeps itself as its label.
    """
    if depth < 1:
        raise ValueError(f"`depth >= 1` must hold, but got depth={depth}: use `by_layer` for no grouping.")

    def label(name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[:-depth]) if len(parts) > depth else name

    return label


def layers(model: nn.Module) -> tuple[Layer, ...]:
    """List the trainable layers of ``model`` in the order in which its modules are registered.

    Frozen parameters (``requires_grad=False``) belong to no layer. Shared parameters count once, where they stand
    first. Dropout that :func:`add_dropout` put behind a container belongs to the last layer inside.

    Raises:
        ValueError: a lazy parameter has no shape yet.
    """
    walk = _Walk()
    walk.visit("", model)
    for first in list(walk.found.values())[:1]:
        for field, names in walk.early.items():
            first[field][:0] = names
    return tuple(
        Layer(name, **{field: tuple(names) for field, names in members.items()}) for name, members in walk.found.items()
    )


class _Walk:
    """One pass over a model's modules: names by layer and field; ``early`` is what stands before the first layer."""

    def __init__(self) -> None:
        self.found: dict[str, defaultdict[str, list[str]]] = {}
        self.early: defaultdict[str, list[str]] = defaultdict(list)
        self._current = self.early
        self._seen: set[int] = set()

    def visit(self, name: str, module: nn.Module) -> None:
        if not self._is_new(module):
            return
        direct = [(key, tensor) for key, tensor in _own_parameters(name, module) if self._is_new(tensor)]
        # matrices first: a bias registered before its weight still follows it
        for key, _ in (pair for pair in direct if _is_weight(module, pair[1])):
            self._current = self.found.setdefault(_owner(name, module, key), defaultdict(list))
            self._current["weights"].append(key)
        self._current["followers"].extend(key for key, tensor in direct if not _is_weight(module, tensor))
        hooked = _dropout_hook(module) is not None
        if _has_own_dropout(module) and not hooked:
            self._current["dropouts"].append(name)
        for key, child in _children(module):
            self.visit(_join(name, key), child)
        if hooked:
            self._current["dropouts"].append(name)  # the hook acts behind everything inside

    def _is_new(self, item: nn.Module | nn.Parameter) -> bool:
        new = id(item) not in self._seen
        self._seen.add(id(item))
        return new


def _own_parameters(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters of the module itself; parametrised ones keep their long names."""
    sources = [(name, module.named_parameters(recurse=False))]
    if is_parametrized(module):
        sources.append((_join(name, _PARAMETRIZATIONS), module.get_submodule(_PARAMETRIZATIONS).named_parameters()))
    for prefix, pairs in sources:
        for key, tensor in pairs:
            if is_lazy(tensor):
                raise ValueError(f"Lazy parameters have no shape: send a batch through {_join(prefix, key)!r} first.")
            if tensor.requires_grad:
                yield _join(prefix, key), tensor


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(key, child) for key, child in module.named_children() if key != _PARAMETRIZATIONS]


def _is_weight(module: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not isinstance(module, nn.LayerNorm | nn.RMSNorm)  # norms may be of any shape


def _owner(name: str, module: nn.Module, parameter_name: str) -> str:
    if name and not _children(module):
        return name
    return re.sub(rf"\b{_PARAMETRIZATIONS}\.(\w+)\..+$", r"\1", parameter_name)


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _has_own_dropout(module: nn.Module) -> bool:
    """Dropout modules, attention with its own rate, stacked recurrent layers."""
    if isinstance(module, nn.RNNBase):
        return module.num_layers > 1  # torch applies it between stacked layers only
    return isinstance(module, _DropoutNd | nn.MultiheadAttention)


def labelled(model: nn.Module, label: Label = by_layer) -> dict[str, tuple[Layer, ...]]:
    """Group the layers of ``model`` by label, in order of first appearance.

    Raises:
        ValueError: the model has no trainable weight of two or more dimensions.
    """
    groups: dict[str, list[Layer]] = {}
    for layer in layers(model):
        groups.setdefault(label(layer.name), []).append(layer)
    if not groups:
        raise ValueError(
            "A model needs at least one trainable weight of 2 or more dimensions, but "
            f"{type(model).__name__} has none: build the layers in `build_model`, and leave some unfrozen."
        )
    return {name: tuple(members) for name, members in groups.items()}


def parameter_groups(
    model: nn.Module, settings: Mapping[str, LayerSettings], label: Label = by_layer
) -> list[dict[str, Any]]:
    """Build optimizer parameter groups from per-label settings.

    Each label gives a group named after it and, where it has biases or norm parameters, a second one,
    ``<label>:no_decay``. ``params`` holds (name, tensor) pairs, so torch keeps ``param_names`` in its state.

    Raises:
        ValueError: labels of the model and keys of ``settings`` differ; the message shows both.
    """
    groups = labelled(model, label)
    if set(groups) != set(settings):
        raise ValueError(
            "Every label needs settings and every setting a label, but got "
            f"labels of the model: {sorted(groups)}; settings for: {sorted(settings)}."
        )
    tensors = dict(model.named_parameters(remove_duplicate=False))
    result: list[dict[str, Any]] = []
    for name, members in groups.items():
        own = settings[name]
        shared = {key: value for key in ("lr", "momentum") if (value := getattr(own, key)) is not None}
        decay = {} if own.weight_decay is None else {"weight_decay": own.weight_decay}
        weights = [(key, tensors[key]) for layer in members for key in layer.weights]
        followers = [(key, tensors[key]) for layer in members for key in layer.followers]
        result.append({"name": name, "params": weights, **shared, **decay})
        if followers:
            result.append({"name": f"{name}:no_decay", "params": followers, **shared, "weight_decay": 0.0})
    return result


class _DropoutAfter:
    """Forward hook that drops units of a module's output; a class, so that models stay picklable."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(output, self.p, module.training)


def _dropout_hook(module: nn.Module) -> _DropoutAfter | None:
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, _DropoutAfter)), None)


def add_dropout(model: nn.Module, names: Iterable[str], p: float = 0.0) -> nn.Module:
    """Add dropout to the output of the named modules, in place; names and state dict do not change.

    Args:
        model: changed in place and returned.
        names: dotted module names whose output is a tensor.
        p: probability of dropping a unit, in [0, 1].

    Raises:
        ValueError: a name is no module of the model, or ``p`` is no probability.
    """
    _check_probability(p)
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"Dropout goes after a module, but {name!r} is none; modules: {sorted(modules)[1:]}.")
        hook = _dropout_hook(modules[name])
        if hook is None:
            modules[name].register_forward_hook(_DropoutAfter(p))
        else:
            hook.p = p
    return model


def apply_dropout(model: nn.Module, settings: Mapping[str, LayerSettings], label: Label = by_layer) -> None:
    """Set every dropout of ``model`` to its label's rate, in place; ``None`` leaves it as it is.

    Raises:
        ValueError: a rate lies outside [0, 1], or is set for a label that the model lacks or that has no dropout.
    """
    groups = labelled(model, label)
    for name, own in settings.items():
        if name not in groups:
            raise ValueError(f"Settings need a label of the model, but got {name!r}; labels: {sorted(groups)}.")
        p = own.dropout
        if p is None:
            continue
        _check_probability(p)
        places = [place for layer in groups[name] for place in layer.dropouts]
        if not places:
            raise ValueError(
                f"Dropout needs a dropout module, but label {name!r} has none: add one to the model, or call "
                "`add_dropout(model, names)` in `build_model`."
            )
        for place in places:
            _set_dropout(model.get_submodule(place), p)


def _set_dropout(module: nn.Module, p: float) -> None:
    hook = _dropout_hook(module)
    if hook is not None:
        hook.p = p
    elif isinstance(module, _DropoutNd):
        module.p = p
    else:
        setattr(module, "dropout", p)  # MultiheadAttention and recurrent layers keep a plain float


def _check_probability(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"`0 <= dropout <= 1` must hold, but got dropout={p}.")
