"""What the figures share: colours, titles, words beside points, the axis of alpha.

Orange is what to look at. Whatever a colour says is also said in words, by shape or by shade.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Array = NDArray[np.float64]
Point = tuple[float, float]

__all__ = [
    "OVER",
    "SMALL",
    "UNDER",
    "Array",
    "Colour",
    "alpha_axis",
    "blank_figure",
    "note",
    "say",
    "spread",
    "titled",
    "write",
]


class Colour(StrEnum):
    """Okabe and Ito's colours, which the colour-blind tell apart, and shades of grey."""

    BLUE = "#0072B2"
    ORANGE = "#D55E00"
    GREEN = "#009E73"
    PINK = "#CC79A7"
    SKY = "#56B4E9"
    INK = "#222222"
    GREY = "#767676"
    FAINT = "#BDBDBD"
    PALE = "#F0F0F0"


SMALL = 9.0
"""Size of all text but titles, in points."""
OVER, UNDER = 2.0, 6.0
"""The thresholds on alpha that the findings name."""

_ALPHA_TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 20, 40, 100)


def blank_figure(title: str, height: float, width: float = 11.0) -> Figure:
    """Make a figure, sides in inches, whose title says what was found."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.006, ha="left", fontsize=13, fontweight="bold", color=Colour.INK, parse_math=False)
    return figure


def titled(axes: Axes, title: str) -> Axes:
    """Give axes their title and take off what says nothing."""
    axes.set_title(title, loc="left", fontsize=10, color=Colour.INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL, labelcolor=Colour.INK, color=Colour.GREY)
    axes.xaxis.label.set(fontsize=SMALL, color=Colour.INK)
    axes.yaxis.label.set(fontsize=SMALL, color=Colour.INK)
    return axes


def say(axes: Axes, sentence: str) -> None:
    """Leave axes empty but for their title and a sentence."""
    axes.set_axis_off()
    write(axes, (0.5, 0.5), textwrap.fill(sentence, 40), ha="center", va="center")


def write(axes: Axes, place: Point, text: str, **style: Any) -> None:
    """Write at a place given in shares of the axes."""
    own = {"fontsize": SMALL, "color": Colour.INK, "parse_math": False, **style}
    axes.text(*place, text, transform=axes.transAxes, **own)


def note(axes: Axes, point: Point, text: str, offset: Point, **style: Any) -> None:
    """Write beside a point, ``offset`` in points of text."""
    own = {"fontsize": SMALL, "color": Colour.INK, "va": "center", "parse_math": False, **style}
    axes.annotate(text, point, offset, textcoords="offset points", **own)


def spread(places: Array, gap: float) -> Array:
    """Move places as little as needed (least squares) so that neighbours are ``gap`` apart; order is kept."""
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(places.size)
    moved = np.empty_like(places)
    moved[order] = isotonic_regression(places[order] - steps).x + steps
    return moved


def alpha_axis(axes: Axes, which: Literal["x", "y"], alphas: Sequence[float]) -> None:
    """Scale an axis for alpha, logarithmic, and shade what lies beyond 2 and 6."""
    low, high = min([1.4, *alphas]) * 0.95, max([8.0, *alphas]) * 1.05
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis, span = (axes.yaxis, axes.axhspan) if which == "y" else (axes.xaxis, axes.axvspan)
    axis.set_major_locator(FixedLocator([tick for tick in _ALPHA_TICKS if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for band in ((low, OVER), (UNDER, high)):
        span(*band, color=Colour.PALE, zorder=0, linewidth=0)
