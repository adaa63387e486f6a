"""Start a study from an earlier one: another width or depth of the same family, other bounds.

Labels of two models need not have the same names. What carries over is what a kind of setting has in common: how high
it is, how it rises with depth, and how far its last label, the head, stands apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from ww_opt.search.coordinates import Array, kind_of
from ww_opt.search.ranking import ranking

__all__ = ["carried_over"]


def carried_over(earlier: optuna.Study, parameters: Mapping[str, BaseDistribution], n: int = 3) -> list[dict[str, Any]]:
    """Settings of an earlier study's best trials, for another model: to be enqueued before the first trial.

    Of each kind the level, the slope over depth and the distance of the last label are taken from the earlier trial
    (least squares on logarithms where the new bounds are logarithmic) and read off at the new labels, inside the new
    bounds. A parameter without a layer keeps its value if its name is known; what the earlier study did not search is
    left out, so that the sampler draws it.

    Args:
        earlier: a finished study, whose parameters are named ``<kind>/<label>`` in the order of depth, as
            :class:`ww_opt.LayerwiseSpace` suggests them.
        parameters: of the new model, in the order of depth: ``space.parameters(model)``.
        n: how many of the earlier trials.

    Returns:
        Settings for ``study.enqueue_trial``, the best first, each once; fewer than ``n`` where the earlier study has
        fewer trials, or they come to the same.

    Raises:
        ValueError: ``n`` is below 1, the earlier study has no trial that can be ranked, or none of its parameters is
            of a kind or name in ``parameters``.
    """
    if n < 1:
        raise ValueError(f"`n >= 1` must hold, but got n={n}.")
    best = ranking(earlier).trials
    if not best:
        raise ValueError(
            f"An earlier study must have a completed trial to start from, but {earlier.study_name!r} has none: run it "
            "first, or start without it."
        )
    found: list[dict[str, Any]] = []
    for trial in best:
        own = _carried(trial, parameters)
        if own and own not in found:
            found.append(own)
        if len(found) == n:
            break
    if not found:
        raise ValueError(
            f"An earlier study must have searched what is searched now, but {earlier.study_name!r} has "
            f"{sorted(best[0].params)[:5]} and the new space {sorted(parameters)[:5]}: start without it."
        )
    return found


def _carried(trial: FrozenTrial, parameters: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(map(kind_of, parameters)):
        if kind:
            found |= _of_kind(kind, trial, parameters)
    for name, own in parameters.items():
        if not kind_of(name) and name in trial.params and own._contains(own.to_internal_repr(trial.params[name])):
            found[name] = trial.params[name]
    return {name: found[name] for name in parameters if name in found}


def _of_kind(kind: str, trial: FrozenTrial, parameters: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    there = [float(value) for name, value in trial.params.items() if kind_of(name) == kind and _is_number(value)]
    here = {
        name: own
        for name, own in parameters.items()
        if kind_of(name) == kind and isinstance(own, FloatDistribution | IntDistribution)
    }
    if not there or not here:
        return {}
    is_log = all(own.log for own in here.values()) and min(there) > 0
    values = np.log(there) if is_log else np.array(there)
    read = _at_other_depths(values, len(here))
    places = zip(here.items(), read, strict=True)
    return {name: _inside(math.exp(value) if is_log else value, own) for (name, own), value in places}


def _at_other_depths(values: Array, n: int) -> list[float]:
    """Level and slope of all labels but the last, and the last one apart, at ``n`` labels."""
    body, last = (values[:-1], float(values[-1])) if len(values) > 1 else (values, float(values[0]))
    depth = np.linspace(-1.0, 1.0, len(body)) if len(body) > 1 else np.zeros(1)
    slope = float(depth @ (body - body.mean()) / (depth @ depth)) if len(body) > 2 else 0.0
    if n == 1:  # what is shared by all
        return [float(values.mean())]
    places = np.linspace(-1.0, 1.0, n - 1) if n > 2 else np.zeros(1)
    return [*(float(body.mean()) + slope * places).tolist(), last]


def _inside(value: float, own: FloatDistribution | IntDistribution) -> float | int:
    if own.step is not None:
        value = own.low + round((value - own.low) / own.step) * own.step
    value = min(max(value, own.low), own.high)
    return round(value) if isinstance(own, IntDistribution) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
