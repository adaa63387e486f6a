"""The scale of a label's initial weights: set before training, and taken out again where a loss has to compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ww_opt.training.labels import Label, by_layer
from ww_opt.training.layerwise import Layer, LayerSettings, labelled
from ww_opt.training.wrappers import plain_names

__all__ = ["apply_init_scale", "as_built", "scalable"]

_MARK = "_ww_opt_init_scale"
"""Attribute of a module: factor by parameter. On the module, since copies of a model keep it; a state dict has none."""


def apply_init_scale(model: nn.Module, settings: Mapping[str, LayerSettings], label: Label = by_layer) -> None:
    """Set every label's matrices to its factor times what they are, in place; ``None`` leaves them as they are.

    Matrices alone: biases, norm parameters, tokens, position tables and frozen weights stay. A shared weight counts
    once, where it stands first. The factor is set, as dropout is, not multiplied: a model that was scaled before goes
    over to the new one, and the same settings twice change nothing.

    Raises:
        ValueError: a factor is not positive, or is set for a label that the model lacks or whose weights are all 0.
    """
    groups, places = labelled(model, label), _places(model)
    with_one = scalable(model, groups)
    for name, own in settings.items():
        if name not in groups:
            raise ValueError(f"Settings need a label of the model, but got {name!r}; labels: {sorted(groups)}.")
        factor = own.init_scale
        if factor is None:
            continue
        if not 0.0 < factor < math.inf:
            raise ValueError(f"`init_scale > 0` must hold, but got init_scale={factor}.")
        if name not in with_one:
            raise ValueError(
                f"`init_scale` needs a weight that is not 0 throughout, but label {name!r} has none: leave it out."
            )
        for key in (key for layer in groups[name] for key in layer.matrices):
            _set(*places[key], factor)


@contextmanager
def as_built(model: nn.Module) -> Iterator[None]:
    """Take the scale out while the context lasts: losses before training are those of one model for all trials.

    Scores count from the loss before training. Were it that of the scaled weights, a scale that makes it worse would
    make the score better.
    """
    kept = [
        (tensor, tensor.detach().clone(), factor)
        for module in model.modules()
        for key, tensor in module.named_parameters(recurse=False)
        if (factor := getattr(module, _MARK, {}).get(key, 1.0)) != 1.0
    ]
    with torch.no_grad():
        for tensor, _, factor in kept:
            tensor.div_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, scaled, _ in kept:
                tensor.copy_(scaled)


def scalable(model: nn.Module, groups: Mapping[str, tuple[Layer, ...]]) -> frozenset[str]:
    """Labels in which a factor changes anything: not where all matrices are 0, as heads and adapters may begin."""
    places = _places(model)

    def acts(key: str) -> bool:
        module, own = places[key]
        tensor = module.get_parameter(own).detach()
        return tensor.is_meta or bool(tensor.any())

    return frozenset(
        label for label, members in groups.items() if any(acts(key) for layer in members for key in layer.matrices)
    )


def _set(module: nn.Module, key: str, factor: float) -> None:
    factors: dict[str, float] = vars(module).setdefault(_MARK, {})
    if (change := factor / factors.get(key, 1.0)) != 1.0:
        with torch.no_grad():
            module.get_parameter(key).mul_(change)
    factors[key] = factor


def _places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Find the module that holds a parameter, and its key there, by the parameter's plain name."""
    plain = plain_names(model)
    return {
        plain(f"{path}.{key}" if path else key): (module, key)
        for path, module in model.named_modules(remove_duplicate=False)
        for key, _ in module.named_parameters(recurse=False)
    }
