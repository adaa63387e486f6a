"""Bounds of a search space: laid around present values, remembered in a study, and compared. No torch, no model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

__all__ = ["Bounds", "around", "changes", "in_words", "is_inside", "nearest", "remember", "remembered", "rescaled"]

Bounds = dict[str, BaseDistribution]
_SPACE = "ww_opt:space"
_RESCALED = "ww_opt:rescaled"
_SHOWN = 4
_NO_DECAY = 1e-12
_SCALE = 2.5
_DECAY = {True: (1e-4, 1.0), False: (1e-6, 1e-2), None: (1e-6, 1.0)}
"""Beside the gradient decay is multiplied by the learning rate alone, so that it needs more; unknown: both."""


def around(kind: str, value: float, *, decoupled: bool | None = None, decades: float = 1.5) -> FloatDistribution:
    """Lay bounds around a present value.

    A learning rate gets ``decades`` each way on the logarithm. Weight decay gets the usual range of its family, widened
    to a decade beyond the present one; dropout 0 to 0.5 and momentum 0.5 to 0.99, widened to hold it. The scale of the
    initial weights gets a factor of 2.5 each way on the logarithm.

    Raises:
        ValueError: a learning rate is not positive.
    """
    if kind == "lr":
        if not 0.0 < value < math.inf:
            raise ValueError(
                f"`lr > 0` must hold to lay bounds around it, but the optimizer has lr={value}: give it its usual one."
            )
        factor = 10.0**decades
        return FloatDistribution(_two_digits(value / factor), _two_digits(value * factor), log=True)
    if kind == "weight_decay":
        low, high = _DECAY[decoupled]
        if value > _NO_DECAY:
            low, high = min(low, _two_digits(value / 10.0)), max(high, _two_digits(value * 10.0))
        return FloatDistribution(low, high, log=True)
    if kind == "init_scale":
        return FloatDistribution(_two_digits(value / _SCALE), _two_digits(value * _SCALE), log=True)
    low, high = (0.0, 0.5) if kind == "dropout" else (0.5, 0.99)
    return FloatDistribution(min(low, value), max(high, value))


def nearest(value: float, distribution: BaseDistribution) -> float:
    """Return the value inside the bounds, and on their steps, that is nearest."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    inside = min(max(value, distribution.low), distribution.high)
    if distribution.step is not None and not distribution.log:
        n_steps = round((inside - distribution.low) / distribution.step)
        inside = min(distribution.low + n_steps * distribution.step, distribution.high)
    return int(inside + 0.5) if isinstance(distribution, IntDistribution) else float(inside)


def in_words(distribution: BaseDistribution) -> str:
    """Bounds as a person writes them."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return str(distribution)
    is_whole = isinstance(distribution, IntDistribution)
    step = "" if distribution.step in (None, 1 if is_whole else None) else f" by {distribution.step:g}"
    extra = ", ".join(word for word, holds in (("log", distribution.log), ("whole", is_whole)) if holds)
    return f"{distribution.low:.12g} to {distribution.high:.12g}{step}{f' ({extra})' if extra else ''}"


def changes(old: Mapping[str, BaseDistribution], new: Mapping[str, BaseDistribution]) -> str:
    """Say what differs between two spaces, and nothing of what does not; empty where nothing does."""
    found: dict[str, list[str]] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = (in_words(own[name]) if name in own else "not there" for own in (old, new))
        if old.get(name) != new.get(name):
            found.setdefault(f"was {was} and is {now}", []).append(f"`{name}`")
    return "; ".join(f"{_some(names)} {what}" for what, names in found.items())


def is_inside(params: Mapping[str, Any], bounds: Mapping[str, BaseDistribution]) -> bool:
    """Whether settings are a point of the space: the same names, every value inside its bounds."""
    return params.keys() == bounds.keys() and all(
        own._contains(own.to_internal_repr(params[name])) for name, own in bounds.items()
    )


def remember(study: optuna.Study, bounds: Mapping[str, BaseDistribution], *, is_rescaled: bool = False) -> None:
    """Keep the bounds with the study; ``is_rescaled``: from now on only trials inside them count."""
    study.set_user_attr(_SPACE, {name: distribution_to_json(own) for name, own in bounds.items()})
    if is_rescaled:
        study.set_user_attr(_RESCALED, True)


def remembered(study: optuna.Study) -> Bounds | None:
    """Return the bounds that the study was run in last; ``None`` where it does not know."""
    kept = study.user_attrs.get(_SPACE)
    return None if kept is None else {name: json_to_distribution(text) for name, text in kept.items()}


def rescaled(study: optuna.Study) -> Bounds | None:
    """Return the bounds that trials must lie in to count; ``None`` where they were never changed."""
    return remembered(study) if study.user_attrs.get(_RESCALED) else None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
