"""The user's present configuration: what his own optimizer and model have per label, before anything is searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ww_opt.training.dropout import dropout_of
from ww_opt.training.init_scale import scalable
from ww_opt.training.labels import Label, by_layer
from ww_opt.training.layerwise import Layer, LayerSettings, labelled, parameter_groups
from ww_opt.training.optimizers import build_optimizer, momentum_key
from ww_opt.training.wrappers import plain_names

__all__ = ["Present", "is_decoupled", "present"]

_COUPLED = ("SGD", "Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD")
_SAME = 1e-9


@dataclass(frozen=True, eq=False)
class Present:
    """What is trained today: the optimizer as it was built, and its settings per label."""

    optimizer: Optimizer
    settings: dict[str, LayerSettings]


def present(model: nn.Module, optimizer: Optimizer | Callable[..., Optimizer], label: Label = by_layer) -> Present:
    """Read each label's settings off an optimizer and the model's own dropout; ``None`` where there is no such thing.

    Weights say them: biases and norms follow. Of several rates of dropout in one label it is the mean; of several
    weight decays the largest, since what is not decayed is an exception. The scale of the weights as they are is 1.

    Args:
        model: as ``build_model`` returns it.
        optimizer: called with parameter groups that set nothing, as ``Task.optimizer`` is; or one that was built on
            this model. The ``lr_scale`` that a factory gives its groups goes on to be applied by training, and is left
            out here; that of an optimizer that was built is part of its rates.
        label: as in :class:`ww_opt.LayerwiseSpace`.

    Raises:
        TypeError: ``optimizer`` is none.
        ValueError: layers of one label have different learning rates or momentum, or it has none of the weights.
    """
    is_own = hasattr(optimizer, "param_groups")
    built: Any = optimizer if is_own else _built(model, optimizer, label)
    group_of = {id(tensor): group for group in built.param_groups for tensor in group["params"]}
    plain = plain_names(model)
    tensors = {plain(name): tensor for name, tensor in model.named_parameters(remove_duplicate=False)}
    modules = {plain(name): module for name, module in model.named_modules()}
    if all(id(tensor) not in group_of for tensor in tensors.values()):
        raise ValueError(
            f"`optimizer` must train weights of this model, but the {type(built).__name__} has none of them: give the "
            "model that it was built on."
        )
    key = momentum_key(built)
    found, labels = {}, labelled(model, label)
    with_scale = scalable(model, labels)
    for name, members in labels.items():
        groups = list(_groups(members, tensors, group_of))
        rates = [dropout_of(modules[place]) for layer in members for place in layer.dropouts]
        found[name] = LayerSettings(
            lr=_one("lr", name, [_rate(group, is_own) for group in groups]),
            weight_decay=_largest_decay(members, groups),
            momentum=None if key is None else _one("momentum", name, [_momentum(group, key) for group in groups]),
            dropout=sum(rates) / len(rates) if rates else None,
            init_scale=1.0 if groups and name in with_scale else None,
        )
    return Present(built, found)


def _built(model: nn.Module, optimizer: Any, label: Label) -> Optimizer:
    if not callable(optimizer):
        raise TypeError(
            f"`optimizer` must be what `Task.optimizer` is, or an optimizer, but got {optimizer!r}: write "
            "`functools.partial(torch.optim.AdamW, lr=1e-3)`."
        )
    nothing = dict.fromkeys(labelled(model, label), LayerSettings())
    return build_optimizer(optimizer, parameter_groups(model, nothing, label))


def is_decoupled(optimizer: Optimizer) -> bool | None:
    """Whether weight decay acts beside the gradient (AdamW) or in it (SGD); ``None`` where that is not known."""
    options: Mapping[str, Any] = getattr(optimizer, "defaults", None) or {}
    if isinstance(said := options.get("decoupled_weight_decay"), bool):
        return said
    own = [kind.__name__ for kind in type(optimizer).__mro__ if kind not in (Optimizer, object)]
    if any(kind in _COUPLED for kind in own[:1]):
        return False
    return True if any(_says_so(kind) for kind in own) else None


def _says_so(kind: str) -> bool:
    return "AdamW" in kind or kind in ("SGDW", "Lion", "Adan", "Lamb", "Muon", "Adafactor", "Prodigy")


def _groups(
    members: tuple[Layer, ...], tensors: Mapping[str, nn.Parameter], group_of: Mapping[int, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Groups of the label's weights, or of what follows where all of them are exempt from decay."""
    names = [name for layer in members for name in layer.weights]
    for name in names or [name for layer in members for name in layer.followers]:
        if (group := group_of.get(id(tensors[name]))) is not None:
            yield group


def _rate(group: Mapping[str, Any], is_own: bool) -> float | None:
    rate = group.get("lr")
    return None if rate is None else float(rate) * (float(group.get("lr_scale", 1.0)) if is_own else 1.0)


def _momentum(group: Mapping[str, Any], key: str) -> float | None:
    value = group.get(key)
    if key == "betas" and value is not None:
        value = value[0]
    return None if value is None else float(value)


def _largest_decay(members: tuple[Layer, ...], groups: list[dict[str, Any]]) -> float | None:
    if not any(layer.weights for layer in members):
        return None
    return max((float(own) for group in groups if (own := group.get("weight_decay")) is not None), default=None)


def _one(kind: str, label: str, values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    if not math.isclose(low, high, rel_tol=_SAME):
        raise ValueError(
            f"Layers that share a label must share `{kind}`, but those of label {label!r} have {low:.4g} to {high:.4g} "
            "in the optimizer: take a finer label, such as `label=by_layer`."
        )
    return known[0]
