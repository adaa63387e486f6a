"""What a layer's spectrum would look like had it learnt nothing: edges, traps, effective rank.

The null of a layer are independent entries with the layer's own row and column variances: a matrix
``X_ij = sqrt(a_i b_j) z_ij``. Its upper edge solves the fixed-point equations of a separable variance profile (Paul
and Silverstein, J. Multivariate Anal. 100 (2009), eqs. 1.3-1.5, with the edge as in El Karoui, Ann. Probab. 35 (2007));
for equal variances it is Marchenko-Pastur's ``(sqrt N + sqrt M)^2`` with Johnstone's scale (Ann. Stat. 29 (2001)).
Unequal neuron norms and a shifted mean are therefore no spikes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = ["Null", "edge", "edge_of_profile", "huge_entry", "null_effective_rank", "null_of", "tracy_widom_cut"]

_GAUSSIAN_L1 = float(np.sqrt(2 / np.pi))
_TW_CUT = 3.0
"""Tracy-Widom (beta = 1) quantile at about 0.998: the false alarm rate of one matrix."""


@dataclass(frozen=True)
class Null:
    """The null of a layer's ``k`` matrices, in the units of their eigenvalues (of ``W^T W``).

    Attributes:
        edges: shape ``(k,)``; eigenvalues of a *centred* matrix above its edge are spikes.
        shifted: whether the mean of the entries is large enough to make an eigenvalue of its own, so that spikes have
            to be counted on the centred matrices.
        traps: entries so large for their row and column that, wherever a permutation puts them, they make an
            eigenvalue beyond the edge of the permuted matrix.
        largest_entry: largest absolute entry in units of its row's and column's standard deviation.
    """

    edges: Array
    shifted: bool
    traps: int
    largest_entry: float


def tracy_widom_cut(n_matrices: int = 1) -> float:
    """Cut in Tracy-Widom units that keeps the false alarm rate of ``n_matrices`` pooled ones at that of one.

    The upper tail falls as ``exp(-2/3 s^1.5)``.
    """
    return float((_TW_CUT**1.5 + 1.5 * np.log(n_matrices)) ** (2 / 3))


def edge(N: int, M: int, n_matrices: int = 1) -> float:
    """Upper edge of ``W^T W`` for independent unit-variance entries: Marchenko-Pastur plus Tracy-Widom."""
    root_n, root_m = np.sqrt(N), np.sqrt(M)
    scale = (root_n + root_m) * (1 / root_n + 1 / root_m) ** (1 / 3)
    return float((root_n + root_m) ** 2 + tracy_widom_cut(n_matrices) * scale)


def edge_of_profile(a: Array, b: Array, n_matrices: int = 1) -> float:
    """Upper edge for entries with variances ``a_i b_j``.

    With ``f(w) = sum_i a_i w / (1 - a_i w)`` and ``h(t) = sum_j b_j / (t - b_j)``, outside the bulk an eigenvalue
    ``z = t f(w) / w`` belongs to each ``w`` in ``(0, 1/max a)`` with ``h(t) = f(w)``; the edge is the smallest ``z``
    and ``(z''/2)^(1/3)`` the Tracy-Widom scale.

    Args:
        a: row variances, shape ``(N,)``.
        b: column variances, shape ``(M,)``.
        n_matrices: matrices whose eigenvalues are pooled.
    """
    if a.max() <= 0 or b.max() <= 0:
        return 0.0
    low, high = 0.02, 0.98  # in units of 1 / max(a)
    for _ in range(3):
        w = np.linspace(low, high, 24) / a.max()
        z = _eigenvalue_at(w, a, b)
        place = int(np.clip(np.argmin(z), 1, w.size - 2))
        low, high = w[place - 1] * a.max(), w[place + 1] * a.max()
    curvature = np.polyfit((w - w[place]) * a.max(), z, 2)[0] * a.max() ** 2
    scale = max(curvature, 0.0) ** (1 / 3)
    return float(z[place] + tracy_widom_cut(n_matrices) * scale)


def _eigenvalue_at(w: Array, a: Array, b: Array) -> Array:
    f = (a * w[:, None] / (1.0 - a * w[:, None])).sum(axis=1)
    # h is convex and falling: Newton from the left of the root climbs to it without overshooting
    t = b.max() * (1.0 + 1.0 / f)
    for _ in range(30):
        gap = t[:, None] - b
        h = (b / gap).sum(axis=1)
        step = (h - f) / (b / gap**2).sum(axis=1)
        t = t + step
        if np.all(np.abs(step) < 1e-10 * t):
            break
    return np.asarray(t * f / w)


def null_of(stack: torch.Tensor) -> Null:
    """Null of a layer's matrices, shape ``(k, N, M)``, floating point, on their own device.

    Row and column variances are those of the whole layer (a filter is one neuron), the overall variance is each
    matrix's own.
    """
    k, N, M = stack.shape
    mean = stack.mean(dim=(1, 2), keepdim=True)
    centred = stack - mean
    variance = centred.square().mean(dim=(1, 2))
    if not bool((variance > 0).any()):
        return Null(np.zeros(k), False, 0, 0.0)
    size = centred.abs() / variance.sqrt().clamp_min(torch.finfo(stack.dtype).tiny)[:, None, None]
    traps, largest = _traps(size)
    squares = size.square_()
    a = _shrunk(squares.mean(dim=(0, 2)).cpu().numpy().astype(np.float64), 2.0 / (k * M))
    b = _shrunk(squares.mean(dim=(0, 1)).cpu().numpy().astype(np.float64), 2.0 / (k * N))
    flat = np.ptp(a) == 0 and np.ptp(b) == 0
    upper = edge(N, M, k) if flat else edge_of_profile(a, b, k)
    shifted = bool((mean.flatten().square() * (N * M) ** 0.5 > 0.5 * variance).any())
    return Null(upper * variance.cpu().numpy().astype(np.float64), shifted, traps, largest)


def _shrunk(variances: Array, noise: float) -> Array:
    """Variances over their mean, rid of their sampling noise (``noise``: variance of the estimates' logarithm).

    The logarithms are pulled to their mean by the share of their spread that sampling explains.
    """
    logs = np.log(np.maximum(variances, 1e-6))
    spread = float(logs.var())
    keep = max(0.0, 1.0 - noise / spread) if spread > 0 else 0.0
    result = np.exp(np.sqrt(keep) * (logs - logs.mean()))
    return np.asarray(result / result.mean())


def _traps(size: torch.Tensor) -> tuple[int, float]:
    """Count huge entries in absolute entries ``size`` (shape ``(k, N, M)``); also return the largest, in sd.

    An entry counts when it is huge for its row and column (a large neuron is no trap) and for the whole matrix (an entry
    of a dead neuron is none). Scales are robust, so that the huge entry does not set its own standard.
    """
    k, N, M = size.shape
    # L1 estimates of a variance have 2.28 / n of noise where L2 estimates have 2 / n
    row = _shrunk(_robust(size, (0, 2)) ** 2, 2.28 / (k * M)) ** -0.5
    column = _shrunk(_robust(size, (0, 1)) ** 2, 2.28 / (k * N)) ** -0.5
    relative = size * torch.as_tensor(row, dtype=size.dtype, device=size.device)[:, None]
    relative *= torch.as_tensor(column, dtype=size.dtype, device=size.device)
    scales = [float(_robust(entries, (0, 1, 2))) / _GAUSSIAN_L1 for entries in (size, relative)]
    if min(scales) == 0.0:
        return 0, 0.0
    entries = torch.minimum(size / scales[0], relative / scales[1])
    return int((entries > huge_entry(N, M, k)).sum()), float(entries.max())


def _robust(size: torch.Tensor, dims: tuple[int, ...]) -> Array:
    """Mean absolute entry over ``dims``, entries beyond four standard deviations left out."""
    first = size.mean(dim=dims, keepdim=True)
    usual = size <= 4.0 / _GAUSSIAN_L1 * first
    return np.asarray(((size * usual).sum(dim=dims) / usual.sum(dim=dims)).cpu().numpy(), dtype=np.float64)


@lru_cache(maxsize=4096)
def huge_entry(N: int, M: int, n_matrices: int = 1) -> float:
    """Smallest entry, in standard deviations, whose eigenvalue in a sea of noise lies beyond the edge.

    Entry ``theta`` gives ``(theta^2 + N)(theta^2 + M) / theta^2`` once ``theta^2 > sqrt(N M)`` (Benaych-Georges and
    Nadakuditi, J. Multivariate Anal. 111 (2012), section 3.1).
    """
    # theta^4 + (N + M - edge) theta^2 + N M = 0, the larger root
    half = (edge(N, M, n_matrices) - N - M) / 2
    return float(np.sqrt(half + np.sqrt(max(half**2 - N * M, 0.0))))


@lru_cache(maxsize=4096)
def null_effective_rank(N: int, M: int) -> float:
    """Effective rank ``exp(entropy)`` of ``M`` Marchenko-Pastur eigenvalues; effective rank is Roy and Vetterli's (2007)."""
    ratio = M / N
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # substitution x = mid + half cos(phi) smooths both edges
    phi = (np.arange(2000) + 0.5) * np.pi / 2000
    x = (high + low) / 2 + (high - low) / 2 * np.cos(phi)
    density = np.sin(phi) ** 2 * ((high - low) / 2) ** 2 / (2 * np.pi * ratio * x)
    weight = density / density.sum()
    return float(M * np.exp(-(weight * x * np.log(x)).sum()))
