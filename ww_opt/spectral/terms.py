"""Row -> what a judged layer lacks or suffers from, each between 0, best, and 1: spikes, alpha, traps, dead directions.

Scores are means of these over layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from ww_opt.spectral.rows import LayerDiagnostics
from ww_opt.spectral.rules import COLLAPSED

__all__ = ["TARGETS", "AlphaTerm", "Rows", "Target", "band", "dead", "judged", "mean_of", "missing_spikes", "trap"]

Rows = Sequence[LayerDiagnostics]
Target = Literal["vision", "language"] | float

SPIKE_TARGET = 0.1
"""Share of eigenvalues beyond the null's edge from which a layer has learnt enough: more is no merit."""
WIDE = 128
"""Width from which a layer counts in full; narrower ones are judged less surely."""

TARGETS: Mapping[str, tuple[float, float]] = MappingProxyType({"vision": (2.0, 2.0), "language": (3.0, 4.0)})
"""Alphas of well-trained layers by domain, from and to."""


def band(target: object) -> tuple[float, float]:
    """Alphas that a target stands for, from and to.

    Raises:
        ValueError: it is no domain of ``TARGETS``, and no number above 1 and up to 6.
    """
    if isinstance(target, str) and target in TARGETS:
        return TARGETS[target]
    try:
        value = float(target) if isinstance(target, (str, int, float)) else math.nan
    except ValueError:
        value = math.nan
    if not 1 < value <= 6:
        raise ValueError(
            f"`target` must be one of {list(TARGETS)} or an alpha, `1 < target <= 6`, but got target={target!r}: "
            "alphas of well-trained layers lie near 2 in vision, at 3 to 4 in language."
        )
    return value, value


def judged(rows: Iterable[LayerDiagnostics]) -> Rows:
    """Return the rows that a score looks at: hidden layers, analysed and wide enough."""
    return tuple(row for row in rows if row.is_judged)


def mean_of(term: Callable[[LayerDiagnostics], float], rows: Rows) -> float:
    """Mean of a term over the judged layers, by width; NaN without any."""
    layers = judged(rows)
    if not layers:
        return math.nan
    return float(np.average([term(row) for row in layers], weights=[min(row.M, WIDE) for row in layers]))


def missing_spikes(row: LayerDiagnostics, enough: float = SPIKE_TARGET) -> float:
    """What is missing to enough spikes: a layer that has learnt has about a tenth of its eigenvalues out there."""
    return 1.0 - min(1.0, row.spikes / (enough * row.n_eigenvalues))


def trap(row: LayerDiagnostics) -> float:
    """Huge entries: a search that pays with them gains nothing."""
    return min(1.0, math.log1p(row.traps) / math.log1p(0.05 * row.n_eigenvalues))


def dead(row: LayerDiagnostics) -> float:
    """Rank that was lost, in zeros and in effective rank."""
    lost = row.rank_loss / row.n_eigenvalues
    shortfall = max(0.0, 1.0 - row.effective_rank / (COLLAPSED * row.null_effective_rank))
    return min(1.0, lost + shortfall)


@dataclass(frozen=True)
class AlphaTerm:
    """What a layer lacks by its alpha: ``1 - trust (1 - distance)``, so that what cannot be trusted counts as unlearnt.

    The constants were measured on ten tasks, each left out once (``python -m benchmarks.evidence judge``).

    Attributes:
        low, high: alphas at which nothing is missing.
        reach: distance from there at which all is missing, on either side.
        D: Kolmogorov-Smirnov distances up to which a fit is trusted in full, and from which not at all. Noise has
            .13 to .19, so that spikes must tell as well; a tighter gate, .06 to .12, ranks worse.
        n_tail: eigenvalues in the tail from which a fit is trusted in full.
        sigma: standard error of alpha up to which it is trusted in full.
        spikes: share of spikes from which a tail is that of something learnt: a fit of noise has an alpha too.
    """

    low: float = TARGETS["vision"][0]
    high: float = TARGETS["vision"][1]
    reach: float = 4.0
    D: tuple[float, float] = (0.10, 0.18)
    n_tail: float = 10
    sigma: float = 1.0
    spikes: float = SPIKE_TARGET

    def __call__(self, row: LayerDiagnostics) -> float:
        """Return what is missing; all of it where there is no fit."""
        trust = self.trust(row)
        return 1.0 - trust * (1.0 - self.distance(row.alpha)) if trust > 0 else 1.0

    def distance(self, alpha: float) -> float:
        """Distance from the target, over ``reach``; 1 at most."""
        return min(1.0, max(0.0, alpha - self.high, self.low - alpha) / self.reach)

    def trust(self, row: LayerDiagnostics) -> float:
        """How far alpha can be believed and is something learnt, between 0 and 1."""
        if math.isnan(row.alpha) or math.isnan(row.D) or math.isnan(row.sigma):
            return 0.0
        sound, lost = self.D
        by_distance = min(1.0, max(0.0, (lost - row.D) / (lost - sound)))
        by_tail = min(1.0, row.n_tail / self.n_tail)
        by_error = min(1.0, self.sigma / row.sigma) if row.sigma > 0 else 1.0
        return by_distance * by_tail * by_error * (1.0 - missing_spikes(row, self.spikes))
