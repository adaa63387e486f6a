"""Functions drawn from what a Gaussian process believes, to be evaluated at as many points as one likes.

A draw of the prior, by random Fourier features of the Matern 5/2 and exact weights of what labels do alone, is moved
onto the values by the covariance with their points: Wilson et al. 2020, arXiv 2002.09309, equation 13.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve

from ww_opt.search.coordinates import Array
from ww_opt.search.surrogate import _JITTER, Surrogate, _covariance, _Features, _features

__all__ = ["FunctionDraws", "draw_functions"]

_N_FEATURES = 256
_CHUNK = 4096


@dataclass(frozen=True)
class FunctionDraws:
    """Functions over the unit cube, ``points [m, n] -> values [m, draws]``, in the units of the process."""

    _of: Surrogate
    _frequencies: Array
    _phases: Array
    _amplitudes: Array
    _linear: tuple[Array, ...]
    _quadratic: tuple[Array, ...]
    _moves: Array

    def __call__(self, points: Array) -> Array:
        """Values at ``points``."""
        parts = [self._values(points[start : start + _CHUNK]) for start in range(0, len(points), _CHUNK)]
        return np.concatenate(parts)

    def with_mean(self) -> FunctionDraws:
        """The same, and before them the function that is believed on the mean."""

        def led(own: Array, first: Array | float = 0.0) -> Array:
            return np.concatenate([np.broadcast_to(first, len(own))[:, None], own], axis=1)

        return replace(
            self,
            _amplitudes=led(self._amplitudes),
            _linear=tuple(led(own) for own in self._linear),
            _quadratic=tuple(led(own) for own in self._quadratic),
            _moves=led(self._moves, self._of._weights),
        )

    def _values(self, points: Array) -> Array:
        own = _features(self._of.coordinates, points)
        mean = self._of._scales.cost @ own.spread
        moved = _covariance(self._of._scales, own, self._of._features) @ self._moves
        return np.asarray(mean[:, None] + self._prior(own) + moved)

    def _prior(self, own: _Features) -> Array:
        values: Array = np.cos(own.coordinates @ self._frequencies + self._phases) @ self._amplitudes
        for here, linear, quadratic in zip(own.alone, self._linear, self._quadratic, strict=True):
            values += here @ linear + here**2 @ quadratic
        return values


def draw_functions(of: Surrogate, n: int, rng: np.random.Generator) -> FunctionDraws:
    """Draw ``n`` functions from a process, given the values that it was fitted to."""
    scales, known = of._scales, of._features
    frequencies = rng.normal(size=(len(scales.weights), _N_FEATURES)) * np.sqrt(scales.weights)[:, None]
    frequencies *= np.sqrt(5.0 / rng.chisquare(5.0, size=_N_FEATURES))
    amplitudes = rng.normal(size=(_N_FEATURES, n)) * np.sqrt(2.0 * scales.signal / _N_FEATURES)
    shapes = [(own.shape[1], n) for own in known.alone]
    draws = FunctionDraws(
        of,
        frequencies,
        rng.uniform(0.0, 2 * np.pi, _N_FEATURES),
        amplitudes,
        tuple(rng.normal(size=own) * np.sqrt(scale) for own, scale in zip(shapes, scales.linear, strict=True)),
        tuple(rng.normal(size=own) * np.sqrt(scale) for own, scale in zip(shapes, scales.quadratic, strict=True)),
        np.zeros((len(of._weights), n)),
    )
    noise = rng.normal(size=(len(of._weights), n)) * np.sqrt(scales.noise + _JITTER)
    moves = of._weights[:, None] - cho_solve((of._lower, True), draws._prior(known) + noise)
    return replace(draws, _moves=moves)
