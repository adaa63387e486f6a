"""What each layer's settings did to that layer: rank correlations over trials, from the records alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial
from scipy.special import ndtr
from scipy.stats import rankdata

from ww_opt.search import records
from ww_opt.search.coordinates import Array, kind_of

__all__ = ["MEASURES", "LayerEffect", "beyond_chance", "is_of", "layer_effects"]

MEASURES = ("spikes", "alpha", "stable_rank", "spectral_norm")
"""Columns of a :class:`ww_opt.search.records.LayerRecord` that are asked about."""
_FEW = 8


@dataclass(frozen=True)
class LayerEffect:
    """Rank correlation of a label's own setting with a measure of one of its layers, over ``n_trials`` trials.

    ``low`` and ``high`` are its 95% interval, ``chance`` the probability that chance alone gives as much. Where labels
    were moved together, ``partial`` holds less: it is the same after what the other labels of the kind have in common
    was taken out, NaN where they never differed or there are none.
    """

    kind: str
    label: str
    layer: str
    measure: str
    correlation: float
    low: float
    high: float
    chance: float
    partial: float
    n_trials: int


def is_of(label: str, layer: str) -> bool:
    """Whether a layer is the label's: the same name, or below it. Labels of other kinds cannot be told from names."""
    return layer == label or (layer.startswith(label) and not layer[len(label)].isalnum() and layer[len(label)] != "_")


def layer_effects(trials: Sequence[FrozenTrial], names: Iterable[str]) -> tuple[LayerEffect, ...]:
    """Correlate each setting with the layers of its label, at the last look of each trial.

    Args:
        trials: comparable ones.
        names: parameters that all of them have, numbers; those without a label or a layer are left out.
    """
    seen = [(trial, look.layers) for trial in trials if (look := records.last_look(trial)) is not None]
    if len(seen) < _FEW:
        return ()
    layers = [layer.name for layer in seen[0][1] if layer.n_eigenvalues > 0]
    measured = {
        (layer, measure): np.array([_measure(rows, layer, measure) for _, rows in seen])
        for layer in layers
        for measure in MEASURES
    }
    names = [name for name in names if kind_of(name)]
    settings = {name: np.array([float(trial.params[name]) for trial, _ in seen]) for name in names}
    ranked = {name: rankdata(own) for name, own in settings.items()}
    found = []
    for name in names:
        label = name.partition("/")[2]
        own_layers = [layer for layer in layers if is_of(label, layer)]
        others = [ranked[other] for other in names if other != name and kind_of(other) == kind_of(name)]
        common = np.mean(others, axis=0) if others and own_layers else None
        for layer in own_layers:
            effects = (_effect(name, (layer, own), settings[name], measured[layer, own], common) for own in MEASURES)
            found += [effect for effect in effects if effect is not None]
    return tuple(found)


def beyond_chance(effects: Sequence[LayerEffect], level: float = 0.05) -> list[LayerEffect]:
    """Those that chance does not explain, the strongest first; Holm's correction for how many were looked at."""
    kept = []
    for place, effect in enumerate(sorted(effects, key=lambda own: own.chance)):
        if effect.chance * (len(effects) - place) > level:
            break
        kept.append(effect)
    return sorted(kept, key=lambda own: -abs(own.correlation))


def _measure(rows: Iterable[records.LayerRecord], layer: str, measure: str) -> float:
    return next((float(getattr(row, measure)) for row in rows if row.name == layer), math.nan)


def _effect(
    name: str, what: tuple[str, str], setting: Array, measured: Array, common: Array | None
) -> LayerEffect | None:
    """``None`` where either never changed, or too few trials have both."""
    known = np.isfinite(measured)
    n = int(known.sum())
    if n < _FEW or np.ptp(setting[known]) == 0.0 or np.ptp(measured[known]) == 0.0:
        return None
    own, seen = rankdata(setting[known]), rankdata(measured[known])
    correlation = _correlation(own, seen)
    partial = math.nan
    if common is not None:
        own, seen = _without(own, common[known]), _without(seen, common[known])
        if own.std() > 0.05 * n / math.sqrt(12) and seen.std() > 1e-9:  # 5% of the ranks' own spread
            partial = _correlation(own, seen)
    # Fisher's z of rank correlations: Bonett and Wright 2000, Psychometrika 65
    z, error = math.atanh(min(max(correlation, -0.9999), 0.9999)), math.sqrt((1 + correlation**2 / 2) / (n - 3))
    kind, _, label = name.partition("/")
    return LayerEffect(
        kind, label, *what, correlation, math.tanh(z - 1.96 * error), math.tanh(z + 1.96 * error),
        2 * float(ndtr(-abs(z) * math.sqrt(n - 3) / 1.03)), partial, n,
    )  # fmt: skip


def _correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _without(values: Array, common: Array) -> Array:
    """Values less their regression on what is common."""
    centred, other = values - values.mean(), common - common.mean()
    square = float(other @ other)
    return np.asarray(centred - other * (centred @ other) / square) if square > 0 else centred
