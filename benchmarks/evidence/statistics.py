"""How well a score ranks trials: rank correlations, plain and partial, accuracy lost by the pick, bootstraps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
Statistic = Callable[[NDArray[np.int64]], Array]

__all__ = ["interval", "lost", "partial_spearman", "resamples", "spearman"]

RIDGE = 1e-6
"""Added to the covariates' sums of squares, for resamples in which they are not independent; too small to matter."""
LEAST = 1e-4
"""Share of a score's variance that must be left for a partial correlation to mean anything; below it counts as 0."""


def _ranks(values: Array) -> Array:
    """Standardised average ranks along the last axis; NaN ranks last. A constant gives zeros."""
    ranks = rankdata(np.where(np.isnan(values), -np.inf, values), axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    spread = np.sqrt((ranks**2).mean(-1, keepdims=True))
    return np.asarray(np.divide(ranks, spread, out=np.zeros_like(ranks), where=spread > 0))


def spearman(score: Array, truth: Array) -> Array:
    """Rank correlation along the last axis; 0 where either is constant."""
    return np.asarray((_ranks(score) * _ranks(truth)).mean(-1))


def partial_spearman(score: Array, truth: Array, covariates: Array) -> Array:
    """Correlation of what ranks have left when a linear regression on the ranks of the covariates is taken out.

    Args:
        score: ``[..., n]``.
        truth: ``[..., n]``.
        covariates: ``[..., p, n]``.
    """
    z = _ranks(covariates)
    gram = z @ np.swapaxes(z, -1, -2) + RIDGE * np.eye(z.shape[-2])
    left = []
    for values in (score, truth):
        ranks = _ranks(values)[..., None, :]
        weights = np.linalg.solve(gram, z @ np.swapaxes(ranks, -1, -2))
        left.append((ranks - np.swapaxes(weights, -1, -2) @ z)[..., 0, :])
    a, b = (item - item.mean(-1, keepdims=True) for item in left)
    norms = [(item**2).mean(-1) for item in (a, b)]
    product = (a * b).mean(-1)
    enough = (norms[0] > LEAST) & (norms[1] > LEAST)
    return np.asarray(np.divide(product, np.sqrt(norms[0] * norms[1]), out=np.zeros_like(product), where=enough))


def lost(score: Array, truth: Array, pool: Array | None = None) -> Array:
    """Accuracy that the best-scored trial has less than the best trial, along the last axis; ties share.

    Args:
        score: higher is better; NaN is never picked unless there is nothing else.
        truth: sealed accuracies.
        pool: where the best is looked for; ``truth`` by default.
    """
    clean = np.where(np.isnan(score), -np.inf, score)
    picked = clean == clean.max(-1, keepdims=True)
    mean = (truth * picked).sum(-1) / picked.sum(-1)
    return np.asarray((truth if pool is None else pool).max(-1) - mean)


def resamples(n: int, count: int = 300, seed: int = 0) -> NDArray[np.int64]:
    """Bootstrap indices, ``[count, n]``."""
    return np.random.default_rng(seed).integers(0, n, (count, n))


def interval(draws: Array, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval of bootstrap draws."""
    tail = (1.0 - level) / 2
    low, high = np.quantile(draws, (tail, 1.0 - tail))
    return float(low), float(high)
