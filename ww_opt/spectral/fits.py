"""Spectrum -> power-law fit, with a status.

The continuous maximum-likelihood fit of Clauset, Shalizi and Newman, "Power-law distributions in empirical
data", SIAM Review 51 (2009): alpha by their eq. 3.1 for every candidate xmin, and the xmin with the smallest
Kolmogorov-Smirnov distance (section 3.3). The search is exact; bounds only spare it work. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ww_opt.spectral.findings import Status

Array = NDArray[np.float64]

__all__ = ["PowerLawFit", "fit_power_law", "fit_power_laws", "hill"]

MIN_TAIL = 8
"""Points that a tail needs: samples under ``SHORT`` may not end in a shorter one."""
SHORT = 20
"""Samples under this size use the unbiased estimator, ``alpha = 1 + (n - 1) / S``."""
FLAT = 1e-4
"""ln(max/min) under which eigenvalues count as equal: float32 orthogonal matrices show 1e-6."""

_PROBES = (6, 24)
_CHUNK = 1 << 19


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
    """Fit a power law to each sample; samples of equal size are fitted together.

    Args:
        samples: arrays of shape ``(n,)``, any order, unit free. Values that are not positive are left out.

    Returns:
        One fit per sample, in order. A sample that cannot be fitted gives NaN and a status in words.
    """
    fits: list[PowerLawFit | None] = [None] * len(samples)
    by_size: dict[int, list[tuple[int, Array]]] = {}
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
            by_size.setdefault(x.size, []).append((place, x))
    for members in by_size.values():
        x = np.stack([sample for _, sample in members])
        for (place, _), fit in zip(members, _fit_sorted(x), strict=True):
            fits[place] = fit
    return [fit for fit in fits if fit is not None]


def _fit_sorted(x: Array) -> list[PowerLawFit]:
    """Fit every row of ``x`` (shape ``(B, n)``, positive, ascending)."""
    y = np.log(x)
    n = x.shape[1]
    alpha = _alphas(y)
    best, distance = _search(y, alpha)
    result = []
    for row, (start, D) in enumerate(zip(best, distance, strict=True)):
        exponent = float(alpha[row, start])
        n_tail = int(n - start)
        sigma = (exponent - 1.0) / float(np.sqrt(n_tail))
        result.append(PowerLawFit(exponent, float(x[row, start]), float(x[row, -1]), float(D), sigma, n_tail))
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


def _search(y: Array, alpha: Array) -> tuple[NDArray[np.intp], Array]:
    """Find each row's start of the tail with the smallest distance (the first one on ties), exactly.

    Lower bounds from a few points of each tail rule out most starts; what is left is evaluated in full, most
    promising first.
    """
    n_rows, n_starts = alpha.shape
    row, start = np.nonzero(np.isfinite(alpha))
    best = np.full(n_rows, np.inf)
    best_start = np.zeros(n_rows, dtype=np.intp)
    bound = np.zeros(row.size)
    for n_points in _PROBES if n_starts >= 2 * _PROBES[-1] else ():
        bound = np.maximum(bound, _distance_at(y, alpha, row, start, n_points))
        lead = _first_of_each(row, bound, n_rows)
        _improve(y, alpha, row[lead], start[lead], best, best_start)
        keep = bound <= best[row]
        row, start, bound = row[keep], start[keep], bound[keep]
    order = np.argsort(bound, kind="stable")
    row, start, bound = row[order], start[order], bound[order]
    step = max(_CHUNK // (n_starts + 1), 1)
    while row.size:
        _improve(y, alpha, row[:step], start[:step], best, best_start)
        keep = bound[step:] <= best[row[step:]]
        row, start, bound = row[step:][keep], start[step:][keep], bound[step:][keep]
    return best_start, best


def _first_of_each(row: NDArray[np.intp], bound: Array, n_rows: int) -> NDArray[np.intp]:
    order = np.lexsort((bound, row))
    first = np.searchsorted(row[order], np.arange(n_rows))
    return order[first[first < order.size]]


def _distance_at(y: Array, alpha: Array, row: NDArray[np.intp], start: NDArray[np.intp], n_points: int) -> Array:
    """Largest distance over ``n_points`` spread over each tail: a lower bound of ``D``."""
    count = y.shape[1] - start
    place = ((np.arange(1, n_points + 1) / n_points) * (count[:, None] - 1)).astype(np.intp)
    gap = y[row[:, None], start[:, None] + place] - y[row, start][:, None]
    return np.asarray(
        np.abs(1.0 - np.exp((1.0 - alpha[row, start])[:, None] * gap) - place / count[:, None]).max(axis=1)
    )


def _improve(
    y: Array, alpha: Array, row: NDArray[np.intp], start: NDArray[np.intp], best: Array, best_start: NDArray[np.intp]
) -> None:
    """Evaluate ``D`` in full for the given starts and keep the smallest of each row, in place."""
    n = y.shape[1]
    place = np.arange(n)[None, :] - start[:, None]
    gap = y[row] - y[row, start][:, None]
    np.maximum(gap, 0.0, out=gap)
    gap *= (1.0 - alpha[row, start])[:, None]
    np.exp(gap, out=gap)
    # before the tail begins, both distributions count as 0
    distance = np.abs(1.0 - gap - np.maximum(place, 0) / (n - start)[:, None]).max(axis=1)
    for r, s, d in zip(row.tolist(), start.tolist(), distance.tolist(), strict=True):
        if d < best[r] or (d == best[r] and s < best_start[r]):
            best[r], best_start[r] = d, s


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
