"""Spectrum -> power-law fit, with a status.

The continuous maximum-likelihood fit of Clauset, Shalizi and Newman, "Power-law distributions in empirical
data", SIAM Review 51 (2009): alpha by their eq. 3.1 for every candidate xmin, and the xmin with the smallest
Kolmogorov-Smirnov distance (section 3.3). The search is exact; bounds only spare it work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ww_opt.spectral.findings import Status
from ww_opt.spectral.nulls import null_quantiles

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
_BATCH = 1 << 15
_FEW = 100


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


def _search(y: Array, alpha: Array) -> tuple[Indices, Array]:
    """Find each row's start of the tail with the smallest distance (the first one on ties), exactly.

    Cutting planes: the distance at any one point of a tail bounds its ``D`` from below, and where one tail is worst,
    its neighbours are bad too. The most promising starts are evaluated in full, the bounds of all others raised at the
    points where those were worst; a start bounded above the best distance is never evaluated.
    """
    n_rows, n_starts = alpha.shape
    n_at_once = n_starts if n_starts <= _FEW else _AT_ONCE
    best, best_start = np.full(n_rows, np.inf), np.zeros(n_rows, dtype=np.intp)
    bound = np.where(np.isfinite(alpha), 0.0, np.inf)
    if n_at_once < n_starts:
        starts = np.arange(n_starts)[:, None]
        bound = _raised(bound, y, alpha, (starts + _PROBES * (n_starts - starts)).astype(np.intp)[None])
    open_rows = np.arange(n_rows)
    while open_rows.size:
        y_open, alpha_open, bound_open = y[open_rows], alpha[open_rows], bound[open_rows]
        chosen = np.argpartition(bound_open, n_at_once - 1, axis=1)[:, :n_at_once]
        distance, worst = _in_full(y_open, alpha_open, chosen)
        least = distance.min(axis=1)
        first = np.where(distance == least[:, None], chosen, n_starts).min(axis=1)
        better = (least < best[open_rows]) | ((least == best[open_rows]) & (first < best_start[open_rows]))
        best[open_rows[better]], best_start[open_rows[better]] = least[better], first[better]
        if n_at_once == n_starts:
            break
        bound_open = _raised(bound_open, y_open, alpha_open, worst[:, None, :])
        np.put_along_axis(bound_open, chosen, np.inf, axis=1)
        bound[open_rows] = bound_open
        open_rows = open_rows[bound_open.min(axis=1) <= best[open_rows]]
    return best_start, best


def _raised(bound: Array, y: Array, alpha: Array, points: Indices) -> Array:
    """Raise the bounds ``(B, n - 1)`` to the largest distance of each start's tail at the points.

    ``points``, indices into the sample, broadcasts to ``(B, n - 1, c)``; before its tail begins a start has distance 0.
    """
    starts = np.arange(alpha.shape[1])[:, None]
    rows = np.arange(len(y))[:, None, None]
    gap = y[rows, points] - y[:, :-1, None]
    np.maximum(gap, 0.0, out=gap)
    gap *= (1.0 - alpha)[:, :, None]
    np.exp(gap, out=gap)
    gap += np.maximum(points - starts, 0) / (y.shape[1] - starts) - 1.0
    return np.asarray(np.fmax(bound, np.abs(gap, out=gap).max(axis=2)))


def _in_full(y: Array, alpha: Array, chosen: Indices) -> tuple[Array, Indices]:
    """Evaluate ``D`` of the chosen starts, shape ``(B, c)``; also the index of the point where each is attained."""
    n = y.shape[1]
    gap = y[:, None, :] - np.take_along_axis(y, chosen, axis=1)[:, :, None]
    np.maximum(gap, 0.0, out=gap)  # before the tail begins, both distributions count as 0
    gap *= (1.0 - np.take_along_axis(alpha, chosen, axis=1))[:, :, None]
    np.exp(gap, out=gap)
    gap += np.maximum(np.arange(n) - chosen[:, :, None], 0) / (n - chosen)[:, :, None] - 1.0
    distance = np.abs(gap, out=gap)
    worst = distance.argmax(axis=2)
    largest = np.take_along_axis(distance, worst[:, :, None], axis=2)[:, :, 0]
    return np.where(np.isnan(largest), np.inf, largest), worst


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
