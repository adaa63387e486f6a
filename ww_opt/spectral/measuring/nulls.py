"""What a layer's spectrum would look like had it learnt nothing: edges, and entries too large for it.

The null of a layer are independent entries with the layer's own row and column variances: a matrix
``X_ij = sqrt(a_i b_j) z_ij``. Its upper edge solves the fixed-point equations of a separable variance profile (Paul
and Silverstein, J. Multivariate Anal. 100 (2009), eqs. 1.3-1.5, with the edge as in El Karoui, Ann. Probab. 35 (2007));
for equal variances it is Marchenko-Pastur's ``(sqrt N + sqrt M)^2`` with Johnstone's scale (Ann. Stat. 29 (2001)).
Unequal neuron norms and a shifted mean are therefore no spikes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ww_opt.spectral.measuring.random_matrices import edge, edge_of_profile, huge_entry

Array = NDArray[np.float64]

__all__ = ["Null", "null_of", "spike_edges"]

_BLOCK = 1 << 17
"""Entries read at a time: few enough for the cache. A quarter, or eight times as many, took 1.6 and 2 times as long."""
SLACK = 4.0
"""How far a layer's robust scale lies under its standard deviation, unless most of its neurons are dead."""
_GAUSSIAN_L1 = float(np.sqrt(2 / np.pi))


@dataclass(frozen=True)
class Null:
    """The nulls of layers of ``k`` matrices each, in the units of their eigenvalues (of ``W^T W``).

    Attributes:
        edges: shape ``(..., k)``; eigenvalues of a *centred* matrix above its edge are spikes.
        squares: shape ``(..., k)``; expected sum of the squared eigenvalues of a centred matrix.
        means: shape ``(..., k)``; mean entry of each matrix.
        shifted: shape ``(...)``; whether the mean of the entries is large enough to make an eigenvalue of its own, so
            that spikes have to be counted on the centred matrices.
        traps: shape ``(...)``; entries so large for their row and column that, wherever a permutation puts them, they
            make an eigenvalue beyond the edge of the permuted matrix.
        largest_entry: shape ``(...)``; largest distance of an entry from the mean, in standard deviations.
    """

    edges: Array
    squares: Array
    means: Array
    shifted: NDArray[np.bool_]
    traps: NDArray[np.intp]
    largest_entry: Array


def null_of(stack: torch.Tensor) -> Null:
    """Nulls of layers' matrices, shape ``(..., k, N, M)``, floating point, on their own device.

    Row and column variances are those of the whole layer (a filter is one neuron), the overall variance is each
    matrix's own. The entries are read in blocks: memory does not grow with the layer.
    """
    *layers, k, N, M = stack.shape
    entries = _Entries(stack.reshape(-1, k, N, M))
    lives = np.asarray((entries.variance > 0).any(axis=1))
    upper, squares, traps = np.zeros(len(lives)), np.zeros((len(lives), k)), np.zeros(len(lives), dtype=np.intp)
    if lives.any():
        a = _shrunk(entries.row_squares[lives], 2.0 / (k * M))
        b = _shrunk(entries.column_squares[lives], 2.0 / (k * N))
        flat = (np.ptp(a, axis=1) == 0) & (np.ptp(b, axis=1) == 0)
        upper[lives] = edge(N, M, k) if flat.all() else np.where(flat, edge(N, M, k), edge_of_profile(a, b, k))
        squares[lives] = _squares(a, b, entries.variance[lives], entries.fourth[lives])
    # where most neurons are dead a trap of a live one is larger still: most layers hold nothing that may be a trap
    suspects = np.flatnonzero(lives & (entries.largest >= huge_entry(N, M, k) / SLACK))
    if suspects.size:
        traps[suspects] = entries.traps(suspects)
    shifted = (entries.mean**2 * (N * M) ** 0.5 > 0.5 * entries.variance).any(axis=1) & lives
    return Null(
        edges=(upper[:, None] * entries.variance).reshape(*layers, k),
        squares=squares.reshape(*layers, k),
        means=entries.mean.reshape(*layers, k),
        shifted=np.asarray(shifted).reshape(layers),
        traps=traps.reshape(layers),
        largest_entry=np.where(lives, entries.largest, 0.0).reshape(layers),
    )


def _squares(a: Array, b: Array, variance: Array, fourth: Array) -> Array:
    """Expected ``tr (W^T W)^2`` of independent centred entries with variances ``v a_i b_j``, shape ``(G, k)``.

    Pairs of different rows and columns drop out; what is left are pairs that share a row, pairs that share a column,
    and the sum of the entries' fourth powers, ``fourth``.
    """

    def pairs(x: Array) -> Array:
        return np.asarray(x.sum(axis=1) ** 2 - (x**2).sum(axis=1))

    shared = (a**2).sum(axis=1) * pairs(b) + (b**2).sum(axis=1) * pairs(a)
    return np.asarray(shared[:, None] * variance**2 + fourth)


def spike_edges(eigenvalues: Array, null: Null, N: int) -> Array:
    """Edges beyond which eigenvalues of centred matrices, shape ``(..., k, M)``, are spikes; shape ``(..., k)``.

    What was learnt is no noise: the energy of the spikes found is taken out of the null's variance, and the lower edge
    asked again, until no spike is new. Without it twenty signals hide all but the strongest. A matrix without noise
    (all entries equal) has no spikes: its edge is infinite.
    """
    M = eigenvalues.shape[-1]
    total = np.maximum(eigenvalues.sum(axis=-1), np.finfo(np.float64).tiny)
    start = np.where(null.edges > 0, null.edges, np.inf)
    edges, count = start, np.zeros(start.shape, dtype=np.intp)
    while True:
        above = eigenvalues > edges[..., None]
        more = above.sum(axis=-1) > count
        if not more.any():
            return edges
        count = np.where(more, np.minimum(above.sum(axis=-1), M - 1), count)
        left = (1.0 - (eigenvalues * above).sum(axis=-1) / total) * N * M / ((N - count) * (M - count))
        edges = np.where(more, start * np.minimum(left, 1.0), edges)


def _shrunk(variances: Array, noise: float) -> Array:
    """Variances, shape ``(..., n)``, over their mean, rid of their sampling noise.

    The logarithms are pulled to their mean by the share of their spread that sampling explains; ``noise`` is the
    variance of the estimates' logarithm.
    """
    logs = np.log(np.maximum(variances, 1e-6))
    spread = logs.var(axis=-1, keepdims=True)
    keep = np.maximum(0.0, 1.0 - noise / np.maximum(spread, 1e-300))
    result = np.exp(np.sqrt(keep) * (logs - logs.mean(axis=-1, keepdims=True)))
    return np.asarray(result / result.mean(axis=-1, keepdims=True))


class _Entries:
    """Statistics of layers' entries, shape ``(G, k, N, M)``, gathered block by block.

    Blocks keep float32 where the weights have no more; sums over blocks are float64.
    """

    def __init__(self, stack: torch.Tensor) -> None:
        self._stack = stack
        G, k, N, M = stack.shape
        row, row2 = np.zeros((G, k, N)), np.zeros((G, k, N))
        column, column2 = np.zeros((G, k, M)), np.zeros((G, k, M))
        third, fourth = np.zeros((G, k)), np.zeros((G, k))
        low, high = np.full((G, k), np.inf), np.full((G, k), -np.inf)
        for rows, block in _blocks(stack):
            # two passes: torch's aminmax takes ten times as long
            least, most = _numbers(block.amin(dim=(2, 3))), _numbers(block.amax(dim=(2, 3)))
            low, high = np.minimum(low, least), np.maximum(high, most)
            row[:, :, rows] = _numbers(block.sum(dim=3))
            column += _numbers(block.sum(dim=2))
            unit = np.maximum(-least, most)  # fourth powers would leave float32's range
            unit = np.where(unit > 0, unit, 1.0)
            scaled = block * _like(1.0 / unit, block)[:, :, None, None]
            squares = scaled.square()
            third += unit**3 * _numbers(scaled.mul_(squares).sum(dim=(2, 3)))
            row2[:, :, rows] = unit[:, :, None] ** 2 * _numbers(squares.sum(dim=3))
            column2 += unit[:, :, None] ** 2 * _numbers(squares.sum(dim=2))
            fourth += unit**4 * _numbers(squares.square_().sum(dim=(2, 3)))
        self.mean = row.sum(axis=2) / (N * M)
        mean = self.mean[:, :, None]
        raw2 = row2.sum(axis=2)
        # sum (x - mean)^2 from sum x^2 and sum x
        row2, column2 = row2 - 2 * mean * row + M * mean**2, column2 - 2 * mean * column + N * mean**2
        variance = row2.sum(axis=2) / (N * M)
        self.fourth = fourth - 4 * self.mean * third + 6 * self.mean**2 * raw2 - 3 * N * M * self.mean**4
        # rounding, where the mean is far larger than the spread
        self.fourth = np.maximum(self.fourth, N * M * variance**2)
        self.variance = np.where(variance > 1e-12 * self.mean**2, variance, 0.0)  # else it is rounding
        self._scale = 1.0 / np.sqrt(np.where(self.variance > 0, self.variance, 1.0))
        self.largest = (np.maximum(high - self.mean, self.mean - low) * self._scale).max(axis=1)
        self.row_squares = (row2 * self._scale[:, :, None] ** 2).sum(axis=1) / (k * M)
        self.column_squares = (column2 * self._scale[:, :, None] ** 2).sum(axis=1) / (k * N)

    def traps(self, layers: NDArray[np.intp]) -> NDArray[np.intp]:
        """Count the huge entries of the layers with these indices.

        An entry counts when it is huge for its row and column (a large neuron is no trap) and for the whole matrix (an
        entry of a dead neuron is none). Scales are mean absolute entries without those beyond four standard deviations,
        so that a huge entry does not set its own standard.
        """
        G, k, N, M = self._stack.shape
        stack = self._stack if layers.size == G else self._stack[layers]
        mean, scale = self.mean[layers, :, None, None], self._scale[layers, :, None, None]

        def absolute() -> Iterator[tuple[slice, torch.Tensor]]:
            """Yield absolute centred entries over the scale, a few rows of every matrix at a time."""
            for rows, block in _blocks(stack):
                yield rows, (block - _like(mean, block)).abs_().mul_(_like(scale, block))

        by_row, by_column = np.zeros((layers.size, N)), np.zeros((layers.size, M))
        for rows, block in absolute():
            by_row[:, rows] = _numbers(block.sum(dim=(1, 3)))
            by_column += _numbers(block.sum(dim=(1, 2)))
        row_cut, column_cut = 4.0 / _GAUSSIAN_L1 * by_row / (k * M), 4.0 / _GAUSSIAN_L1 * by_column / (k * N)
        rows_count, columns_count = np.full_like(by_row, k * M), np.full_like(by_column, k * N)
        rows_sum, columns_sum, least = by_row, by_column, huge_entry(N, M, k) / SLACK
        large: list[_Few] = []
        for rows, block in absolute():  # what lies beyond a cut is little: taken off, not left out of new sums
            beyond = _few(block, row_cut[:, None, rows, None], rows.start)
            rows_count -= beyond.counts(beyond.row, N)
            rows_sum -= beyond.sums(beyond.row, N)
            beyond = _few(block, column_cut[:, None, None, :], rows.start)
            columns_count -= beyond.counts(beyond.column, M)
            columns_sum -= beyond.sums(beyond.column, M)
            large.append(_few(block, np.array(least), rows.start))
        # L1 estimates of a variance have 2.28 / n of noise where L2 estimates have 2 / n
        row = _shrunk((rows_sum / rows_count) ** 2, 2.28 / (k * M)) ** -0.5
        column = _shrunk((columns_sum / columns_count) ** 2, 2.28 / (k * N)) ** -0.5
        means = rows_sum.sum(axis=1) / rows_count.sum(axis=1) * columns_sum.sum(axis=1) / columns_count.sum(axis=1)
        thresholds = huge_entry(N, M, k) * np.sqrt(means) / _GAUSSIAN_L1
        if (thresholds < least).any():
            least = float(thresholds.min())
            large = [_few(block, np.array(least), rows.start) for rows, block in absolute()]
        count = np.zeros(layers.size, dtype=np.intp)
        for few in large:
            explained = np.minimum(row[few.layer, few.row] * column[few.layer, few.column], 1.0)
            is_huge = few.value * explained > thresholds[few.layer]
            count += np.bincount(few.layer[is_huge], minlength=layers.size)
        return count


@dataclass(frozen=True)
class _Few:
    """Some entries of ``n_layers`` layers: where they stand, and their absolute values."""

    n_layers: int
    layer: NDArray[np.intp]
    row: NDArray[np.intp]
    column: NDArray[np.intp]
    value: Array

    def counts(self, place: NDArray[np.intp], n: int) -> NDArray[np.intp]:
        """How many there are in each of ``n`` places of each layer, shape ``(n_layers, n)``."""
        return np.asarray(np.bincount(self.layer * n + place, minlength=self.n_layers * n).reshape(-1, n))

    def sums(self, place: NDArray[np.intp], n: int) -> Array:
        """As :meth:`counts`, summed up."""
        at = self.layer * n + place
        return np.asarray(np.bincount(at, weights=self.value, minlength=self.n_layers * n).reshape(-1, n))


def _few(block: torch.Tensor, cut: Array, first_row: int) -> _Few:
    """Take the entries of ``block``, shape ``(G, k, n, M)``, beyond a cut that broadcasts to it."""
    G, k, n, M = block.shape
    if block.device.type == "cpu":  # NumPy compares and searches six to nine times faster than torch
        entries = block.contiguous().numpy()
        places = np.flatnonzero(entries > cut.astype(entries.dtype))
        values = entries.reshape(-1)[places]
    else:
        flat = (block > _like(cut, block)).flatten().nonzero().squeeze(1)
        places, values = flat.cpu().numpy(), block.flatten()[flat].cpu().numpy()
    above, column = np.divmod(places, M)
    above, row = np.divmod(above, n)
    return _Few(G, above // k, row + first_row, column, values.astype(np.float64))


def _blocks(stack: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield a few rows of every matrix of ``stack``, shape ``(..., N, M)``, at a time."""
    N = stack.shape[-2]
    dtype = torch.float64 if stack.dtype == torch.float64 else torch.float32
    step = max(_BLOCK * N // stack.numel(), 1)
    for start in range(0, N, step):
        rows = slice(start, min(start + step, N))
        yield rows, stack[..., rows, :].to(dtype)


def _like(values: Array, block: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values, dtype=block.dtype, device=block.device)


def _numbers(values: torch.Tensor) -> Array:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)
