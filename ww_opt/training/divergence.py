"""Was it the settings or the code? What the user's code raises where weights or outputs are not finite any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

__all__ = ["divergence"]


def divergence(error: Exception, model: nn.Module, again: Callable[[], object]) -> str:
    """Say in words that ``error`` comes of a training that diverged; empty where nothing says so.

    Args:
        error: what the loss raised, such as a distribution that was given NaN.
        model: the model in training.
        again: does once more what raised; the outputs of the model's modules are looked at meanwhile.
    """
    what = f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    broken = [name for name, tensor in model.named_parameters() if not _is_finite(tensor)]
    if broken:
        return f"{what} with weights that are not finite ({', '.join(broken[:3])})"
    if isinstance(error, torch.OutOfMemoryError):
        return ""
    found: list[str] = []

    def look(module: nn.Module, _args: Any, output: Any) -> None:
        if not found and _is_broken(output):
            found.append(type(module).__name__)

    hook = register_module_forward_hook(look)
    try:
        with torch.no_grad(), suppress(Exception):  # the same once more, most likely
            again()
    finally:
        hook.remove()
    return f"{what} with outputs that are not finite (of a {found[0]})" if found else ""


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach()).all())


def _is_broken(output: Any) -> bool:
    """Whether there is NaN or infinity; minus infinity is what masks are made of."""
    if isinstance(output, torch.Tensor):
        own = output.detach()
        return own.is_floating_point() and bool((torch.isnan(own) | (own == torch.inf)).any())
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return any(_is_broken(item) for item in items)
