"""Where layers of healthy nets lie, and how far healthy pairs differ: the numbers that rules and words go by.

They are those of ``python -m benchmarks.comparing``: two seeds of one training, half of a training and its end, an end
and its continuation or fine-tune, on ten tasks; ``docs/compare.md`` has the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ww_opt.spectral.rules import LIMITS

__all__ = ["BANDS", "SPREAD", "Bands", "Spread", "is_outside"]


@dataclass(frozen=True)
class Bands:
    """Where a layer counts as broken: for each rule a band, and a change.

    What healthy pairs reach stands behind each.

    Attributes:
        alike: cosine from which a change is one of scale alone, and ``factors`` between which such a change is healthy:
            .90 to 1.33 where the cosine is above .97.
        scale: root mean square of the entries, in units of Xavier's initialisation, between which layers lie: .61 to
            2.3; and ``grown``, the factors by which they shrink and grow: .95 to 1.8 in training on.
        moved_along: factors left after those of the norm behind it, between which a norm has taken a scale back:
            .87 to 1.2.
        at_limit: share of entries at a limit, and ``overshoot``, how far OLD's lay beyond it there: .006 in the
            smallest layers; rounding leaves more, but not from beyond.
        levels: distinct values of an output channel up to which rounding may break a layer, and ``rounding``, the
            relative error from which it does: 8 bits leave up to .02, 4 bits .05 and more.
        zeros: share of zeros, and ``pruned``, the factor of the norm under which their loss was not made good.
        entry: largest entry in standard deviations, and ``entry_grown``, its factor: 9.1, and 1.5 in training on.
        rank: share of the null's effective rank, and ``rank_kept``, the share of OLD's: .34, and .65 in training on.
        unrelated: cosine under which a layer has little in common with OLD, and ``gap``, how far under the median of
            the other layers: .13 in training on.
    """

    alike: float = 0.97
    factors: tuple[float, float] = (0.7, 1.45)
    scale: tuple[float, float] = (0.4, 3.0)
    grown: tuple[float, float] = (1 / 3, 3.0)
    moved_along: tuple[float, float] = (0.7, 1.45)
    at_limit: float = 0.01
    overshoot: float = 1.05
    levels: int = 16
    rounding: float = 0.05
    zeros: float = 0.5
    pruned: float = 0.85
    entry: float = LIMITS.huge
    entry_grown: float = 1.6
    rank: float = 0.25
    rank_kept: float = 0.5
    unrelated: float = 0.4
    gap: float = 0.5


BANDS = Bands()


@dataclass(frozen=True)
class Spread:
    """What is usual: 98 % of healthy layers from seed to seed lie within, and of light fine-tunes for ``distance``.

    Attributes:
        alpha: change of alpha, either way, and ``D``, the distance of both fits up to which it is told: alphas of worse
            fits move by themselves.
        ratio: factor of the Frobenius norm.
        rank: factor of the effective rank.
        distance: relative distance of the weights.
    """

    alpha: float = 2.2
    D: float = 0.1
    ratio: tuple[float, float] = (0.93, 1.07)
    rank: tuple[float, float] = (0.9, 1.1)
    distance: float = 0.16


SPREAD = Spread()


def is_outside(value: float, band: tuple[float, float]) -> bool:
    """Whether a number lies outside a band; NaN lies in all."""
    return not math.isnan(value) and not band[0] <= value <= band[1]
