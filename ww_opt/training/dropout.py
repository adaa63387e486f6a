"""Dropout of a module: where it is kept, and how one is added without touching names or state dict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ww_opt.training.wrappers import plain_names

__all__ = ["add_dropout", "check_probability", "dropout_of", "has_added_dropout", "has_own_dropout", "set_dropout"]


class _DropoutAfter:
    """Forward hook that drops units of a module's output; a class, so that models stay picklable."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(output, self.p, module.training)


def _hook(module: nn.Module) -> _DropoutAfter | None:
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, _DropoutAfter)), None)


def has_added_dropout(module: nn.Module) -> bool:
    """Whether :func:`add_dropout` put one behind the module."""
    return _hook(module) is not None


def has_own_dropout(module: nn.Module) -> bool:
    """Dropout modules, attention with its own rate, stacked recurrent layers."""
    if isinstance(module, nn.RNNBase):
        return module.num_layers > 1  # torch applies it between stacked layers only
    return isinstance(module, _DropoutNd | nn.MultiheadAttention)


def add_dropout(model: nn.Module, names: Iterable[str], p: float = 0.0) -> nn.Module:
    """Add dropout to the output of the named modules, in place; names and state dict do not change.

    Args:
        model: changed in place and returned.
        names: dotted module names whose output is a tensor.
        p: probability of dropping a unit, in [0, 1].

    Raises:
        ValueError: a name is no module of the model, or ``p`` is no probability.
    """
    check_probability(p)
    plain = plain_names(model)
    modules = {key: module for name, module in model.named_modules() for key in (name, plain(name))}
    for name in names:
        if name not in modules:
            known = sorted({plain(own) for own, _ in model.named_modules()} - {""})
            raise ValueError(f"Dropout goes after a module, but {name!r} is none; modules: {known}.")
        hook = _hook(modules[name])
        if hook is None:
            modules[name].register_forward_hook(_DropoutAfter(p))
        else:
            hook.p = p
    return model


def dropout_of(module: nn.Module) -> float:
    """Return the rate that :func:`set_dropout` sets."""
    hook = _hook(module)
    return float(hook.p if hook is not None else module.p if isinstance(module, _DropoutNd) else module.dropout)  # type: ignore[arg-type]


def set_dropout(module: nn.Module, p: float) -> None:
    """Set the rate of the dropout that a module has."""
    hook = _hook(module)
    if hook is not None:
        hook.p = p
    elif isinstance(module, _DropoutNd):
        module.p = p
    else:
        setattr(module, "dropout", p)  # MultiheadAttention and recurrent layers keep a plain float


def check_probability(p: float) -> None:
    """Raise ``ValueError`` where ``p`` is no probability."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"`0 <= dropout <= 1` must hold, but got dropout={p}.")
