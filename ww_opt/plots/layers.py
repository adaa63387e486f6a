"""All layers of a model: alpha, spikes and what was found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ww_opt.plots.drawing import BLUE, GREY, ORANGE, OVER, PINK, SKY, SMALL, UNDER, alpha_axis, blank_figure, titled
from ww_opt.spectral.findings import Finding
from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics

__all__ = ["layers_figure"]

# marker and colour of a layer, by the gravest of its findings
_MARKERS = {
    Finding.RANK_COLLAPSE: ("X", ORANGE),
    Finding.TRAP: ("P", ORANGE),
    Finding.OVER_TRAINED: ("v", ORANGE),
    Finding.RANDOM: ("s", PINK),
    Finding.UNDER_TRAINED: ("^", PINK),
    Finding.TOO_SMALL: (".", GREY),
    Finding.HEAVY_TAIL: ("v", SKY),
    Finding.HEALTHY: ("o", BLUE),
}


def layers_figure(diagnosis: Diagnosis) -> Figure:
    """Draw alpha with its standard error, the share of spikes and the findings of every layer, in the model's order.

    A layer without a fit has no point; its status says why. The share of spikes is that of the eigenvalues.

    Raises:
        ValueError: the diagnosis has no rows.
    """
    rows = diagnosis.rows
    if not rows:
        raise ValueError("A figure needs at least 1 layer, but the diagnosis has 0 rows: diagnose a model with layers.")
    figure = blank_figure(_story(rows), height=1.6 + 0.32 * len(rows))
    alphas, shares = figure.subplots(1, 2, width_ratios=[2.4, 1.0])
    _draw_alphas(titled(alphas, "Alpha, with its standard error"), rows)
    titled(shares, "Spikes: share of eigenvalues beyond the null's edge")
    shares.barh(range(len(rows)), [row.spikes / max(row.n_eigenvalues, 1) for row in rows], height=0.5, color=BLUE)
    shares.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    shares.set_xlim(0, max([0.1, *shares.get_xlim()]))
    shares.yaxis.tick_right()
    shares.set_yticks(range(len(rows)), [_words(row) for row in rows], parse_math=False)
    alphas.set_yticks(range(len(rows)), [f"{row.name}  {row.N}x{row.M}" for row in rows], parse_math=False)
    for axes in (alphas, shares):
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
    return figure


def _story(rows: Sequence[LayerDiagnostics]) -> str:
    counts = Counter(_words(row).partition(",")[0].partition(":")[0] for row in rows)
    return f"{len(rows)} layer{'s' * (len(rows) != 1)}: " + ", ".join(f"{n} {words}" for words, n in counts.most_common())


def _draw_alphas(axes: Axes, rows: Sequence[LayerDiagnostics]) -> None:
    fitted = [(place, row) for place, row in enumerate(rows) if math.isfinite(row.alpha)]
    alpha_axis(axes, "x", [row.alpha for _, row in fitted])
    for place, row in fitted:
        marker, colour = next(look for finding, look in _MARKERS.items() if finding in row.findings)
        axes.hlines(place, max(row.alpha - row.sigma, 1.0), row.alpha + row.sigma, color=colour, linewidth=2, alpha=0.5)
        axes.plot(row.alpha, place, marker, color=colour, markersize=9)
    low, high = axes.get_xlim()
    for left, right, text in ((low, OVER, "very heavy tail"), (UNDER, high, "under-trained")):
        axes.text(
            math.sqrt(left * right), 1.0, text, transform=axes.get_xaxis_transform(), fontsize=SMALL, ha="center", va="top"
        )


def _words(row: LayerDiagnostics) -> str:
    if Finding.NOT_FITTED in row.findings:
        return row.fit_status
    return ", ".join(finding.value.partition(":")[0] for finding in row.findings)
