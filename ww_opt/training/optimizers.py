"""Parameter groups -> an optimizer, whose settings all act on something; and its rates over a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["Rates", "build_optimizer", "momentum_key", "needs_closure"]

_ASKED = ("param_groups", "step", "zero_grad")


def momentum_key(optimizer: Optimizer) -> str | None:
    """Name of the option that momentum sets: ``momentum`` (SGD), ``betas`` (Adam's first), or ``None``."""
    options = _options(optimizer)
    return next((key for key in ("momentum", "betas") if options.get(key) is not None), None)


def needs_closure(build: object) -> bool:
    """Whether what ``build`` makes asks ``step`` for a function that computes the loss, as LBFGS does."""
    while (inner := getattr(build, "func", None)) is not None:  # functools.partial
        build = inner
    step = getattr(build, "step", None) if isinstance(build, type) else getattr(type(build), "step", None)
    if step is None:
        return False
    try:
        closure = inspect.signature(step).parameters.get("closure")
    except (TypeError, ValueError):  # not every callable has a signature
        return False
    return closure is not None and closure.default is inspect.Parameter.empty


def build_optimizer(build: Callable[..., Optimizer], groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Build the optimizer, with ``momentum`` translated into its own option.

    Args:
        build: called with the groups; returns an optimizer, or what wraps one and has its ``param_groups``, ``step``
            and ``zero_grad``.
        groups: as from :func:`ww_opt.training.layerwise.parameter_groups`; left as they are.

    Raises:
        TypeError: what was built is no optimizer.
        ValueError: a setting acts on nothing in it, or it needs a closure.
    """
    optimizer = build([{key: value for key, value in group.items() if key != "momentum"} for group in groups])
    name = type(optimizer).__name__
    if not all(hasattr(optimizer, own) for own in _ASKED):
        raise TypeError(
            f"`optimizer` must return one optimizer, but got a {name}: where there are several, return one object that "
            f"has {', '.join(f'`{own}`' for own in _ASKED)} and passes them on."
        )
    if needs_closure(optimizer):
        raise ValueError(f"`optimizer` must step without a closure, but {name} needs one: use SGD or Adam.")
    for kind, words in (("lr", "Learning rate"), ("weight_decay", "Weight decay")):
        _check_acts(optimizer, groups, kind, words)
    _set_momentum(optimizer, groups)
    return optimizer


def _options(optimizer: Optimizer) -> Mapping[str, Any]:
    """The options that an optimizer knows, with their defaults; of a wrapper those of the groups it was given."""
    return getattr(optimizer, "defaults", None) or (optimizer.param_groups[0] if optimizer.param_groups else {})


def _check_acts(optimizer: Optimizer, groups: Sequence[dict[str, Any]], kind: str, words: str) -> None:
    """Refuse a setting that the optimizer does not have, or of which it says that it sets it itself."""
    asked = [group[kind] for group in groups if group.get(kind)]
    options: Mapping[str, Any] = getattr(optimizer, "defaults", None) or {}
    if not asked or not options or options.get(kind) is not None:
        return
    why = "is None, so that it sets its own" if kind in options else "is none of its options"
    name = type(optimizer).__name__
    raise ValueError(
        f"{words} acts on nothing in {name}, where `{kind}` {why}, but got {kind}={asked[0]}: leave it out of the "
        + (
            f"space, or give it one, `functools.partial({name}, {kind}=...)`."
            if kind in options
            else "space, or use SGD or Adam."
        )
    )


def _set_momentum(optimizer: Optimizer, groups: Sequence[dict[str, Any]]) -> None:
    if all("momentum" not in group for group in groups):
        return
    key = momentum_key(optimizer)
    for built, asked in zip(optimizer.param_groups, groups, strict=True):
        if "momentum" not in asked:
            continue
        value = asked["momentum"]
        if key is None:
            raise ValueError(
                f"Momentum acts on nothing in {type(optimizer).__name__}, but got momentum={value}: leave it out of "
                "the space, or use SGD or Adam."
            )
        if key == "momentum":
            built[key] = value
            continue
        first, *others = built["betas"]
        built[key] = (torch.full_like(first, value) if isinstance(first, torch.Tensor) else value, *others)


@dataclass(frozen=True, eq=False)
class Rates:
    """The learning rates that an optimizer started with; a rate of ``None`` is the optimizer's own affair.

    A group's ``lr_scale``, as timm's layer decay writes it, is a further factor, as it is for timm's schedulers.
    """

    optimizer: Optimizer
    base: tuple[Any, ...]

    @classmethod
    def of(cls, optimizer: Optimizer) -> Rates:
        """Remember the rates that ``optimizer`` has now."""
        return cls(optimizer, tuple(group.get("lr") for group in optimizer.param_groups))

    def scale(self, factor: float) -> None:
        """Set every rate to ``factor`` times what it started with."""
        for group, rate in zip(self.optimizer.param_groups, self.base, strict=True):
            if rate is not None:
                group["lr"] = rate * factor * group.get("lr_scale", 1.0)
