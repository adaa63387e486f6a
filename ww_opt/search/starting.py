"""Where a search starts: the present configuration, values that the user names, or settings of an earlier study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from ww_opt.search.bounds import in_words, nearest
from ww_opt.search.repeats import START
from ww_opt.training.layerwise import LayerSettings

__all__ = [
    "GIVEN",
    "PRESENT",
    "Carried",
    "Start",
    "carried_of",
    "check_start",
    "fitted",
    "origin_of",
    "remember_carried",
    "remember_start",
]

PRESENT = "present configuration"
GIVEN = "start given by the user"
_CARRIED = "ww_opt:carried"


@dataclass(frozen=True)
class Start:
    """Values by parameter, and in a sentence what could not be taken as it is; empty where all could."""

    values: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class Carried:
    """Settings of an earlier study: where they come from, their values by parameter, and all of it in a sentence."""

    source: str
    settings: tuple[dict[str, Any], ...]
    told: str


def fitted(parameters: Mapping[str, BaseDistribution], settings: Mapping[str, LayerSettings]) -> Start:
    """Put each label's settings into the bounds of its parameters; settings of ``None`` are left out."""
    values: dict[str, float] = {}
    moved: dict[tuple[str, float, float], int] = {}
    for name, distribution in parameters.items():
        kind, _, label = name.partition("/")
        value = getattr(settings[label], kind)
        if value is None:
            continue
        values[name] = nearest(value, distribution)
        if not math.isclose(values[name], value, rel_tol=1e-9, abs_tol=1e-12):
            key = (kind, value, values[name])
            moved[key] = moved.get(key, 0) + 1
    told = "; ".join(
        f"{kind} of {n} label{'s' * (n != 1)} is {value:.4g} and was taken as {taken:.4g}"
        for (kind, value, taken), n in moved.items()
    )
    return Start(values, f"The present configuration lies outside the bounds of the space: {told}." if told else "")


def check_start(parameters: Mapping[str, BaseDistribution], given: Mapping[str, Any]) -> Start:
    """Take values that the user names; parameters that he leaves out are the sampler's.

    Raises:
        ValueError: a name is no parameter of the space, or a value is no number inside its bounds.
    """
    for name, value in given.items():
        if name not in parameters:
            raise ValueError(
                f"`start` may only name parameters of the space, but got {name!r}; parameters: {sorted(parameters)}."
            )
        own = parameters[name]
        if not _is_number(value) or not own._contains(own.to_internal_repr(value)):
            raise ValueError(
                f"`start` must lie inside the bounds of the space, {name} in {in_words(own)}, but got {value!r}: "
                "change it, or widen the bounds."
            )
    # numpy's numbers are not JSON
    return Start({name: int(value) if isinstance(value, Integral) else float(value) for name, value in given.items()})


def remember_start(study: optuna.Study, start: Start | None, origin: str) -> None:
    """Keep with the study what its first trial shall be, so that the trial is known again; ``None``: nothing."""
    if start is not None and start.values:
        study.set_user_attr(START, {"origin": origin, "params": start.values})
    elif study.user_attrs.get(START) is not None:
        study.set_user_attr(START, None)  # Optuna cannot remove any


def remember_carried(study: optuna.Study, carried: Carried | None) -> None:
    """Keep with a study what it takes over from an earlier one; ``None``: nothing."""
    if carried is not None or study.user_attrs.get(_CARRIED) is not None:
        study.set_user_attr(_CARRIED, None if carried is None else asdict(carried))


def carried_of(study: optuna.Study) -> Carried | None:
    """What a study takes over from an earlier one; ``None``: nothing."""
    kept = study.user_attrs.get(_CARRIED)
    return None if kept is None else Carried(kept["source"], tuple(kept["settings"]), kept["told"])


def origin_of(trial: optuna.trial.BaseTrial) -> str | None:
    """Where a trial's settings come from, once it has suggested them; ``None``: from the sampler.

    Known by the values: a trial that was interrupted and is done again has another number, and the same origin.
    """
    study = getattr(trial, "study", None)
    if study is None:
        return None
    kept, carried = study.user_attrs.get(START), carried_of(study)
    if kept and kept["params"].items() <= trial.params.items():
        return str(kept["origin"])
    if carried is not None and any(own.items() <= trial.params.items() for own in carried.settings):
        return f"carried over from {carried.source}"
    return None


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
