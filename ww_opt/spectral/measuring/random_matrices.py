"""Random matrix theory: where the eigenvalues of independent entries lie, and what one large entry adds to them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = [
    "edge",
    "edge_of_profile",
    "huge_entry",
    "null_effective_rank",
    "null_quantiles",
    "tracy_widom_cut",
]

_TW_CUT = 3.0
"""Tracy-Widom (beta = 1) quantile at about 0.998: the false alarm rate of one matrix."""


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


def edge_of_profile(a: Array, b: Array, n_matrices: int = 1) -> Array:
    """Upper edge for entries with variances ``a_i b_j``.

    With ``f(w) = sum_i a_i w / (1 - a_i w)`` and ``h(t) = sum_j b_j / (t - b_j)``, outside the bulk an eigenvalue
    ``z = t f(w) / w`` belongs to each ``w`` in ``(0, 1/max a)`` with ``h(t) = f(w)``; the edge is the smallest ``z``
    and ``(z''/2)^(1/3)`` the Tracy-Widom scale.

    Args:
        a: row variances, shape ``(..., N)``, each with one above 0.
        b: column variances, shape ``(..., M)``, likewise.
        n_matrices: matrices whose eigenvalues are pooled.

    Returns:
        Shape ``(...)``.
    """
    scale = a.max(axis=-1)
    low, high = np.full_like(scale, 0.02), np.full_like(scale, 0.98)  # of w, in units of 1 / max(a)
    for _ in range(3):
        middle, half = (low + high) / 2, (high - low) / 2
        w = middle[..., None] + half[..., None] * _ABSCISSAS
        z = _eigenvalue_at(w / scale[..., None], a, b)
        place = np.clip(z.argmin(axis=-1), 1, _ABSCISSAS.size - 2)
        low, high = middle + half * _ABSCISSAS[place - 1], middle + half * _ABSCISSAS[place + 1]
    # near its minimum z is a parabola: its vertex is the edge, half its second derivative the scale cubed
    bend, slope, least = np.moveaxis(z @ _PARABOLA, -1, 0)
    opens = bend > 0
    vertex = least - slope**2 / (4 * np.where(opens, bend, np.inf))
    upper = np.where(opens, vertex, z.min(axis=-1))
    return np.asarray(upper + tracy_widom_cut(n_matrices) * np.cbrt(np.maximum(bend, 0.0) * (scale / half) ** 2))


_ABSCISSAS = np.linspace(-1.0, 1.0, 13)
_PARABOLA = np.linalg.pinv(np.vander(_ABSCISSAS, 3)).T
"""Least squares: values at the abscissas times this are the coefficients of the square, the line and the constant."""


def _eigenvalue_at(w: Array, a: Array, b: Array) -> Array:
    """``z`` for each of ``w``, shape ``(..., c)``."""
    share = a[..., None, :] * w[..., None]
    f = (share / (1.0 - share)).sum(axis=-1)
    b = b[..., None, :]
    # h is convex and falling: Newton from the left of the root climbs to it without overshooting
    t = b.max(axis=-1) * (1.0 + 1.0 / f)
    for _ in range(30):
        gap = 1.0 / (t[..., None] - b)
        term = b * gap
        step = (term.sum(axis=-1) - f) / (term * gap).sum(axis=-1)
        t = t + step
        if np.all(np.abs(step) < 1e-8 * t):
            break
    return np.asarray(t * f / w)


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
