"""The figures of a page: narrow enough to be read on a phone, without titles, which the page has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from optuna.trial import TrialState

from ww_opt.reporting.page.facts import Facts
from ww_opt.reporting.plots.drawing import Colour, alpha_axis, note, say, titled
from ww_opt.reporting.plots.study import draw_scores, draw_steps
from ww_opt.study.trust import TIE

__all__ = ["Interval", "alphas_figure", "intervals_figure", "scores_figure", "shortened", "steps_figure"]

WIDTH = 4.4
"""Inches. A phone shows text of 9 points in such a figure at 10 pixels, a desktop at 16."""
_NAME_LENGTH = 28
_MAX_NAMED = 26
"""Rows of an axis that are named; of more, every second, third, ..."""
_FAR = 4.0


@dataclass(frozen=True)
class Interval:
    """A number with its interval, and what it is of; ``is_told`` ones are drawn in full colour."""

    name: str
    value: float
    low: float
    high: float
    is_told: bool = True


def shortened(name: str, length: int = _NAME_LENGTH) -> str:
    """Cut a long name after its kind, ``lr/``, or its first letters: names of layers differ at their ends."""
    if len(name) <= length:
        return name
    head = name.find("/") + 1
    head = head if 0 < head <= length // 2 else 3
    return f"{name[:head]}…{name[head + 1 - length :]}"


def scores_figure(facts: Facts) -> Figure:
    """Draw scores over trials; far ones are counted at the edge, so that the others are told apart."""
    figure, axes = _blank(2.9)
    trials = [own for own in facts.trials if own.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    ranked = sorted(facts.ranked, key=lambda own: own.number)
    pick = facts.pick
    draw_scores(axes, trials, ranked, pick, is_max=facts.sign < 0)
    if pick is None or pick.value is None or not ranked:
        return figure
    if math.isfinite(facts.result.noise):
        reach = TIE * facts.result.noise
        axes.axhspan(pick.value - reach, pick.value + reach, color=Colour.PALE, zorder=0, linewidth=0)
    axes.set_xlim(-1, max([1, *(own.number for own in trials)]) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel="score")
    _cut(axes, [facts.sign * own.value for own in ranked if own.value is not None], facts.sign)
    return figure


def _cut(axes: Axes, values: Sequence[float], sign: float) -> None:
    """End the axis where values are far worse than the median; say how many lie beyond."""
    best, median = min(values), float(np.median(values))
    limit = median + _FAR * (median - best)
    beyond = sum(value > limit for value in values)
    if not beyond or limit <= best:
        return
    pad = 0.15 * (limit - best)
    axes.set_ylim(*sorted((sign * (best - pad), sign * limit)))
    words = f"{beyond} worse one{'s' * (beyond != 1)} beyond"
    if sign < 0:
        axes.annotate(
            words, (0.99, 0.02), xycoords="axes fraction", ha="right", va="bottom", fontsize=9, color=Colour.GREY
        )
        return
    axes.annotate(words, (0.99, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=9, color=Colour.GREY)


def steps_figure(facts: Facts) -> Figure:
    """Draw how far each trial came; grey ones were pruned, broken lines failed."""
    figure, axes = _blank(1.9)
    draw_steps(axes, [own for own in facts.trials if own.state is not TrialState.WAITING], facts.pick)
    axes.set_ylabel("steps")
    return figure


def intervals_figure(rows: Sequence[Interval], label: str, *, is_share: bool) -> Figure:
    """Draw numbers with their intervals, one a row; shares from 0 to 1, correlations from -1 to 1."""
    figure, axes = _blank(0.75 + 0.24 * len(rows))
    _draw_intervals(axes, rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(*((-0.02, 1.02) if is_share else (-1.04, 1.04)))
    if is_share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.axvline(0.0, color=Colour.FAINT, linewidth=1.0, zorder=0)
    axes.set_xlabel(label)
    _name_rows(axes, [row.name for row in rows])
    return figure


def alphas_figure(rows: Sequence[Interval]) -> Figure:
    """Draw the alpha of each layer with its standard error, in the network's order; grey: not judged."""
    known = [row for row in rows if math.isfinite(row.value)]
    figure, axes = _blank(min(0.95 + 0.24 * len(rows), 9.0))
    if not known:
        say(axes, "No layer has a fit.")
        return figure
    alpha_axis(axes, "x", [row.value for row in known])
    low, high = axes.get_xlim()
    _draw_intervals(axes, rows)
    axes.set_xlim(low, high)
    for place, row in enumerate(rows):
        if not math.isfinite(row.value):
            note(axes, (low, place), "not fitted", (4, 0), color=Colour.GREY, in_layout=False)
    axes.set_ylim(len(rows) - 0.5, -1.3)
    note(axes, (low, -0.9), "heavy tail", (4, 0), color=Colour.GREY, in_layout=False)
    note(axes, (high, -0.9), "under-trained", (-2, 0), ha="right", color=Colour.GREY, in_layout=False)
    axes.set_xlabel("alpha")
    _name_rows(axes, [row.name for row in rows])
    return figure


def _draw_intervals(axes: Axes, rows: Sequence[Interval]) -> None:
    """Draw what is finite: dots with lines, those that are not told small and grey."""
    for is_told, colour, size in ((True, Colour.BLUE, 6), (False, Colour.GREY, 4)):
        own = [(place, row) for place, row in enumerate(rows) if row.is_told is is_told and math.isfinite(row.value)]
        lines = [(place, row.low, row.high) for place, row in own if math.isfinite(row.high - row.low)]
        if lines:
            places, lows, highs = zip(*lines, strict=True)
            axes.hlines(places, lows, highs, colors=[colour], linewidth=3, alpha=0.35)
        if own:
            axes.plot([row.value for _, row in own], [place for place, _ in own], "o", color=colour, markersize=size)


def _blank(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = titled(figure.add_subplot(), "")
    axes.spines[["left", "bottom"]].set_color(Colour.GREY)
    return figure, axes


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    step = math.ceil(len(names) / _MAX_NAMED)
    places = range(0, len(names), step)
    axes.set_yticks(places, [shortened(names[place]) for place in places], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
