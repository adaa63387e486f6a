"""Late loss over the number of examples, the law through it, and what twice the data should give."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ww_opt.reporting.plots.drawing import Colour, blank_figure, note, say, titled

if TYPE_CHECKING:
    from ww_opt.study.data_check import DataCheck

__all__ = ["data_figure"]


def data_figure(found: DataCheck, answer: str) -> Figure:
    """Draw late loss and alpha over the number of examples.

    Args:
        found: what was measured.
        answer: in a sentence; the figure's title.
    """
    figure = blank_figure(answer, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1.0])
    _losses(titled(left, "Late loss, lower is better: each training, and the law with its 90 % interval"), found)
    _alphas(titled(right, "Alpha of hidden layers: mean, spread"), found)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("training examples")
        ticks = [size.n_examples for size in found.sizes] + ([2 * found.sizes[-1].n_examples] if axes is left else [])
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure


def _losses(axes: Axes, found: DataCheck) -> None:
    points = [(size.n_examples, loss) for size in found.sizes for loss in size.losses if math.isfinite(loss)]
    if not points:
        say(axes, "Every training diverged.")
        return
    if np.isfinite(found.band).all():
        low, middle, high = found.band
        axes.fill_between(found.band_at, low, high, color=Colour.SKY, alpha=0.3, linewidth=0)
        axes.plot(found.band_at, middle, color=Colour.BLUE)
        axes.axvline(found.sizes[-1].n_examples, color=Colour.FAINT, linewidth=1, zorder=0)
        note(axes, (found.sizes[-1].n_examples, float(high.max())), "all you have", (-4, -4), ha="right")
        note(axes, (found.band_at[-1], float(middle[-1])), "twice", (0, 12), ha="right")
    axes.plot(*zip(*points, strict=True), "o", color=Colour.INK, markersize=5)


def _alphas(axes: Axes, found: DataCheck) -> None:
    for size in found.sizes:
        for mean, spread in zip(size.alphas, size.spreads, strict=True):
            if math.isfinite(mean):
                error = spread if math.isfinite(spread) else 0.0
                axes.errorbar(size.n_examples, mean, error, fmt="o", color=Colour.INK, ecolor=Colour.FAINT)
    if not axes.has_data():
        say(axes, "No hidden layer was wide enough for a fit.")
