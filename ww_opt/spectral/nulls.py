"""What a layer's spectrum would look like had it learnt nothing: edges, traps, effective rank.

The null of a layer are independent entries with the layer's own row and column variances: a matrix
``X_ij = sqrt(a_i b_j) z_ij``. Its upper edge solves the fixed-point equations of a separable variance profile (Paul
and Silverstein, J. Multivariate Anal. 100 (2009), eqs. 1.3-1.5, with the edge as in El Karoui, Ann. Probab. 35 (2007));
for equal variances it is Marchenko-Pastur's ``(sqrt N + sqrt M)^2`` with Johnstone's scale (Ann. Stat. 29 (2001)).
Unequal neuron norms and a shifted mean are therefore no spikes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = [
    "Null",
    "edge",
    "edge_of_profile",
    "huge_entry",
    "null_effective_rank",
    "null_of",
    "null_quantiles",
    "spike_edges",
    "tracy_widom_cut",
]

_BLOCK = 1 << 20
"""Entries read at a time."""
_GAUSSIAN_L1 = float(np.sqrt(2 / np.pi))
_TW_CUT = 3.0
"""Tracy-Widom (beta = 1) quantile at about 0.998: the false alarm rate of one matrix."""


@dataclass(frozen=True)
class Null:
    """The null of a layer's ``k`` matrices, in the units of their eigenvalues (of ``W^T W``).

    Attributes:
        edges: shape ``(k,)``; eigenvalues of a *centred* matrix above its edge are spikes.
        means: shape ``(k,)``; mean entry of each matrix.
        shifted: whether the mean of the entries is large enough to make an eigenvalue of its own, so that spikes have
            to be counted on the centred matrices.
        traps: entries so large for their row and column that, wherever a permutation puts them, they make an
            eigenvalue beyond the edge of the permuted matrix.
        largest_entry: largest distance of an entry from the mean, in standard deviations.
    """

    edges: Array
    means: Array
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
        w = np.linspace(low, high, 13) / a.max()
        z = _eigenvalue_at(w, a, b)
        place = int(np.clip(np.argmin(z), 1, w.size - 2))
        low, high = w[place - 1] * a.max(), w[place + 1] * a.max()
    # near its minimum z is a parabola: its vertex is the edge, half its second derivative the scale cubed
    bend, slope, least = np.polyfit((w - w[place]) * a.max(), z, 2)
    upper = least - slope**2 / (4 * bend) if bend > 0 else z[place]
    return float(upper + tracy_widom_cut(n_matrices) * (max(bend, 0.0) * a.max() ** 2) ** (1 / 3))


def _eigenvalue_at(w: Array, a: Array, b: Array) -> Array:
    f = (a * w[:, None] / (1.0 - a * w[:, None])).sum(axis=1)
    # h is convex and falling: Newton from the left of the root climbs to it without overshooting
    t = b.max() * (1.0 + 1.0 / f)
    for _ in range(30):
        gap = t[:, None] - b
        h = (b / gap).sum(axis=1)
        step = (h - f) / (b / gap**2).sum(axis=1)
        t = t + step
        if np.all(np.abs(step) < 1e-8 * t):
            break
    return np.asarray(t * f / w)


def null_of(stack: torch.Tensor) -> Null:
    """Null of a layer's matrices, shape ``(k, N, M)``, floating point, on their own device.

    Row and column variances are those of the whole layer (a filter is one neuron), the overall variance is each
    matrix's own. The entries are read in blocks: memory does not grow with the layer.
    """
    k, N, M = stack.shape
    entries = _Entries(stack)
    if not entries.variance.any():
        return Null(np.zeros(k), entries.mean, False, 0, 0.0)
    a = _shrunk(entries.row_squares, 2.0 / (k * M))
    b = _shrunk(entries.column_squares, 2.0 / (k * N))
    flat = np.ptp(a) == 0 and np.ptp(b) == 0
    upper = edge(N, M, k) if flat else edge_of_profile(a, b, k)
    shifted = bool((entries.mean**2 * (N * M) ** 0.5 > 0.5 * entries.variance).any())
    return Null(upper * entries.variance, entries.mean, shifted, entries.traps(), entries.largest)


def spike_edges(eigenvalues: Array, null: Null, N: int) -> Array:
    """Edges beyond which eigenvalues of centred matrices, shape ``(k, M)``, are spikes; shape ``(k,)``.

    What was learnt is no noise: the energy of the spikes found is taken out of the null's variance, and the lower edge
    asked again, until no spike is new. Without it twenty signals hide all but the strongest. A matrix without noise
    (all entries equal) has no spikes: its edge is infinite.
    """
    M = eigenvalues.shape[1]
    total = np.maximum(eigenvalues.sum(axis=1), np.finfo(np.float64).tiny)
    edges, count = np.where(null.edges > 0, null.edges, np.inf), np.zeros(len(eigenvalues), dtype=int)
    while True:
        above = eigenvalues > edges[:, None]
        if (above.sum(axis=1) <= count).all():
            return edges
        count = np.minimum(above.sum(axis=1), M - 1)
        left = (1.0 - (eigenvalues * above).sum(axis=1) / total) * N * M / ((N - count) * (M - count))
        edges = np.where(null.edges > 0, null.edges * np.minimum(left, 1.0), np.inf)


def _shrunk(variances: Array, noise: float) -> Array:
    """Variances over their mean, rid of their sampling noise (``noise``: variance of the estimates' logarithm).

    The logarithms are pulled to their mean by the share of their spread that sampling explains.
    """
    logs = np.log(np.maximum(variances, 1e-6))
    spread = float(logs.var())
    keep = max(0.0, 1.0 - noise / spread) if spread > 0 else 0.0
    result = np.exp(np.sqrt(keep) * (logs - logs.mean()))
    return np.asarray(result / result.mean())


class _Entries:
    """Statistics of a layer's entries, gathered block by block.

    Blocks keep float32 where the weights have no more; sums over blocks are float64.
    """

    def __init__(self, stack: torch.Tensor) -> None:
        self._stack = stack
        k, N, M = stack.shape
        row, row2 = np.zeros((k, N)), np.zeros((k, N))
        column, column2 = np.zeros((k, M)), np.zeros((k, M))
        low, high = np.full(k, np.inf), np.full(k, -np.inf)
        for rows, block in self._raw():
            squares = block.square()
            row[:, rows], row2[:, rows] = _numbers(block.sum(dim=2)), _numbers(squares.sum(dim=2))
            column += _numbers(block.sum(dim=1))
            column2 += _numbers(squares.sum(dim=1))
            least, most = block.flatten(1).aminmax(dim=1)
            low, high = np.minimum(low, _numbers(least)), np.maximum(high, _numbers(most))
        self.mean = row.sum(axis=1) / (N * M)
        mean = self.mean[:, None]
        # sum (x - mean)^2 from sum x^2 and sum x
        row2, column2 = row2 - 2 * mean * row + M * mean**2, column2 - 2 * mean * column + N * mean**2
        variance = row2.sum(axis=1) / (N * M)
        self.variance = np.where(variance > 1e-12 * self.mean**2, variance, 0.0)  # else it is rounding
        self._scale = 1.0 / np.sqrt(np.where(self.variance > 0, self.variance, 1.0))
        self.largest = float((np.maximum(high - self.mean, self.mean - low) * self._scale).max())
        self.row_squares = (row2 * self._scale[:, None] ** 2).sum(axis=0) / (k * M)
        self.column_squares = (column2 * self._scale[:, None] ** 2).sum(axis=0) / (k * N)

    def _raw(self) -> Iterator[tuple[slice, torch.Tensor]]:
        k, N, M = self._stack.shape
        dtype = torch.float64 if self._stack.dtype == torch.float64 else torch.float32
        step = max(_BLOCK // (k * M), 1)
        for start in range(0, N, step):
            rows = slice(start, min(start + step, N))
            yield rows, self._stack[:, rows].to(dtype)

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield absolute centred entries over the scale, a few rows of every matrix at a time."""
        mean, scale = (values[:, None, None] for values in (self.mean, self._scale))
        for rows, block in self._raw():
            yield rows, (block - self._like(mean, block)).abs_().mul_(self._like(scale, block))

    def _like(self, values: Array, block: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(values, dtype=block.dtype, device=block.device)

    def traps(self) -> int:
        """Count the huge entries.

        An entry counts when it is huge for its row and column (a large neuron is no trap) and for the whole matrix (an
        entry of a dead neuron is none). Scales are mean absolute entries without those beyond four standard deviations,
        so that a huge entry does not set its own standard.
        """
        k, N, M = self._stack.shape
        threshold = huge_entry(N, M, k)
        # robust scales lie under the standard deviation, but not by a factor of four unless most neurons are dead,
        # and then a trap of a live one is larger still: most layers end here
        if self.largest < threshold / 4:
            return 0
        absolute, absolute_columns = np.zeros(N), np.zeros(M)
        for rows, block in self._blocks():
            absolute[rows] = _numbers(block.sum(dim=(0, 2)))
            absolute_columns += _numbers(block.sum(dim=(0, 1)))
        row_cut, column_cut = 4.0 / _GAUSSIAN_L1 * absolute / (k * M), 4.0 / _GAUSSIAN_L1 * absolute_columns / (k * N)
        sums = [np.zeros(N), np.zeros(N), np.zeros(M), np.zeros(M)]
        for rows, block in self._blocks():
            usual = block <= self._like(row_cut[rows, None], block)
            sums[0][rows], sums[1][rows] = _numbers((block * usual).sum(dim=(0, 2))), _numbers(usual.sum(dim=(0, 2)))
            usual = block <= self._like(column_cut, block)
            sums[2] += _numbers((block * usual).sum(dim=(0, 1)))
            sums[3] += _numbers(usual.sum(dim=(0, 1)))
        # L1 estimates of a variance have 2.28 / n of noise where L2 estimates have 2 / n
        row = _shrunk((sums[0] / sums[1]) ** 2, 2.28 / (k * M)) ** -0.5
        column = _shrunk((sums[2] / sums[3]) ** 2, 2.28 / (k * N)) ** -0.5
        overall = float(np.sqrt(sums[0].sum() / sums[1].sum() * sums[2].sum() / sums[3].sum())) / _GAUSSIAN_L1
        count = 0
        for rows, block in self._blocks():
            explained = self._like(row[rows, None], block) * self._like(column, block)
            count += int((block.mul_(explained.clamp_max_(1.0)) > threshold * overall).sum())
        return count


def _numbers(values: torch.Tensor) -> Array:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)


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
    """Effective rank ``exp(entropy)`` (Roy and Vetterli 2007) of ``M`` Marchenko-Pastur eigenvalues."""
    x, weight = _marchenko_pastur(N, M)
    return float(M * np.exp(-(weight * x * np.log(x)).sum()))


def null_quantiles(N: int, M: int) -> Array:
    """Where ``M`` eigenvalues of a random matrix lie, mean 1, ascending: quantiles of Marchenko and Pastur's law."""
    x, weight = _marchenko_pastur(N, M)
    return np.interp((np.arange(M) + 0.5) / M, np.cumsum(weight[::-1]), x[::-1])


def _marchenko_pastur(N: int, M: int) -> tuple[Array, Array]:
    """Grid of eigenvalues, descending, and the law's weight on each; mean 1."""
    ratio = M / N
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # substitution x = mid + half cos(phi) smooths both edges
    phi = (np.arange(2000) + 0.5) * np.pi / 2000
    x = (high + low) / 2 + (high - low) / 2 * np.cos(phi)
    density = np.sin(phi) ** 2 * ((high - low) / 2) ** 2 / (2 * np.pi * ratio * x)
    return x, density / density.sum()
