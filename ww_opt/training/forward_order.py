"""In which order a forward pass uses the layers of a model; the order of registration is another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ww_opt.training.modes import evaluating
from ww_opt.training.randomness import undisturbed
from ww_opt.training.wrappers import innermost, plain_names

__all__ = ["Unit", "forward_order"]


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer with what follows it before the next one: biases, norms, and what a container holds beside its layers.

    Attributes:
        name: of the layer, without wrappers.
        modules: the layer's module, then those that follow.
        parameters: trainable ones, each once.
        first: call of a forward pass that uses it first.
        last: call that uses one of its parameters last, under whatever name.
    """

    name: str
    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]
    first: int
    last: int

    @property
    def matrices(self) -> tuple[nn.Parameter, ...]:
        """Parameters of two or more dimensions of the layer itself."""
        own = {id(parameter) for parameter in self.modules[0].parameters()}
        return tuple(item for item in self.parameters if item.ndim > 1 and id(item) in own)


def forward_order(model: nn.Module, forward: Callable[[nn.Module], Any]) -> tuple[Unit, ...]:
    """Run a forward pass in eval mode, and list the trainable layers that it uses, in its order.

    Modes, random streams and gradients are left as they were. What a container holds itself (tokens, tables) belongs
    to its last layer: it may be used anywhere inside. Modules that the pass does not call belong to the one around them
    where that calls none of its own (attention), and else to no layer.

    Args:
        model: only run.
        forward: called with the model inside its wrappers.
    """
    inner, name_of = innermost(model), plain_names(model)
    names = {module: name_of(name) for name, module in model.named_modules()}
    hidden = {own for module in inner.modules() if is_parametrized(module) for own in _parametrizations(module)}
    calls: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(partial(_note, calls)) for module in inner.modules() if module not in hidden
    ]
    try:
        with evaluating(inner), undisturbed(_device(inner)), torch.no_grad():
            forward(inner)
    finally:
        for handle in handles:
            handle.remove()
    first = {module: place for place, module in reversed(list(enumerate(calls)))}
    last = {module: place for place, module in enumerate(calls)}
    leaves = [module for module in sorted(first, key=first.__getitem__) if _is_leaf(module, first)]
    units: list[Unit] = []
    early: list[nn.Module] = []
    for module in leaves:
        if _is_layer(module):
            members, early = [module, *early], []
            own = tuple(item for part in members for item in part.parameters() if item.requires_grad)
            units.append(Unit(names[module], tuple(members), own, first[module], max(last[part] for part in members)))
        elif units:
            parameters = (*units[-1].parameters, *(item for item in module.parameters() if item.requires_grad))
            units[-1] = replace(
                units[-1],
                modules=(*units[-1].modules, module),
                parameters=parameters,
                last=max(units[-1].last, last[module]),
            )
        else:
            early.append(module)
    for container in [module for module in first if _calls_own(module, first)]:
        beside = tuple(item for item in container.parameters(recurse=False) if item.requires_grad)
        inside = set(container.modules())
        place = max((i for i, unit in enumerate(units) if unit.modules[0] in inside), default=None)
        if beside and place is not None:
            units[place] = replace(units[place], parameters=(*units[place].parameters, *beside))
    return tuple(_with_ties(units))


def _note(calls: list[nn.Module], module: nn.Module, *_: Any) -> None:
    calls.append(module)


def _parametrizations(module: nn.Module) -> list[nn.Module]:
    return list(module.get_submodule("parametrizations").modules())


def _device(model: nn.Module) -> torch.device:
    return next((own.device for own in model.parameters()), torch.device("cpu"))


def _calls_own(module: nn.Module, called: dict[nn.Module, int]) -> bool:
    return any(part in called for part in module.modules() if part is not module)


def _is_leaf(module: nn.Module, called: dict[nn.Module, int]) -> bool:
    """Whether it calls no other, and has something to be frozen; an activation may well be used everywhere."""
    has_state = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
    return has_state and not _calls_own(module, called)


def _is_layer(module: nn.Module) -> bool:
    """Whether it has a trainable weight of two or more dimensions; norms may be of any shape."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return False
    return any(own.requires_grad and own.ndim > 1 for own in module.parameters())


def _with_ties(units: list[Unit]) -> list[Unit]:
    """A parameter that several units hold is used last where the last of them is."""
    holders: dict[int, int] = {}
    for unit in units:
        for own in unit.parameters:
            holders[id(own)] = max(holders.get(id(own), 0), unit.last)
    return [
        replace(
            unit,
            parameters=tuple({id(own): own for own in unit.parameters}.values()),
            last=max((holders[id(own)] for own in unit.parameters), default=unit.last),
        )
        for unit in units
    ]
