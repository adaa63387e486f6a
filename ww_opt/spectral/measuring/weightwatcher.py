"""WeightWatcher's own columns, number for number, for people who switch or compare.

Checked against WeightWatcher 0.7.7. What looks odd here is its convention, and each oddity is named where it stands;
the ``default`` convention does without them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ww_opt.spectral.measuring.fits import Array
from ww_opt.spectral.measuring.spectra import exact_eigenvalues
from ww_opt.spectral.rows import LayerDiagnostics

__all__ = [
    "PRECISION",
    "frame_columns",
    "jensen_shannon",
    "mp_fit",
    "norm_columns",
    "random_columns",
    "shuffled",
    "volume_columns",
]

PRECISION = float(np.finfo(np.float64).eps)
_EPSILON = 1e-10  # its guard against log 0, added to every probability and to the rank


def norm_columns(values: Array, pooled: Array, N: int) -> dict[str, list[Any]]:
    """Columns of ``analyze()`` that follow from eigenvalues: one list each, with an item per layer.

    ``sv_min`` is the *largest* of the matrices' smallest singular values.

    Args:
        values: eigenvalues of the layers' matrices, ascending, shape ``(G, k, M)``.
        pooled: the same by layer, ascending, shape ``(G, k M)``.
        N: the longer side of the matrices.
    """
    largest, total = pooled[:, -1], pooled.sum(axis=1)
    singular = np.sqrt(pooled)
    rank = (singular > singular[:, -1:] * N * PRECISION).sum(axis=1)
    p = pooled / np.maximum(total, np.finfo(np.float64).tiny)[:, None] + _EPSILON
    return {
        "has_esd": [True] * len(pooled),
        "num_evals": [pooled.shape[1]] * len(pooled),
        "lambda_max": largest.tolist(),
        "sv_max": singular[:, -1].tolist(),
        "sv_min": np.sqrt(values[..., 0].max(axis=1)).tolist(),
        "weak_rank_loss": (pooled < 1e-6).sum(axis=1).tolist(),
        "norm": total.tolist(),
        "spectral_norm": largest.tolist(),  # squared, as in its tables
        "matrix_rank": rank.tolist(),
        "entropy": (-(p * np.log(p)).sum(axis=1) / np.log(rank + _EPSILON)).tolist(),
    }


def volume_columns(values: Array) -> dict[str, Any]:
    """ERG columns (SETOL, arXiv 2507.17912): where the product of the largest eigenvalues, mean 1, falls under 1.

    Its names are swapped: ``detX_val`` is in the units of the weights, ``detX_val_unrescaled`` in those of mean 1.
    """
    x = np.sort(values.ravel())
    scaled = x * x.size / x.sum()
    with np.errstate(divide="ignore"):
        below = np.flatnonzero(np.cumsum(np.log(scaled[:0:-1])) < 0)
    start = x.size - 1 - int(below[0]) if below.size else 1
    count = x.size - start if below.size else x.size
    return {
        "detX_num": count,
        "num_ERG_spikes": count,
        "detX_val": float(x[start]),
        "detX_val_unrescaled": float(scaled[start]),
    }


def shuffled(stack: Array, generator: np.random.RandomState, n_replicas: int = 1) -> Array:
    """Pooled eigenvalues, ascending, of ``n_replicas`` shuffles of each matrix of ``stack``, ``(k, rows, columns)``.

    Drawn from the legacy generator, in its order, so that ``np.random.seed(s)`` there is ``RandomState(s)`` here.
    """
    drawn = []
    for _ in range(n_replicas):
        for matrix in stack:
            entries = matrix.flatten()
            generator.shuffle(entries)
            drawn.append(entries.reshape(matrix.shape))
    replicas = torch.from_numpy(np.stack(drawn)).to(torch.float64)
    replicas = replicas if replicas.shape[1] >= replicas.shape[2] else replicas.transpose(1, 2)
    return np.sort(exact_eigenvalues(replicas).ravel())


def random_columns(values: Array, null: Array, second: Array) -> dict[str, Any]:
    """Columns of ``randomize``: against the shuffled spectra ``null``, and ``second`` of the layer's own size."""
    pooled = np.sort(values.ravel())
    return {
        "max_rand_eval": float(null[-1]),
        "rand_distance": jensen_shannon(pooled, second),
        "ww_softrank": float(second[-1] / pooled[-1]),
        "ww_maxdist": float(pooled[-1] - second[-1]),
    }


def jensen_shannon(p: Array, q: Array) -> float:
    """Distance of two sorted spectra of one size, each taken as a distribution over ranks, as WeightWatcher does."""
    from scipy import stats  # seconds to import, and few ask for this

    middle = (p + q) / 2
    return float(np.sqrt((stats.entropy(p, middle) + stats.entropy(q, middle)) / 2))


def mp_fit(values: Array, N: int, M: int) -> dict[str, float]:
    """Fit Marchenko-Pastur's law to a kernel density, sigma by brute force.

    Keys: ``num_spikes, sigma_mp, mp_softrank, bulk_min, bulk_max, W_scale``. At ``Q = 1`` its model of the singular
    values holds sigma near 1 whatever the data, since the radius of the quarter circle does not follow it; the
    least-squares sigma is ``sqrt(sum f^2 / sum f y)``. Its margin over the bulk is the root of the Tracy-Widom term.
    """
    from scipy import optimize

    Q = N / M
    x = np.sort(values.ravel())
    scale2 = x.size / x.sum()
    scaled = x * scale2
    unit = math.sqrt(scaled[-1] / (1 + 1 / math.sqrt(Q)) ** 2)
    residual = _Residual(np.sqrt(scaled) if Q == 1 else scaled, Q)
    ranges = (slice(0.05 * unit, 2.0 * unit, 0.01 * unit),)
    sigma = float(optimize.brute(residual, ranges, full_output=True)[0][0])
    high = (sigma * (1 + 1 / math.sqrt(Q))) ** 2
    low = (sigma * (1 - 1 / math.sqrt(Q))) ** 2
    margin = math.sqrt(1 / math.sqrt(Q) * (high / M) ** (2 / 3))
    return {
        "num_spikes": int((scaled > high + margin).sum()),
        "sigma_mp": sigma,
        "mp_softrank": high / float(scaled[-1]),
        "bulk_min": low / scale2,
        "bulk_max": high / scale2,
        "W_scale": math.sqrt(scale2),
    }


class _Residual:
    """Sum of squares between the kernel density of a sample and the law with a given sigma."""

    def __init__(self, sample: Array, Q: float, bandwidth: float = 0.1) -> None:
        grid = np.linspace(0, sample.max() + 0.5, 1000)
        density = _linear_kernel_density(sample, grid, bandwidth)
        keep = density > 0.01
        self._Q, self._x, self._y = Q, grid[keep], density[keep]
        self._mode = self._x[np.argmax(self._y)]

    def __call__(self, parameters: Array) -> float:
        sigma = float(np.squeeze(parameters))
        x, Q = self._x, self._Q
        if Q == 1:
            law = np.sqrt(np.maximum(4 - x**2, 0)) / (np.pi * sigma * sigma)
            return float(((law - self._y) ** 2).sum())
        high = (sigma * (1 + math.sqrt(1 / Q))) ** 2
        low = (sigma * (1 - math.sqrt(1 / Q))) ** 2
        if high < self._mode or high > x.max() or low > self._mode:
            return float(1000.0**2 * x.size)
        law = np.sqrt(np.maximum((high - x) * (x - low), 0)) * Q / (2 * np.pi * sigma * sigma * np.maximum(x, 1e-300))
        return float(((law - self._y) ** 2).sum())


def _linear_kernel_density(sample: Array, grid: Array, bandwidth: float) -> Array:
    density = np.zeros(grid.size)
    for start in range(0, sample.size, 512):  # bounds the memory
        gap = np.abs(grid[:, None] - sample[None, start : start + 512])
        density += np.maximum(1 - gap / bandwidth, 0).sum(axis=1)
    return density / (bandwidth * sample.size)


def frame_columns(row: LayerDiagnostics) -> dict[str, Any]:
    """WeightWatcher's names for a row of its convention; ``name`` stays the full name.

    Our ``spikes`` and ``traps`` are its own here, NaN unless ``mp_fit`` and ``randomize`` asked for them.
    """
    extra = row.extra
    columns = {
        "longname": row.name,
        "layer_type": "dense" if row.kind == "linear" else row.kind,
        "rf": row.n_matrices,
        "num_pl_spikes": row.n_tail,
        "alpha_weighted": row.alpha_hat,
        "status": "failed" if math.isnan(row.alpha) else "success",
        "warning": "over-trained" if row.alpha < 2 else "under-trained" if row.alpha > 6 else "",
        "spikes": extra.get("num_spikes", math.nan),
        "traps": extra.get("num_traps", math.nan),
    }
    if "detX_num" in extra:
        columns["ERG_gap"] = extra["detX_num"] - row.n_tail
    return {**columns, **extra}
