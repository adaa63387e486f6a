"""The evidence in pictures: score against test accuracy, what a score is worth in labelled examples, searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks.evidence.candidates import LATE_CANDIDATES
from benchmarks.evidence.judge import Study, splits, studies
from benchmarks.evidence.kept import DATA
from benchmarks.evidence.search import LONG, LONG_SEARCHES, read_searches
from benchmarks.evidence.seen import Rule
from benchmarks.evidence.statistics import lost, spearman
from benchmarks.evidence.tables import incumbents

__all__ = ["draw"]

RULES = {
    "training loss": (LATE_CANDIDATES["late: training loss"], "#b0b0b0"),
    "weights alone": (LATE_CANDIDATES["late: ww_opt default"], "#d98c3f"),
    "late guard": (LATE_CANDIDATES["ww_opt default, late guard"], "#1f6f8b"),
}
"""Rules that are drawn, with their colours."""
GRID = (5, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300)


def draw(folder: Path, data: Path = DATA) -> list[Path]:
    """Draw all figures into a folder and return their paths."""
    late, base, holdout = (studies(kind, data) for kind in ("late", "base", "holdout"))
    figures = {"evidence": _scatter(late), "worth": _worth(late, base, holdout), "goodhart": _goodhart(data)}
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=130)
    return paths


def _panels(n: int, height: float, title: str) -> tuple[Figure, list[Axes]]:
    columns = min(n, 5)
    rows = -(-n // columns)
    figure = Figure(figsize=(13, height * rows), layout="constrained")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", weight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = [item for row in grid for item in row]
    for item in axes:
        item.spines[["top", "right"]].set_visible(False)
        item.tick_params(labelsize=8)
    for item in axes[n:]:
        item.set_axis_off()
    return figure, axes[:n]


def _scatter(late: Sequence[Study]) -> Figure:
    """Rank by rule against test accuracy, one panel a task."""
    title = "Does the better rank mean the better test accuracy? 60 random trials a task; the numbers are Spearman's"
    figure, axes = _panels(len(late), 2.7, title)
    for study, item in zip(late, axes, strict=True):
        truth = study.test(100)
        for name, (rule, colour) in RULES.items():
            values = rule(study.seen(100))
            order = np.argsort(np.argsort(values)) / max(len(values) - 1, 1)
            item.scatter(order, 100 * truth, s=9, color=colour, label=name, linewidths=0, alpha=0.85)
            place = 1.0 - 0.14 * (len(RULES) - 1 - list(RULES).index(name))
            text = f"{float(spearman(values, truth)):.2f}"
            item.text(place, 1.02, text, color=colour, fontsize=7, ha="right", weight="bold", transform=item.transAxes)
        item.set_title(study.case.name, fontsize=8, loc="left")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=9, frameon=False)
    axes[0].set_ylabel("test accuracy, %", fontsize=8)
    axes[len(axes) // 2].set_ylabel("test accuracy, %", fontsize=8)
    axes[-1].set_xlabel("rank by the rule, best at the right", fontsize=8)
    return figure


def _worth(late: Sequence[Study], base: Sequence[Study], holdout: Sequence[Study]) -> Figure:
    """Points lost by validation splits of growing size, and by the rules, which need none."""
    title = "How many labelled validation examples is the score worth? Accuracy lost by the pick, in points"
    figure, axes = _panels(len(base), 2.5, title)
    for study, item in zip(base, axes, strict=True):
        own = next(other for other in holdout if other.case is study.case)
        beside = next(other for other in late if other.case is study.case)
        found = splits(study, own, GRID)
        found = [split for place, split in enumerate(found) if place == 0 or split.n > found[place - 1].n]
        item.plot(
            [split.n for split in found], [split.lost for split in found], color="#444444", label="validation split"
        )
        for name, (rule, colour) in RULES.items():
            item.axhline(_lost(rule, beside), color=colour, lw=1.6, label=name)
        item.set_xscale("log")
        item.xaxis.set_major_locator(FixedLocator([5, 10, 20, 50, 100, 200]))
        item.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        item.xaxis.set_minor_locator(NullLocator())
        item.set_ylim(bottom=-0.03 * item.get_ylim()[1])
        item.set_title(study.case.name, fontsize=8, loc="left")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=9, frameon=False)
    axes[0].set_ylabel("points lost", fontsize=8)
    axes[len(axes) // 2].set_ylabel("points lost", fontsize=8)
    axes[-1].set_xlabel("examples held out for validation", fontsize=8)
    return figure


def _lost(rule: Rule, study: Study) -> float:
    return 100 * float(lost(rule(study.seen(100)), study.test(100)))


def _goodhart(data: Path) -> Figure:
    """Test accuracy of the incumbent along long searches."""
    records = [record for record in read_searches(data) if record["n_trials"] in LONG_SEARCHES]
    title = "Does the test accuracy still rise when a long search lowers the score? Accuracy of the incumbent, %"
    names = [name for name in LONG if any(record["case"] == name for record in records)]
    figure, axes = _panels(max(len(names), 1), 3.2, title)
    colours = {"weights": RULES["weights alone"][1], "late guard": RULES["late guard"][1]}
    for name, item in zip(names, axes, strict=False):
        for record in records:
            if record["case"] == name:
                test = 100 * incumbents(record)
                item.step(
                    range(1, len(test) + 1), test, where="post", color=colours[record["method"]], label=record["method"]
                )
        best = max(max(record["test"]) for record in records if record["case"] == name)
        item.axhline(100 * best, color="#999999", lw=0.8, ls=":", label="best trial of all")
        item.set_title(name, fontsize=9, loc="left")
        item.set_xlabel("trials", fontsize=8)
        item.legend(fontsize=7, frameon=False, loc="lower right")
    return figure
