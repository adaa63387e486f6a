"""Where to look next: the point of largest expected improvement, where labels agree and around the leaders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr

from ww_opt.search.coordinates import Array
from ww_opt.search.surrogate import Surrogate

__all__ = ["Proposal", "log_expected_improvement", "propose"]

_N_SHARED = 512
"""Candidates whose labels agree."""
_N_NEAR = 64
"""Candidates around a leader at each width."""
_N_LEADERS = 4
_WIDTHS = (0.05, 0.15)
_MOVED = 20
"""Labels that a candidate around a leader moves, on the mean (arXiv 2502.09198)."""
_N_CLIMBS = 3
_MAX_ITERATIONS = 40


@dataclass(frozen=True)
class Proposal:
    """A point of the unit cube, ``[n]``, and the improvement expected of it over the best believed so far.

    The improvement is in the units of the surrogate's values, 0 or more.
    """

    point: Array
    expected_improvement: float


def log_expected_improvement(means: Array, deviations: Array, best: float) -> Array:
    """Logarithm of ``E max(best - value, 0)``, lower values being better; finite far out, too."""
    x = (best - means) / deviations
    density = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    near = np.log(np.maximum(density + x * ndtr(x), 1e-300))
    # Mills' ratio: density + x Phi(x) -> density / x^2 for x -> -infinity
    far = -0.5 * x**2 - 0.5 * math.log(2 * math.pi) - 2 * np.log(np.maximum(np.abs(x), 1.0))
    return np.asarray(np.log(deviations) + np.where(x > -5, near, far))


def propose(
    surrogate: Surrogate,
    points: Array,
    rng: np.random.Generator,
    limit: tuple[Surrogate, float] | None = None,
    *,
    is_apart: bool = False,
) -> Proposal:
    """Propose the next point.

    Args:
        surrogate: belief about the value; lower is better.
        points: of all trials so far, shape ``[m, n]``.
        rng: draws the candidates.
        limit: belief about how far constraints are violated, and the value at which they are met.
        is_apart: only points near the leaders at which labels of some kind differ. Who believes that labels agree would
            never learn otherwise.
    """
    of = surrogate.coordinates
    means, _ = surrogate.predict(points)
    feasible = np.zeros(len(points)) if limit is None else limit[0].log_share_below(points, limit[1])
    order = np.argsort(np.where(feasible >= math.log(0.5), means, means + 1e6))
    leaders, best = points[order[:_N_LEADERS]], float(means[order[0]])

    def worth(candidates: Array) -> Array:
        own = log_expected_improvement(*surrogate.predict(candidates), best)
        return own if limit is None else own + limit[0].log_share_below(candidates, limit[1])

    shared = of.shared(rng.random((_N_SHARED, of.n_shared)))
    candidates = np.concatenate([*([] if is_apart else [shared]), *_around(surrogate, leaders, rng)])
    found = worth(candidates)
    starts = [*candidates[np.argsort(-found)[:_N_CLIMBS]], leaders[0]]
    climbed = of.rounded(np.array([_climbed(surrogate, start, best, limit) for start in starts]))
    everyone = np.concatenate([candidates, climbed])
    values = worth(everyone)
    if is_apart and (differ := of.differ(everyone)).any():
        values = np.where(differ, values, -np.inf)
    chosen = int(np.argmax(values))
    return Proposal(everyone[chosen], math.exp(min(float(values[chosen]), 100.0)))


def _around(surrogate: Surrogate, leaders: Array, rng: np.random.Generator) -> list[Array]:
    """Candidates near the leaders: moved along coordinates, and some labels moved by themselves."""
    of = surrogate.coordinates
    back = np.linalg.pinv(of.projection).T
    share = min(1.0, _MOVED / of.n)
    found = []
    for leader in leaders:
        for width in _WIDTHS:
            steps = rng.normal(scale=width, size=(_N_NEAR, len(back))) * (rng.random((_N_NEAR, len(back))) < 0.5)
            alone = rng.normal(scale=width, size=(_N_NEAR, of.n)) * (rng.random((_N_NEAR, of.n)) < share)
            # a choice is changed or left; a small step of it would be rounded away
            alone[:, ~of.is_number] *= 1.0 / width
            found += [leader + steps @ back, leader + alone]
    return [of.rounded(own) for own in found]


def _climbed(surrogate: Surrogate, start: Array, best: float, limit: tuple[Surrogate, float] | None) -> Array:
    """A local maximum of the logarithm of the acquisition, by its gradient; choices stay as they are."""
    numbers = surrogate.coordinates.is_number

    def negative(part: Array) -> tuple[float, Array]:
        point = start.copy()
        point[numbers] = part
        belief = surrogate.at(point)
        x = (best - belief.mean) / belief.sd
        value = float(log_expected_improvement(np.array([belief.mean]), np.array([belief.sd]), best)[0])
        if x > -5:
            density = math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
            scale = belief.sd * max(density + x * float(ndtr(x)), 1e-300)
            gradient = (density * belief.sd_gradient - float(ndtr(x)) * belief.mean_gradient) / scale
        else:
            gradient = (1 / belief.sd + (x + 2 / x) * x / belief.sd) * belief.sd_gradient
            gradient = gradient + (x + 2 / x) / belief.sd * belief.mean_gradient
        if limit is not None:
            own, rim = limit
            met = own.at(point)
            place = (rim - met.mean) / met.sd
            value += float(log_ndtr(place))
            ratio = math.exp(-0.5 * place * place - 0.5 * math.log(2 * math.pi) - float(log_ndtr(place)))
            gradient = gradient - ratio / met.sd * (met.mean_gradient + place * met.sd_gradient)
        return -value, -gradient[numbers]

    if not numbers.any():
        return start
    bounds = [(0.0, 1.0)] * int(numbers.sum())
    options = {"maxiter": _MAX_ITERATIONS}
    fit = minimize(negative, start[numbers], jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    result = start.copy()
    result[numbers] = fit.x
    return result
