"""What a setting of the space may be: a distribution, a number, one of these per label, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

Single: TypeAlias = FloatDistribution | IntDistribution | float
Choice: TypeAlias = Single | Mapping[str, Single] | None

__all__ = ["Choice", "Single", "check", "suggested"]


def suggested(trial: optuna.trial.BaseTrial, name: str, choice: Single | None) -> float | None:
    """Value of a setting: suggested where it is a distribution of several values, else the constant."""
    if choice is None:
        return None
    if isinstance(choice, FloatDistribution):
        if choice.single():
            return choice.low
        return trial.suggest_float(name, choice.low, choice.high, step=choice.step, log=choice.log)
    if isinstance(choice, IntDistribution):
        if choice.single():
            return choice.low
        return trial.suggest_int(name, choice.low, choice.high, step=choice.step, log=choice.log)
    return float(choice)


def check(kind: str, choice: object) -> None:
    """Refuse what is no setting of its kind.

    Raises:
        TypeError: it is neither a distribution nor a number.
        ValueError: it or a bound is outside the kind's range.
    """
    if choice is None:
        return
    if isinstance(choice, FloatDistribution | IntDistribution):
        low, high = float(choice.low), float(choice.high)
    elif isinstance(choice, int | float) and not isinstance(choice, bool):
        low = high = float(choice)
    else:
        raise TypeError(
            f"`{kind}` must be a FloatDistribution, an IntDistribution, a number, a mapping from label to these, or "
            f"None, but got {type(choice).__name__}."
        )
    ok, rule = {
        "lr": (low > 0, "> 0"),
        "weight_decay": (low >= 0, ">= 0"),
        "dropout": (low >= 0 and high <= 1, "in [0, 1]"),
        "momentum": (low >= 0 and high < 1, "in [0, 1)"),
        "init_scale": (low > 0, "> 0"),
    }[kind]
    if not ok or not math.isfinite(high):
        shown = (low, high) if isinstance(choice, BaseDistribution) else low
        raise ValueError(f"`{kind}` must be {rule}, but got {shown}.")
