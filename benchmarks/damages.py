"""What goes wrong with a layer between two checkpoints, and what is done to one without harm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["DAMAGES", "HARMLESS", "Change", "State", "all_layers", "damaged", "healthy_update"]

State = dict[str, Tensor]
Change = Callable[[Tensor], Tensor]


def _rounded(weight: Tensor, bits: int, *, by_channel: bool) -> Tensor:
    """Round to nearest, symmetric; one step for the layer, or one for each output channel."""
    top = 2 ** (bits - 1) - 1
    size = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1)) if by_channel else weight.abs().max()
    step = size.clamp_min(1e-12) / top
    return torch.mul((weight / step).round(), step)


def _clipped(weight: Tensor, n_deviations: float) -> Tensor:
    """Clip at so many standard deviations."""
    limit = float(n_deviations * weight.std())
    return torch.clamp(weight, -limit, limit)


def _pruned(weight: Tensor, share: float) -> Tensor:
    """Set the smallest entries to 0."""
    limit = weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
    return torch.where(weight.abs() <= limit, torch.zeros_like(weight), weight)


def _low_rank(weight: Tensor, rank: int) -> Tensor:
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    return torch.reshape((u[:, :rank] * s[:rank]) @ v[:rank], weight.shape)


def _huge(weight: Tensor) -> Tensor:
    weight = weight.clone()
    weight.view(-1)[7] = 40 * weight.std()
    return weight


def _shuffled(weight: Tensor) -> Tensor:
    return torch.reshape(weight.flatten()[torch.randperm(weight.numel())], weight.shape)


def _initial(weight: Tensor) -> Tensor:
    return (2 * torch.rand_like(weight) - 1) / math.sqrt(weight[0].numel())


DAMAGES: Mapping[str, Change] = {
    "times 10": lambda weight: 10 * weight,
    "times 3": lambda weight: 3 * weight,
    "times 1.5": lambda weight: 1.5 * weight,
    "times 0.33": lambda weight: weight / 3,
    "times 0.1": lambda weight: weight / 10,
    "int4, a step per channel": lambda weight: _rounded(weight, 4, by_channel=True),
    "int4, one step": lambda weight: _rounded(weight, 4, by_channel=False),
    "int3, a step per channel": lambda weight: _rounded(weight, 3, by_channel=True),
    "clipped at 2 sigma": lambda weight: _clipped(weight, 2.0),
    "clipped at 0.5 sigma": lambda weight: _clipped(weight, 0.5),
    "zeroed": torch.zeros_like,
    "80 % pruned": lambda weight: _pruned(weight, 0.8),
    "95 % pruned": lambda weight: _pruned(weight, 0.95),
    "one entry of 40 sigma": _huge,
    "cut to rank 2": lambda weight: _low_rank(weight, 2),
    "entries shuffled": _shuffled,
    "initialised anew": _initial,
    "rows moved on by one": lambda weight: weight.roll(1, 0),
    "sign turned": torch.neg,
    "NaN": lambda weight: weight * math.nan,
}
"""What is done to one layer."""
HARMLESS: Mapping[str, Change] = {
    "int8, one step": lambda weight: _rounded(weight, 8, by_channel=False),
    "bfloat16": lambda weight: weight.bfloat16().float(),
    "50 % pruned": lambda weight: _pruned(weight, 0.5),
}
"""What is done to all layers of a net and costs little."""


def all_layers(state: State, change: Change) -> State:
    """Change every tensor of two or more dimensions."""
    return {name: change(tensor) if tensor.ndim >= 2 else tensor for name, tensor in state.items()}


def damaged(base: State, names: Iterable[str]) -> Iterator[tuple[str, str, State]]:
    """Damage each of the layers in each way; yield what was done, to which layer, and the state."""
    for name in names:
        for what, change in DAMAGES.items():
            yield what, name.removesuffix(".weight"), {**base, name: change(base[name])}


def healthy_update(state: State, size: float = 0.05, rank: int = 4) -> State:
    """Stand in for a fine-tune: each layer moves by ``size`` of its norm, half of it along few directions."""

    def moved(weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        low = torch.randn(len(flat), rank) @ torch.randn(rank, flat.shape[1])
        noise = torch.randn_like(flat)
        step = low / low.norm() + noise / noise.norm()
        return torch.add(flat, step, alpha=float(size * flat.norm() / step.norm())).view_as(weight)

    return all_layers(state, moved)
