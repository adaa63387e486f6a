"""Scale layers' learning rates or weight decays in flight, by their exponents relative to each other.

The rules are TempBalance (learning rates, Zhou et al., NeurIPS 2023, arXiv 2312.00359, eq. 3) and AlphaDecay (weight
decays, He et al., NeurIPS 2025, arXiv 2506.14562): the layer with the largest exponent, the lightest tail, gets the
largest factor. On the development tasks neither gains anything (``docs/balancing.md``): nothing of ours turns it on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from torch.optim import Optimizer

__all__ = ["FACTORS", "BalanceSchedule", "Balanced", "balanced"]

Balanced: TypeAlias = Literal["lr", "weight_decay"]
FACTORS: Mapping[str, tuple[float, float]] = MappingProxyType({"lr": (0.5, 1.5), "weight_decay": (0.67, 3.0)})
"""What is scaled -> smallest and largest factor, as published."""


def balanced(exponents: Sequence[float], factors: tuple[float, float]) -> list[float]:
    """Spread factors linearly over the range of the exponents: ``low + (a - min a) / (max a - min a) (high - low)``.

    Args:
        exponents: NaN stands for not known.
        factors: smallest and largest.

    Returns:
        A factor for each; 1 where the exponent is NaN, and everywhere where fewer than two differ.
    """
    low, high = factors
    known = [own for own in exponents if math.isfinite(own)]
    least, most = min(known, default=0.0), max(known, default=0.0)
    if most <= least:
        return [1.0] * len(exponents)
    return [low + (own - least) / (most - least) * (high - low) if math.isfinite(own) else 1.0 for own in exponents]


class BalanceSchedule:
    """Scale one setting of an optimizer's groups by the exponents of the layers in them.

    In a loop of your own, with an optimizer that knows its parameters' names (``SGD(model.named_parameters())`` in
    groups, or those of :func:`ww_opt.training.layerwise.parameter_groups`), once an epoch or so::

        schedule = BalanceSchedule(optimizer, "lr")
        ...
            schedule.update(ww_opt.spectral.hill_alphas(model))

    The factor acts in ``optimizer.step()`` alone, and the setting is put back behind it: learning-rate schedulers go on
    as if nothing were there. Nothing of it is saved in ``state_dict``: after a resume, call ``update`` again.

    Args:
        optimizer: whose groups are scaled. Wrappers that are no ``torch.optim.Optimizer``: give what they wrap.
        setting: ``lr`` (TempBalance) or ``weight_decay`` (AlphaDecay).
        factors: smallest and largest, ``0 < smallest <= largest``; ``None``: 0.5 and 1.5 for ``lr``, 0.67 and 3 for
            ``weight_decay``.

    Attributes:
        factors_now: factor of each group, in the order of ``optimizer.param_groups``; 1 before the first update.

    Raises:
        ValueError: the setting is unknown, or no group has it; factors are out of range; or parameters have no names.
    """

    def __init__(
        self, optimizer: Optimizer, setting: Balanced = "lr", factors: tuple[float, float] | None = None
    ) -> None:
        if setting not in FACTORS:
            raise ValueError(f"`setting` must be 'lr' or 'weight_decay', but got {setting!r}.")
        low, high = factors or FACTORS[setting]
        if not 0.0 < low <= high < math.inf:
            raise ValueError(f"`0 < smallest <= largest` must hold, but got factors=({low}, {high}).")
        groups = optimizer.param_groups
        if any(not group.get("param_names") for group in groups):
            raise ValueError(
                "Layers are found by the names of their parameters, but this optimizer was given none: build it from "
                "`model.named_parameters()`, in groups of (name, tensor) pairs."
            )
        if all(group.get(setting) is None for group in groups):
            raise ValueError(f"`{setting}` acts on nothing in {type(optimizer).__name__}: none of its groups has it.")
        self.factors_now = [1.0] * len(groups)
        self._optimizer, self._setting, self._factors = optimizer, setting, (low, high)
        self._kept: list[Any] = []
        self._hooks = (
            optimizer.register_step_pre_hook(lambda *_: self._scale()),
            optimizer.register_step_post_hook(lambda *_: self._put_back()),
        )

    def update(self, exponents: Mapping[str, float]) -> dict[str, float]:
        """Set the factors from now on.

        A group counts with the mean over the layers that its parameters belong to; one without any keeps its setting.

        Args:
            exponents: by layer, as from :func:`ww_opt.spectral.hill_alphas`; NaN is passed over.

        Returns:
            Factor by layer, for the record.

        Raises:
            ValueError: no group holds a layer of that name; the message shows both sides.
        """
        groups = [group["param_names"] for group in self._optimizer.param_groups]
        if exponents and not any(_holds(names, layer) for names in groups for layer in exponents):
            raise ValueError(
                f"Exponents need the names of layers that are trained, but got {sorted(exponents)[:5]}; parameters: "
                f"{[name for names in groups for name in names][:5]}."
            )
        self.factors_now = balanced([_mean(exponents, names) for names in groups], self._factors)
        return {
            layer: factor
            for layer in exponents
            for names, factor in zip(groups, self.factors_now, strict=True)
            if _holds(names, layer)
        }

    def remove(self) -> None:
        """Scale nothing any more."""
        for hook in self._hooks:
            hook.remove()

    def _scale(self) -> None:
        groups = self._optimizer.param_groups
        self._kept = [group.get(self._setting) for group in groups]
        for group, factor in zip(groups, self.factors_now, strict=False):  # groups added since are left alone
            if group.get(self._setting) is not None:
                group[self._setting] = group[self._setting] * factor

    def _put_back(self) -> None:
        for group, own in zip(self._optimizer.param_groups, self._kept, strict=True):
            if own is not None:
                group[self._setting] = own


def _holds(parameters: Sequence[str], layer: str) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for name in parameters)


def _mean(exponents: Mapping[str, float], parameters: Sequence[str]) -> float:
    own = [value for layer, value in exponents.items() if math.isfinite(value) and _holds(parameters, layer)]
    return sum(own) / len(own) if own else math.nan
