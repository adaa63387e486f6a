"""All layers of a model: alpha, its fit, spikes and what was found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ww_opt.reporting.plots.drawing import OVER, SMALL, UNDER, Colour, alpha_axis, blank_figure, note, titled
from ww_opt.spectral.findings import Finding
from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics

__all__ = ["layers_figure"]

# marker and colour of a layer, by the gravest of its findings
_MARKERS = {
    Finding.RANK_COLLAPSE: ("X", Colour.ORANGE),
    Finding.TRAP: ("P", Colour.ORANGE),
    Finding.OVER_TRAINED: ("v", Colour.ORANGE),
    Finding.MOVED_LITTLE: ("s", Colour.PINK),
    Finding.UNDER_TRAINED: ("^", Colour.PINK),
    Finding.TOO_SMALL: (".", Colour.GREY),
    Finding.HEAVY_TAIL: ("v", Colour.SKY),
}
_PLAIN = ("o", Colour.BLUE)
_D_OF_NOISE = (0.13, 0.19)


def layers_figure(diagnosis: Diagnosis) -> Figure:
    """Draw alpha with its standard error, D, the share of spikes and the findings of every layer, in the rows' order.

    A layer without a fit has no point; its status says why. The share of spikes is that of the eigenvalues.

    Raises:
        ValueError: the diagnosis has no rows.
    """
    rows = diagnosis.rows
    if not rows:
        raise ValueError("A figure needs at least 1 layer, but the diagnosis has 0 rows: diagnose a model with layers.")
    figure = blank_figure(_story(rows), height=1.8 + 0.3 * len(rows))
    alphas, distances, shares = figure.subplots(1, 3, width_ratios=[2.2, 0.8, 1.0])
    _draw_alphas(titled(alphas, "Alpha, with its standard error"), rows)
    _draw_distances(titled(distances, "D: distance of the fit"), rows)
    if diagnosis.convention == "default":
        _draw_shares(titled(shares, "Spikes, of all eigenvalues"), rows)
    else:
        titled(shares, "Spikes: not counted in this convention").set_xticks([])
    shares.yaxis.tick_right()
    alphas.set_yticks(range(len(rows)), [f"{row.name}  {row.N} x {row.M}" for row in rows], parse_math=False)
    shares.set_yticks(range(len(rows)), [", ".join(_words(row)) for row in rows], parse_math=False)
    distances.set_yticks([])
    for axes in (alphas, distances, shares):
        axes.set_ylim(len(rows) - 0.5, -1.6)
        axes.tick_params(axis="y", length=0)
    return figure


def _story(rows: Sequence[LayerDiagnostics]) -> str:
    counts = Counter(word for row in rows for word in _words(row))
    return f"{len(rows)} layer{'s' * (len(rows) != 1)}: " + ", ".join(f"{n} {word}" for word, n in counts.most_common())


def _words(row: LayerDiagnostics) -> list[str]:
    """Findings, without their explanations."""
    return [finding.label for finding in row.findings]


def _draw_alphas(axes: Axes, rows: Sequence[LayerDiagnostics]) -> None:
    alpha_axis(axes, "x", [row.alpha for row in rows if math.isfinite(row.alpha)])
    low, high = axes.get_xlim()
    for x, text in (
        (math.sqrt(low * OVER), "heavy tail\nor over-trained"),
        (math.sqrt(UNDER * high), "under-trained"),
    ):
        note(axes, (x, -1.05), text, (0, 0), ha="center")
    for place, row in enumerate(rows):
        if not math.isfinite(row.alpha):
            note(axes, (low, place), row.fit_status.partition(";")[0], (4, 0), color=Colour.GREY, in_layout=False)
            continue
        marker, colour = next((look for finding, look in _MARKERS.items() if finding in row.findings), _PLAIN)
        axes.hlines(place, max(row.alpha - row.sigma, 1.0), row.alpha + row.sigma, color=colour, linewidth=2, alpha=0.5)
        axes.plot(row.alpha, place, marker, color=colour, markersize=8)


def _draw_distances(axes: Axes, rows: Sequence[LayerDiagnostics]) -> None:
    found = [(row.D, place) for place, row in enumerate(rows) if math.isfinite(row.D)]
    axes.set_xlim(0.0, max([0.25, *(1.1 * D for D, _ in found)]))
    axes.axvspan(*_D_OF_NOISE, color=Colour.PALE, zorder=0, linewidth=0)
    note(axes, (sum(_D_OF_NOISE) / 2, -1.05), "noise has\nas much", (0, 0), ha="center")
    for D, place in found:
        axes.hlines(place, 0.0, D, color=Colour.FAINT, linewidth=1.2)
        axes.plot(D, place, "o", color=Colour.BLUE, markersize=5)


def _draw_shares(axes: Axes, rows: Sequence[LayerDiagnostics]) -> None:
    shares = [row.spikes / max(row.n_eigenvalues, 1) for row in rows]
    bars = axes.barh(range(len(rows)), shares, height=0.5, color=Colour.BLUE)
    counts = [f"{row.spikes} of {row.n_eigenvalues}" if row.is_analysed else "" for row in rows]
    axes.bar_label(bars, counts, padding=4, fontsize=SMALL, color=Colour.INK)
    axes.set_xlim(0, 1.5 * max(0.1, *shares))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
