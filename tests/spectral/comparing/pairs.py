"""Nets that have learnt, and what is done to one layer of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.spectral.test_advice import WIDTH, learnt

State = dict[str, Tensor]


def net(*, first: int = 0, norm: bool = False) -> nn.Sequential:
    """Three layers that have learnt, each with a batch norm behind it where one is asked for, and a head."""
    modules: list[nn.Module] = []
    torch.manual_seed(first)
    for layer in range(3):
        linear = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            linear.weight.copy_(learnt(first + layer))
        modules += [linear, nn.BatchNorm1d(WIDTH)] if norm else [linear]
        modules.append(nn.ReLU())
    return nn.Sequential(*modules, nn.Linear(WIDTH, 10))


def state(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def tuned(old: State, size: float = 0.05) -> State:
    """Every weight and bias moved a little, as by a fine-tune."""
    torch.manual_seed(77)

    def moved(tensor: Tensor) -> Tensor:
        step = torch.randn_like(tensor)
        return tensor + size * step / step.norm() * tensor.norm()

    return {name: moved(tensor) if tensor.is_floating_point() else tensor for name, tensor in old.items()}


def with_change(old: State, change: Callable[[Tensor], Tensor], name: str = "2.weight") -> State:
    """The same with one tensor changed."""
    return {**old, name: change(old[name])}
