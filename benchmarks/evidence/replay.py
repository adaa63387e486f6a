"""Replay pruners on kept runs: in which order trials come is drawn anew many times; what is saved, what is lost.

Arithmetic alone: a trial is a row of numbers at looks, lower is better, and a pruner decides by those before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

__all__ = ["Outcome", "Rung", "after", "asha", "halving", "hyperband", "median", "orders", "outcome"]


@dataclass(frozen=True)
class Rung:
    """One comparison: after ``percent`` of the run, by ``values`` ``[n]``, the share that goes on."""

    percent: float
    values: Array
    share: float


@dataclass(frozen=True)
class Outcome:
    """Means over the draws: share of steps saved, points of accuracy lost beside the pick of all, and the worst draw.

    ``ninth`` is the ninth tenth of the points lost over the draws.
    """

    saved: float
    lost: float
    ninth: float = 0.0


def orders(n: int, n_draws: int, trend: float = 0.0, quality: Array | None = None, seed: int = 0) -> Index:
    """Orders in which ``n`` trials come, ``[n_draws, n]``.

    Args:
        n: trials.
        n_draws: orders.
        trend: 0: any order; else how much better later trials are, in standard deviations of ``quality`` from the first
            to the last: a search that learns.
        quality: of each trial, higher is better.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    if not trend or quality is None:
        return np.array([generator.permutation(n) for _ in range(n_draws)])
    scaled = (quality - quality.mean()) / (quality.std() or 1.0)
    # noise such that quality explains what the trend says
    keys = trend * scaled / math.sqrt(12.0) + generator.normal(size=(n_draws, n))
    return np.argsort(keys, axis=1)


def halving(rungs: Sequence[Rung], drawn: Index, n_startup: int = 5, n_spared: int = 1) -> Array:
    """Percent of its run that each trial came to, ``[n_draws, n]`` in the order of the draws: our rule of ranks."""
    percents = np.full(drawn.shape, 100.0)
    values = [rung.values[drawn] for rung in rungs]
    reached = [np.zeros(drawn.shape, bool) for _ in rungs]
    for place in range(drawn.shape[1]):
        alive = np.ones(len(drawn), bool)
        for rung, own, seen in zip(rungs, values, reached, strict=True):
            seen[:, place] = alive
            n_others = seen[:, :place].sum(1)
            n_better = (seen[:, :place] & (own[:, :place] < own[:, place, None])).sum(1)
            n_kept = np.ceil(rung.share * (n_others + 1) - 1e-9)
            is_out = alive & (n_others >= n_startup) & (n_better >= n_kept) & (place >= n_spared)
            percents[is_out, place] = rung.percent
            alive &= ~is_out
    return percents


def asha(values: Mapping[int, Array], drawn: Index, reduction: int = 4, percents: Sequence[int] = (5, 20, 80)) -> Array:
    """Optuna's ``SuccessiveHalvingPruner``: the best of a rung alone until there are twice ``reduction`` in it."""
    came = np.full(drawn.shape, 100.0)
    reached = [np.zeros(drawn.shape, bool) for _ in percents]
    for place in range(drawn.shape[1]):
        alive = np.ones(len(drawn), bool)
        for percent, seen in zip(percents, reached, strict=True):
            own = values[percent][drawn]
            seen[:, place] = alive
            n_better = (seen[:, :place] & (own[:, :place] < own[:, place, None])).sum(1)
            is_out = alive & (n_better >= np.maximum(seen[:, : place + 1].sum(1) // reduction, 1))
            came[is_out, place] = percent
            alive &= ~is_out
    return came


def hyperband(values: Mapping[int, Array], drawn: Index, seed: int = 0) -> Array:
    """Optuna's ``HyperbandPruner`` with a reduction of 3: brackets from 5, 15 and 45 % on, and one without rungs."""
    rungs = (5, 15, 45)
    brackets = [rungs[first:] for first in range(len(rungs) + 1)]
    sizes = np.array([math.ceil(4 * 3 ** (3 - first) / (4 - first)) for first in range(4)], float)
    of = np.random.default_rng(seed).choice(4, size=drawn.shape, p=sizes / sizes.sum())
    came = np.full(drawn.shape, 100.0)
    reached = {(b, percent): np.zeros(drawn.shape, bool) for b, own in enumerate(brackets) for percent in own}
    looked = {percent: values[percent][drawn] for percent in rungs}
    for place in range(drawn.shape[1]):
        alive = np.ones(len(drawn), bool)
        for percent in rungs:
            for bracket, own in enumerate(brackets):
                if percent not in own:
                    continue
                seen, here = reached[bracket, percent], alive & (of[:, place] == bracket)
                seen[:, place] = here
                n_better = (seen[:, :place] & (looked[percent][:, :place] < looked[percent][:, place, None])).sum(1)
                is_out = here & (n_better >= np.maximum(seen[:, : place + 1].sum(1) // 3, 1))
                came[is_out, place] = percent
                alive &= ~is_out
    return came


def median(values: Mapping[int, Array], drawn: Index, n_startup: int = 5) -> Array:
    """Optuna's ``MedianPruner``: at each look the best so far beside the median of what completed trials had there."""
    came = np.full(drawn.shape, 100.0)
    percents = sorted(percent for percent in values if 0 < percent < 100)
    looked = {percent: values[percent][drawn] for percent in percents}
    completed = np.zeros(drawn.shape, bool)
    for place in range(drawn.shape[1]):
        alive = np.ones(len(drawn), bool)
        best = np.full(len(drawn), np.inf)
        is_enough = completed.sum(1) >= n_startup
        for percent in percents:
            own = looked[percent]
            best = np.fmin(best, own[:, place])
            others = np.where(completed[:, :place], own[:, :place], np.nan)
            limit = np.full(len(drawn), np.inf)
            if is_enough.any():
                limit[is_enough] = np.nanmedian(others[is_enough], axis=1)
            is_out = alive & is_enough & (best > limit)
            came[is_out, place] = percent
            alive &= ~is_out
        completed[:, place] = alive
    return came


def after(percent: float, drawn: Index) -> Array:
    """Everybody stops at ``percent``: i-Epoch (arXiv 2404.04111)."""
    return np.full(drawn.shape, float(percent))


def outcome(came: Array, drawn: Index, final: Array, truth: Array, *, is_cut: bool = False) -> Outcome:
    """Sum up a replay.

    Args:
        came: percent of the run that each trial came to.
        drawn: the order of the trials.
        final: what trials are picked by, ``[n]``, lower is better.
        truth: accuracies, ``[n]``; those of trials that ran to their end.
        is_cut: everybody was stopped early, and the pick is trained once more.

    Returns:
        Beside the pick of all by the same ``final``.
    """
    values = np.where((came >= 100.0) | is_cut, final[drawn], np.inf)
    picked = drawn[np.arange(len(drawn)), values.argmin(1)]
    points = 100.0 * (truth[int(np.argmin(final))] - truth[picked])
    saved = 1.0 - came.sum(1) / (100.0 * drawn.shape[1]) - (1.0 / drawn.shape[1] if is_cut else 0.0)
    return Outcome(float(saved.mean()), float(points.mean()), float(np.quantile(points, 0.9)))
