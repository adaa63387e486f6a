"""A Gaussian process that believes in what layers share until the trials say otherwise.

Mean: every kind of setting costs ``c`` times the spread of its labels, so that labels agree a priori. Covariance: a
Matern 5/2 over the coordinates (all alike, slope, bend, last apart), each with a weight of its own, plus, for kinds of
more labels, one linear and one quadratic term per label for what it does alone. The number of hyperparameters does not
grow with the number of labels: 300 dimensions of three kinds have 23. Rasmussen and Williams 2006, chapters 2 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr

from ww_opt.search.coordinates import Array, Coordinates, kind_of

__all__ = ["Belief", "Surrogate", "conditioned", "fit_surrogate", "hyperparameter_draws", "without_cost"]

_JITTER = 1e-8
_APART = 0.7
"""How much what sets labels apart is believed to matter beside what they share."""
_COST = 5.0
"""Standardised values that unit spread of the labels of a kind costs; labels drawn evenly have about a twelfth."""
_COSTS = {"lr": 7.0, "weight_decay": 2.0, "dropout": 2.0}
_MAX_ITERATIONS = 60
_STEP = 1e-3


class Belief(NamedTuple):
    """Mean and standard deviation at one point and their gradients, shape ``[n]``."""

    mean: float
    sd: float
    mean_gradient: Array
    sd_gradient: Array


@dataclass(frozen=True)
class _Features:
    """What the covariance is made of.

    Coordinates ``[m, p]``, what labels do alone (one ``[m, labels]`` a kind), spread of the labels ``[kinds, m]``.
    """

    coordinates: Array
    alone: tuple[Array, ...]
    spread: Array


def _features(of: Coordinates, points: Array) -> _Features:
    return _Features(
        points @ of.projection.T,
        tuple(points[:, group] @ projector for group, projector in of.residuals),
        np.array(
            [
                ((points[:, group] @ form) * points[:, group]).sum(axis=1)
                for group, form in zip(of.groups, of.spreads, strict=True)
            ]
        ).reshape(len(of.groups), len(points)),
    )


@dataclass(frozen=True)
class _Scales:
    """Hyperparameters.

    Noise and signal variance, weights of the coordinates, linear and quadratic variance of what labels do alone, cost
    of their spread.
    """

    noise: float
    signal: float
    weights: Array
    linear: Array
    quadratic: Array
    cost: Array

    @classmethod
    def of(cls, theta: Array, coordinates: Coordinates) -> _Scales:
        sizes = [1, 1, len(coordinates.is_shared), *[len(coordinates.residuals)] * 2, len(coordinates.groups)]
        parts = np.split(np.exp(theta), np.cumsum(sizes)[:-1])
        return cls(float(parts[0][0]), float(parts[1][0]), *parts[2:])


def _prior(of: Coordinates) -> tuple[Array, Array]:
    """Means and standard deviations of the logarithms of the hyperparameters, for standardised values.

    What sets labels apart is believed to matter a little less than what they share, and rates apart to cost most: drawn
    blindly, rates per layer lost up to 6.6 points on the development tasks, decay and dropout per layer none. Stronger
    beliefs (.4 and 15) miss a trend over depth in 40 trials, weaker ones (1 and 5) follow noise.
    """
    labels = np.array([len(group) for group, _ in of.residuals], dtype=float)
    shared = of.is_shared
    costs = [_COSTS.get(kind_of(of.columns[int(group[0])][0]), _COST) for group in of.groups]
    means = [
        np.log([0.1]), np.zeros(1), np.where(shared, 2 * np.log(1 / 0.4), 2 * np.log(_APART)),
        2 * np.log(3 * _APART / labels), 2 * np.log(3 * _APART / labels), np.log(np.array(costs)),
    ]  # fmt: skip
    deviations = [
        [1.5], [0.7], np.where(shared, 1.0, 1.5), np.full(len(labels), 1.5), np.full(len(labels), 1.0),
        np.ones(len(of.groups)),
    ]  # fmt: skip
    return np.concatenate(means), np.concatenate([np.asarray(own, dtype=float) for own in deviations])


def _matern(squares: Array) -> tuple[Array, Array]:
    """Matern 5/2 of squared distances, and its derivative by them."""
    root = np.sqrt(5.0 * np.maximum(squares, 1e-18))
    decay = np.exp(-root)
    return (1.0 + root + root**2 / 3.0) * decay, -5.0 / 6.0 * (1.0 + root) * decay


class _Likelihood:
    """Minus the logarithm of the posterior of the hyperparameters, and its gradient."""

    def __init__(self, coordinates: Coordinates, features: _Features, values: Array) -> None:
        self._of, self._features, self._values = coordinates, features, values
        columns = features.coordinates.T
        self._squares = (columns[:, :, None] - columns[:, None, :]) ** 2
        self._linear = [own @ own.T for own in features.alone]
        self._quadratic = [own**2 @ (own**2).T for own in features.alone]
        self.mean, self.deviation = _prior(coordinates)

    def __call__(self, theta: Array) -> tuple[float, Array]:
        scales = _Scales.of(theta, self._of)
        eye = np.eye(len(self._values))
        near, slope = _matern(np.tensordot(scales.weights, self._squares, 1))
        covariance = scales.signal * near + (scales.noise + _JITTER) * eye
        terms = [*zip(scales.linear, self._linear, strict=True), *zip(scales.quadratic, self._quadratic, strict=True)]
        for scale, term in terms:
            covariance += scale * term
        distance = (theta - self.mean) / self.deviation
        try:
            lower = cholesky(covariance, lower=True)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        left = self._values - scales.cost @ self._features.spread
        weights = cho_solve((lower, True), left)
        value = 0.5 * left @ weights + np.log(np.diag(lower)).sum() + 0.5 * (distance**2).sum()
        by = 0.5 * (cho_solve((lower, True), eye) - np.outer(weights, weights))
        gradient = np.concatenate([
            [np.trace(by) * scales.noise, (by * near).sum() * scales.signal],
            np.tensordot(self._squares, by * slope * scales.signal, 2) * scales.weights,
            [(by * term).sum() * scale for scale, term in terms],
            -(self._features.spread @ weights) * scales.cost,
        ])  # fmt: skip
        return float(value), gradient + distance / self.deviation


def _covariance(scales: _Scales, a: _Features, b: _Features) -> Array:
    """Covariance of the values at points, ``[a, b]``, without noise."""
    root = np.sqrt(scales.weights)
    x, y = a.coordinates * root, b.coordinates * root
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    covariance: Array = scales.signal * _matern(squares)[0]
    for linear, quadratic, here, there in zip(scales.linear, scales.quadratic, a.alone, b.alone, strict=True):
        covariance += linear * here @ there.T + quadratic * here**2 @ (there**2).T
    return covariance


@dataclass(frozen=True)
class Surrogate:
    """A fitted process over the unit cube; values in the units that it was fitted with.

    Attributes:
        coordinates: of the cube.
        theta: logarithms of the hyperparameters, a start for the next fit.
    """

    coordinates: Coordinates
    theta: Array
    _features: _Features
    _scales: _Scales
    _lower: Array
    _weights: Array

    @property
    def noise(self) -> float:
        """Standard deviation of the values of one point."""
        return float(np.sqrt(self._scales.noise))

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Means and standard deviations, without noise, at ``points``, ``[m, n]``; shape ``[m]`` each."""
        own, scales = _features(self.coordinates, points), self._scales
        covariance = _covariance(scales, own, self._features)
        prior = np.full(len(points), scales.signal)
        for linear, quadratic, here in zip(scales.linear, scales.quadratic, own.alone, strict=True):
            prior += linear * (here**2).sum(axis=1) + quadratic * (here**4).sum(axis=1)
        explained = (solve_triangular(self._lower, covariance.T, lower=True) ** 2).sum(axis=0)
        means = covariance @ self._weights + scales.cost @ own.spread
        return means, np.sqrt(np.maximum(prior - explained, 1e-12))

    def at(self, point: Array) -> Belief:
        """Belief at one point, ``[n]``, with gradients."""
        of, scales, known = self.coordinates, self._scales, self._features
        apart = of.projection @ point - known.coordinates
        near, slope = _matern((apart**2) @ scales.weights)
        covariance = scales.signal * near
        jacobian = (2 * scales.signal * slope)[:, None] * (apart * scales.weights) @ of.projection
        prior, prior_gradient, mean, mean_gradient = scales.signal, np.zeros(of.n), 0.0, np.zeros(of.n)
        for (group, projector), linear, quadratic, there in zip(
            of.residuals, scales.linear, scales.quadratic, known.alone, strict=True
        ):
            here = projector @ point[group]
            covariance = covariance + linear * there @ here + quadratic * there**2 @ here**2
            jacobian[:, group] += (linear * there + 2 * quadratic * there**2 * here) @ projector
            prior += linear * here @ here + quadratic * (here**4).sum()
            prior_gradient[group] += projector @ (2 * linear * here + 4 * quadratic * here**3)
        for group, form, cost in zip(of.groups, of.spreads, scales.cost, strict=True):
            slope = form @ point[group]
            mean += cost * slope @ point[group]
            mean_gradient[group] += 2 * cost * slope
        solved = cho_solve((self._lower, True), covariance)
        sd = float(np.sqrt(max(prior - covariance @ solved, 1e-12)))
        return Belief(
            float(covariance @ self._weights + mean),
            sd,
            jacobian.T @ self._weights + mean_gradient,
            (prior_gradient - 2 * jacobian.T @ solved) / (2 * sd),
        )

    def log_share_below(self, points: Array, limit: float) -> Array:
        """Logarithm of the probability that the value at each point is below ``limit``; shape ``[m]``."""
        means, deviations = self.predict(points)
        return np.asarray(log_ndtr((limit - means) / deviations))


def fit_surrogate(coordinates: Coordinates, points: Array, values: Array, start: Array | None = None) -> Surrogate:
    """Fit the hyperparameters at their posterior mode, from their prior mean and from ``start``; the better one stays.

    Args:
        coordinates: of the cube.
        points: shape ``[m, n]``.
        values: shape ``[m]``, standardised, lower is better, finite.
        start: of an earlier fit.
    """
    likelihood = _Likelihood(coordinates, _features(coordinates, points), values)
    mean, reach = likelihood.mean, 4 * likelihood.deviation
    starts = [mean] + ([start] if start is not None and len(start) == len(mean) else [])
    options = {"maxiter": _MAX_ITERATIONS}
    bounds = list(zip(mean - reach, mean + reach, strict=True))
    fits = [minimize(likelihood, own, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for own in starts]
    theta = min(fits, key=lambda fit: float(fit.fun)).x
    return conditioned(coordinates, points, values, theta)


def conditioned(coordinates: Coordinates, points: Array, values: Array, theta: Array) -> Surrogate:
    """The process of given hyperparameters, as it believes after ``values`` at ``points``."""
    features, scales = _features(coordinates, points), _Scales.of(theta, coordinates)
    covariance = _covariance(scales, features, features) + (scales.noise + _JITTER) * np.eye(len(points))
    lower = cholesky(covariance, lower=True)
    weights = cho_solve((lower, True), values - scales.cost @ features.spread)
    return Surrogate(coordinates, theta, features, scales, lower, weights)


def hyperparameter_draws(of: Surrogate, points: Array, values: Array, n: int, rng: np.random.Generator) -> Array:
    """Draws of the hyperparameters around their mode, by Laplace's approximation; shape ``[n, len(of.theta)]``."""
    likelihood = _Likelihood(of.coordinates, _features(of.coordinates, points), values)
    slope = likelihood(of.theta)[1]
    steps = _STEP * np.eye(len(of.theta))
    curvature = np.array([likelihood(of.theta + step)[1] - slope for step in steps]) / _STEP
    precision, axes = np.linalg.eigh((curvature + curvature.T) / 2)
    spread = 1.0 / np.sqrt(np.maximum(precision, 1.0 / likelihood.deviation.max() ** 2))
    drawn = of.theta + (rng.normal(size=(n, len(spread))) * spread) @ axes.T
    width = 3 * likelihood.deviation
    return np.asarray(np.clip(drawn, likelihood.mean - width, likelihood.mean + width))


def without_cost(of: Coordinates, theta: Array) -> Array:
    """Hyperparameters of a process that does not believe beforehand that labels agree."""
    free = theta.copy()
    free[len(theta) - len(of.groups) :] = -20.0
    return free
