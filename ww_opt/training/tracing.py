"""Dropout follows the data: which layer each dropout module stands behind in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ww_opt.training.modes import evaluating
from ww_opt.training.randomness import undisturbed
from ww_opt.training.wrappers import plain_names

__all__ = ["followed", "trace_dropout"]

_MARK = "_ww_opt_follows"


def trace_dropout(model: nn.Module, forward: Callable[[nn.Module], Any]) -> nn.Module:
    """Let each dropout module belong to the layer before it in a forward pass, not in the order of registration.

    For models whose ``__init__`` names modules in another order than ``forward`` uses them; call it in ``build_model``.
    Nothing of the model changes but the label of its dropout: modes and random streams are put back. Dropout that is
    used behind several layers belongs to the first of them; dropout that the pass does not reach, or before every
    layer, stays where it was.

    Args:
        model: marked in place and returned.
        forward: ``lambda model: model(x)`` with some inputs, two are enough.
    """
    name_of, reached = plain_names(model), list[tuple[nn.Module, str]]()
    owners = {
        name_of(name): module
        for name, module in model.named_modules()
        if any(own.ndim > 1 for own in module.parameters(recurse=False))
    }
    # after a layer, before a dropout: what a container adds around them does not matter
    handles = [
        owner.register_forward_hook(partial(_note_layer, reached, name)) for name, owner in owners.items()
    ] + [
        module.register_forward_pre_hook(partial(_note_dropout, reached))
        for module in model.modules()
        if isinstance(module, _DropoutNd)
    ]  # fmt: skip
    try:
        with evaluating(model), undisturbed(), torch.no_grad():
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    last = ""
    for module, layer in reached:
        if layer:
            last = layer
        elif last and not hasattr(module, _MARK):
            setattr(module, _MARK, last)
    return model


def _note_layer(reached: list[tuple[nn.Module, str]], name: str, module: nn.Module, *_: Any) -> None:
    reached.append((module, name))


def _note_dropout(reached: list[tuple[nn.Module, str]], module: nn.Module, *_: Any) -> None:
    reached.append((module, ""))


def followed(model: nn.Module) -> Mapping[str, str]:
    """Dropout module -> layer, both by plain name, as :func:`trace_dropout` found them; empty before it."""
    name_of = plain_names(model)
    return {name_of(name): getattr(module, _MARK) for name, module in model.named_modules() if hasattr(module, _MARK)}
