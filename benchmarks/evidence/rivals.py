"""What a score has to beat: losses, norms, prediction changes, WeightWatcher, Twin, a validation split, chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from scipy.stats import rankdata

from benchmarks.evidence.seen import Array, HeldOut, Index, Mask, Rule, Seen

__all__ = [
    "RIVALS",
    "each",
    "head_gradient",
    "late_minimum",
    "least_changes",
    "quickshift",
    "scaled_head_gradient",
    "twin",
    "twin_by_regime",
    "twin_by_threshold",
    "validation",
]

SEPARABLE = 0.01
"""Training loss, over the first, under which Twin's second rule takes the training data for separated."""


def each(function: Callable[[Seen], float]) -> Rule:
    """Make a rule of a function of one run."""
    return lambda runs: np.array([function(run) for run in runs], dtype=np.float64)


def _mean_alpha(run: Seen) -> float:
    """WeightWatcher's ``summary["alpha"]``, the mean over all layers it fits; lower is better."""
    watched = run.watched
    return -float(np.nanmean(watched)) if np.isfinite(watched).any() else math.nan


def twin(runs: Sequence[Seen]) -> Array:
    """Twin as first published (arXiv 2403.05532v1): the low-loss region of a segmentation, in it the smallest norm.

    The paper segments the loss matrix of a grid over (lr, weight decay) with Quickshift. Random trials are no picture:
    here the same algorithm runs on the points (mean log lr, mean log weight decay, log loss), which on a grid are the
    matrix. Its kernel and distance could not be read: 0.5 and 1 in units of each axis's spread. A single trial far
    ahead makes a region of its own, so that the rule comes close to the smallest loss; see ``twin_by_threshold``.
    """
    loss = _losses(runs)
    region = quickshift(_points(runs, loss))
    means = {label: np.mean(loss[region == label]) for label in np.unique(region)}
    best = region == min(means, key=lambda label: means[label])
    return _first(best, -_norms(runs), -loss)


def twin_by_threshold(runs: Sequence[Seen]) -> Array:
    """Twin's first rule with the segmentation that random trials allow: log losses in two classes, by Otsu's rule."""
    logs = np.log(np.maximum(_losses(runs), 1e-6))
    ordered = np.sort(logs)
    between = [k * (len(logs) - k) * (ordered[:k].mean() - ordered[k:].mean()) ** 2 for k in range(1, len(logs))]
    threshold = ordered[int(np.argmax(between))]
    return _first(logs <= threshold, -_norms(runs), -logs)


def _losses(runs: Sequence[Seen]) -> Array:
    """Training losses; those that are not finite count as the largest."""
    loss = np.array([run.train_loss for run in runs])
    return np.where(np.isfinite(loss), loss, np.max(loss, where=np.isfinite(loss), initial=0.0))


def _norms(runs: Sequence[Seen]) -> Array:
    return np.array([run.norm() for run in runs])


def twin_by_regime(runs: Sequence[Seen]) -> Array:
    """Twin as of 2026 (v2): smallest norm among trials that separate the training data; if none, smallest loss."""
    loss = _losses(runs)
    separated = loss < SEPARABLE * np.array([run.first_loss for run in runs])
    return _first(separated, -_norms(runs), -loss)


def _first(chosen: Mask, inside: Array, outside: Array) -> Array:
    """Order the chosen by one key, and all others behind them by another."""
    lowest = np.where(np.isnan(inside), -np.inf, inside), np.where(np.isnan(outside), -np.inf, outside)
    n = len(chosen)
    return np.asarray(np.where(chosen, n + rankdata(lowest[0]), rankdata(lowest[1])), dtype=np.float64)


def _points(runs: Sequence[Seen], loss: Array) -> Array:
    axes = []
    for kind in ("lr/", "weight_decay/"):
        axes.append([_mean_log(run.parameters, kind) for run in runs])
    axes.append(list(np.log(np.maximum(loss, 1e-6))))
    points = np.array(axes).T
    spread = points.std(0)
    return np.asarray(points / np.where(spread > 0, spread, 1.0))


def _mean_log(parameters: Mapping[str, float], kind: str) -> float:
    values = [math.log(value) for name, value in parameters.items() if name.startswith(kind)]
    return float(np.mean(values)) if values else 0.0


def _changes(run: Seen) -> Array:
    """Label Wave's curve: predictions on the training set that changed, as a moving average over three looks."""
    changed = run.probes[1:, 0]
    return np.convolve(changed, np.full(3, 1 / 3), "valid") if len(changed) >= 3 else np.empty(0)


def least_changes(run: Seen) -> float:
    """Minus Label Wave's curve where it stops (arXiv 2502.07551): at its first minimum, or at the end."""
    curve = _changes(run)
    return -float(curve[_first_minimum(curve)]) if curve.size else math.nan


def late_minimum(run: Seen) -> float:
    """When Label Wave stops, as a share of what is seen: how long a run learns before it memorises."""
    curve = _changes(run)
    return _first_minimum(curve) / curve.size if curve.size else math.nan


def _first_minimum(curve: Array) -> int:
    rising = np.flatnonzero(np.diff(curve) > 0)
    return int(rising[0]) if rising.size else curve.size - 1


def _late_changes(run: Seen) -> float:
    changed = run.probes[1:, 0]
    return -float(changed[-max(len(changed) // 4, 1) :].mean()) if len(changed) else math.nan


def head_gradient(run: Seen) -> float:
    """Minus the log norm of the head's gradient on one training batch (arXiv 2601.16874)."""
    return -math.log(max(run.probes[-1, 1], 1e-12)) if len(run.probes) else math.nan


def scaled_head_gradient(run: Seen) -> float:
    """The same over the norm of the head's weight: the paper's normalisation for classic convolutional nets."""
    return head_gradient(run) + (math.log(run.probes[-1, 2]) if len(run.probes) else math.nan)


def quickshift(points: Array, kernel: float = 0.5, max_distance: float = 1.0) -> Index:
    """Segment points ``[n, d]``: each follows its nearest neighbour of higher density (Vedaldi and Soatto, ECCV 2008).

    Returns:
        A label per point.
    """
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    density = np.exp(-0.5 * (distance / kernel) ** 2).sum(1)
    parent = np.arange(len(points))
    order = np.argsort(-density, kind="stable")
    for place, point in enumerate(order[1:], start=1):
        nearest = order[:place][np.argmin(distance[point, order[:place]])]
        if distance[point, nearest] <= max_distance:
            parent[point] = parent[nearest]  # densest first: the neighbour knows its root already
    return parent


def validation(runs: Sequence[Seen], index: Index | slice = slice(None)) -> Array:
    """Accuracy on validation examples, ties broken by the loss; holdout runs only."""
    pools = [next(iter(run.held_out.values())) for run in runs]
    return np.array([_accuracy_then_loss(pool, index) for pool in pools])


def _accuracy_then_loss(pool: HeldOut, index: Index | slice) -> float:
    loss = float(np.mean(pool.loss[index]))
    return float(np.mean(pool.right[index])) - 1e-6 * (loss if math.isfinite(loss) else 1e3)


RIVALS: Mapping[str, Rule] = MappingProxyType(
    {
        "training loss": each(lambda run: -run.train_loss),
        "sum of training losses": each(lambda run: -run.sum_of_losses),
        "Twin, v1, Quickshift": twin,
        "Twin, v1, two classes": twin_by_threshold,
        "Twin, v2": twin_by_regime,
        "Label Wave, least changes": each(least_changes),
        "Label Wave, where it stops": each(late_minimum),
        "prediction changes, last quarter": each(_late_changes),
        "head gradient": each(head_gradient),
        "head gradient over weight": each(scaled_head_gradient),
        "parameter norm": each(lambda run: -run.norm()),
        "WeightWatcher mean alpha": each(_mean_alpha),
    }
)
"""Rivals that need no held-out example; the validation split is judged apart, since it is drawn many times."""
