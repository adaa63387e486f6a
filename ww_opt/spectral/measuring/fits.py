"""Spectrum -> power-law fit, with a status.

The continuous maximum-likelihood fit of Clauset, Shalizi and Newman, "Power-law distributions in empirical
data", SIAM Review 51 (2009): alpha by their eq. 3.1 for every candidate xmin, and the xmin with the smallest
Kolmogorov-Smirnov distance (section 3.3). The search is exact; bounds only spare it work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ww_opt.spectral.findings import Status
from ww_opt.spectral.measuring.random_matrices import null_quantiles

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

__all__ = [
    "FingerFit",
    "PowerLawFit",
    "fit_power_law",
    "fit_power_laws",
    "fit_without_fingers",
    "hill",
    "hill_excess",
]

MIN_TAIL = 8
"""Points that a tail needs: samples under ``SHORT`` may not end in a shorter one."""
SHORT = 20
"""Samples under this size use the unbiased estimator, ``alpha = 1 + (n - 1) / S``."""
FLAT = 1e-4
"""ln(max/min) under which eigenvalues count as equal: float32 orthogonal matrices show 1e-6."""

_PROBES = np.linspace(0.05, 0.95, 8)
_AT_ONCE = 4
_BATCH = 1 << 13
_FEW = 1 << 14


@dataclass(frozen=True)
class PowerLawFit:
    """Power law ``p(x) ~ x^-alpha`` on ``[xmin, xmax]``; all numbers NaN (``n_tail`` 0) unless ``status`` is SUCCESS.

    ``sigma`` is the asymptotic standard error ``(alpha - 1) / sqrt(n_tail)`` (eq. 3.2), for a *known* xmin.
    ``D`` is the one-sided Kolmogorov-Smirnov distance of the tail, as the ``powerlaw`` package computes it.
    """

    alpha: float
    xmin: float
    xmax: float
    D: float
    sigma: float
    n_tail: int
    status: Status = Status.SUCCESS


def _unfitted(status: Status) -> PowerLawFit:
    nan = float("nan")
    return PowerLawFit(nan, nan, nan, nan, nan, 0, status)


def fit_power_law(values: Array) -> PowerLawFit:
    """Fit a power law to positive ``values`` (shape ``(n,)``, any order); see :func:`fit_power_laws`."""
    return fit_power_laws([np.asarray(values, dtype=np.float64)])[0]


def fit_power_laws(samples: Sequence[Array]) -> list[PowerLawFit]:
    """Fit a power law to each sample; samples of similar size are fitted together.

    Args:
        samples: arrays of shape ``(n,)``, any order, unit free. Values that are not positive are left out.

    Returns:
        One fit per sample, in order. A sample that cannot be fitted gives NaN and a status in words.
    """
    fits: list[PowerLawFit | None] = [None] * len(samples)
    found: list[tuple[int, Array]] = []
    for place, sample in enumerate(samples):
        if not np.all(np.isfinite(sample)):
            fits[place] = _unfitted(Status.NON_FINITE)
            continue
        x = np.sort(sample[sample > 0])
        if x.size == 0:
            fits[place] = _unfitted(Status.ALL_ZERO if sample.size else Status.EMPTY)
        elif x.size < MIN_TAIL:
            fits[place] = _unfitted(Status.TOO_FEW)
        elif np.log(x[-1]) - np.log(x[0]) < FLAT:  # difference of logs: the ratio may overflow
            fits[place] = _unfitted(Status.ALL_EQUAL)
        else:
            found.append((place, x))
    for members in _batches(found):
        for (place, _), fit in zip(members, _fit_together([x for _, x in members]), strict=True):
            fits[place] = fit
    return [fit for fit in fits if fit is not None]


def _batches(found: list[tuple[int, Array]]) -> list[list[tuple[int, Array]]]:
    """Group samples by size: alike within a fifth, short ones (another estimator) equal, not too many entries."""
    groups: list[list[tuple[int, Array]]] = []
    for item in sorted(found, key=lambda item: -item[1].size):
        largest = groups[-1][0][1].size if groups else 0
        alike = item[1].size >= 0.8 * largest if item[1].size >= SHORT else item[1].size == largest
        if groups and alike and len(groups[-1]) * largest < _BATCH:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _fit_together(samples: list[Array]) -> list[PowerLawFit]:
    """Fit ascending, positive samples of similar size.

    Tails are counted from the top, so that a shorter sample is filled up from below: no tail may start there.
    """
    n = max(x.size for x in samples)
    x = np.stack([np.concatenate([np.full(n - own.size, own[0]), own]) for own in samples])
    y = np.log(x)
    alpha = _alphas(y)
    for row, own in enumerate(samples):
        alpha[row, : n - own.size] = np.nan
    best, distance = _search(y, alpha)
    result = []
    for row, (start, D) in enumerate(zip(best.tolist(), distance.tolist(), strict=True)):
        exponent, n_tail = float(alpha[row, start]), n - start
        sigma = (exponent - 1.0) / n_tail**0.5
        result.append(PowerLawFit(exponent, float(x[row, start]), float(x[row, -1]), D, sigma, n_tail))
    return result


def _alphas(y: Array) -> Array:
    """Exponent for every start of the tail but the last: shape ``(B, n - 1)``, NaN where none is defined."""
    n = y.shape[1]
    above = np.arange(n - 1, 0, -1)
    # sum over the tail of ln(x / xmin) without cancellation: exact zero on ties
    S = np.cumsum((np.diff(y, axis=1) * above)[:, ::-1], axis=1)[:, ::-1]
    count = above + 1
    with np.errstate(divide="ignore"):
        alpha = 1.0 + (count - 1 if n < SHORT else count) / S
    alpha[~np.isfinite(alpha)] = np.nan
    if n < SHORT:
        alpha[:, count < MIN_TAIL] = np.nan
    return np.asarray(alpha)


class _Tails(NamedTuple):
    """Tails that may be the best: index of the start, logarithm and ``1 - alpha`` there, 1 / points in the tail."""

    start: Array
    y: Array
    slope: Array
    share: Array

    def at(self, index: Any) -> _Tails:
        return _Tails(*(values[index] for values in self))


def _search(y: Array, alpha: Array) -> tuple[Indices, Array]:
    """Find each row's start of the tail with the smallest distance (the first one on ties), exactly.

    Cutting planes: the distance at any one point of a tail bounds its ``D`` from below, and where one tail is worst,
    its neighbours are bad too. The most promising tails are evaluated in full, those bounded above the best distance
    are dropped, and the bounds of the others raised at the points where the evaluated ones were worst.
    """
    (n_rows, n_starts), n = alpha.shape, y.shape[1]
    best, best_start = np.full(n_rows, np.inf), np.zeros(n_rows)
    starts = np.arange(float(n_starts))  # integers would be converted at each use, at a multiple of the cost
    tails = _Tails(starts[None], y[:, :-1], 1.0 - alpha, 1.0 / (n - starts)[None])
    bound = np.where(np.isfinite(alpha), 0.0, np.inf)
    n_at_once = n_starts if alpha.size * n <= _FEW else min(_AT_ONCE, n_starts)
    if n_at_once < n_starts:
        points = np.floor(starts + _PROBES[:, None] * (n_starts - starts))
        bound = np.fmax(bound, _distances(tails.at(np.s_[:, None]), y[:, points.astype(np.intp)], points).max(axis=1))
    tails = _Tails(*np.broadcast_arrays(*tails))
    rows = np.arange(n_rows)  # those with open tails
    while True:
        across = np.arange(rows.size)[:, None]
        few = across, np.argpartition(bound, n_at_once - 1, axis=1)[:, :n_at_once]
        chosen = tails.at(few)
        distance = _distances(chosen.at(np.s_[:, :, None]), y[rows, None], np.arange(float(n)))
        worst = distance.argmax(axis=2)
        largest = distance[across, np.arange(n_at_once), worst]
        largest[np.isnan(largest)] = np.inf
        least = largest.min(axis=1)
        first = np.where(largest == least[:, None], chosen.start, n_starts).min(axis=1)
        better = (least < best[rows]) | ((least == best[rows]) & (first < best_start[rows]))
        best[rows[better]], best_start[rows[better]] = least[better], first[better]
        bound[few] = np.inf
        n_open = (bound <= best[rows, None]).sum(axis=1)
        size = int(n_open.max())
        if size == 0:
            return best_start.astype(np.intp), best
        across = np.flatnonzero(n_open)[:, None]
        most = across, np.argpartition(bound[across[:, 0]], size - 1, axis=1)[:, :size]
        rows, worst, tails, bound = rows[across[:, 0]], worst[across[:, 0]], tails.at(most), bound[most]
        at = y[rows[:, None], worst]
        raised = _distances(tails.at(np.s_[:, None]), at[:, :, None], worst[:, :, None].astype(float))
        bound = np.fmax(bound, raised.max(axis=1))
        n_at_once = min(n_at_once, size)


def _distances(tails: _Tails, at: Array, points: Array) -> Array:
    """Distance between each tail's empirical and fitted distribution at the points; 0 before the tail begins.

    ``points``, indices into the sample, and ``at``, its logarithms there, broadcast against the tails.
    """
    gap = at - tails.y
    np.maximum(gap, 0.0, out=gap)
    gap *= tails.slope
    np.exp(gap, out=gap)
    below = (points - tails.start) * tails.share
    np.maximum(below, 0.0, out=below)
    gap += below
    gap -= 1.0
    return np.asarray(np.abs(gap, out=gap))


def hill(values: Array, share: float = 0.5) -> float:
    """Hill's estimate of alpha from the largest ``share`` of positive ``values`` (TempBalance, NeurIPS 2023, eq. 2).

    Continuous in the weights and O(n), but biased by the aspect ratio. NaN for fewer than 2 values in the tail.
    """
    x = np.sort(values[values > 0])
    k = int(x.size * share)
    if k < 2:
        return float("nan")
    S = float(np.log(x[-k:] / x[-k - 1 if k < x.size else 0]).sum())
    return 1.0 + k / S if S > 0 else float("nan")


def hill_excess(values: Array, N: int, M: int, share: float = 0.5) -> float:
    """Hill's estimate less that of a random ``N x M`` matrix: negative where the tail is heavier than noise.

    The raw estimate is 2.15 for square noise and 5.5 at an aspect ratio of 10, so it compares shapes, not training. NaN
    as in :func:`hill`. ``values`` are one matrix's eigenvalues; pooled ones compare with the same null.
    """
    return hill(values, share) - hill(null_quantiles(N, M), share)


@dataclass(frozen=True)
class FingerFit:
    """A fit that does not hang on the largest few eigenvalues ("fingers").

    ``alpha`` is the median over fits without the top 0, 1, .. eigenvalues, ``spread`` the range of these; ``n_fingers``
    is the smallest number to leave out for an alpha within its ``sigma`` of the median. NaN and 0 where nothing was
    fitted.
    """

    alpha: float
    spread: float
    n_fingers: int
    fits: tuple[PowerLawFit, ...]


def fit_without_fingers(values: Array, max_fingers: int = 5) -> FingerFit:
    """Fit without the largest 0, 1, .. ``max_fingers`` values; see :class:`FingerFit`.

    Raises:
        ValueError: ``max_fingers`` is negative.
    """
    if max_fingers < 0:
        raise ValueError(f"`max_fingers >= 0` must hold, but got max_fingers={max_fingers}.")
    x = np.sort(values)
    fits = tuple(fit_power_laws([x[: x.size - k] for k in range(max_fingers + 1)]))
    alphas = np.array([fit.alpha for fit in fits])
    if np.isnan(alphas).all():
        return FingerFit(float("nan"), float("nan"), 0, fits)
    middle = float(np.nanmedian(alphas))
    near = [k for k, fit in enumerate(fits) if abs(fit.alpha - middle) <= fit.sigma]
    return FingerFit(middle, float(np.nanmax(alphas) - np.nanmin(alphas)), near[0] if near else 0, fits)
