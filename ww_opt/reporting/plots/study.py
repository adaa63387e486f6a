"""What a study did, in one picture, from Optuna's storage and our records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from ww_opt.reporting.plots.drawing import (
    OVER,
    UNDER,
    Colour,
    alpha_axis,
    blank_figure,
    note,
    say,
    spread,
    titled,
    write,
)
from ww_opt.reporting.summary import steps_run
from ww_opt.search import records
from ww_opt.search.ranking import is_interrupted, ranking
from ww_opt.search.repeats import is_repeat
from ww_opt.spectral.findings import Finding

__all__ = ["draw_scores", "draw_steps", "study_figure"]

_LAYER_COLOURS = (Colour.BLUE, Colour.GREEN, Colour.INK, Colour.PINK, Colour.SKY)
_MAX_NAMED = 12
"""Layers whose curves are named; of more, the first and the last."""
_MAX_KINDS = 5
"""Kinds of settings that find room beside each other."""


def study_figure(study: optuna.Study) -> Figure:
    """Draw scores and steps of the trials, the alphas of the pick's layers in training, and the settings tried.

    Trials that run or failed are not drawn, nor are parameters that are no numbers; the title counts the failed ones.
    Values that are not finite are left out. Without a completed trial, sentences say so.

    Raises:
        ValueError: the study has several objectives.
    """
    if len(study.directions) != 1:
        raise ValueError(
            f"A figure needs a study with 1 objective, but {study.study_name!r} has {len(study.directions)}: draw it "
            "with `optuna.visualization.matplotlib.plot_pareto_front`."
        )
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    trials = [trial for trial in finished if trial.state is not TrialState.FAIL]
    ranked = sorted(ranking(study, trials).trials, key=lambda trial: trial.number)
    pick = ranking(study, trials).best
    is_max = study.direction is optuna.study.StudyDirection.MAXIMIZE
    kinds, labels = _settings(trials)
    width = 11.0 + 0.15 * max([0, *(len(label) - 8 for label in labels)])  # long names stand twice
    figure = blank_figure(_story(finished, pick), height=max(4.8, 1.5 + 0.3 * len(labels)), width=width)
    grid = figure.add_gridspec(3, 2 + len(kinds), width_ratios=[3.0, 3.0, *(3.6 / len(kinds) for _ in kinds)])
    steps = titled(figure.add_subplot(grid[2, 0]), "Training steps; grey: pruned")
    scores = figure.add_subplot(grid[:2, 0], sharex=steps)
    what = "hollow: repeats" if any(map(is_repeat, trials)) else "line: best so far"
    titled(scores, f"Score, {'higher' if is_max else 'lower'} is better; {what}")
    alphas = titled(figure.add_subplot(grid[:, 1]), "Alpha of the pick's layers while it trained")
    settings = [titled(figure.add_subplot(grid[:, 2 + i]), kind.replace("_", " ")) for i, kind in enumerate(kinds)]
    scores.tick_params(labelbottom=False)
    draw_scores(scores, trials, ranked, pick, is_max)
    draw_steps(steps, trials, pick)
    _draw_alphas(alphas, pick)
    shades = _shades([trial for trial in trials if not is_repeat(trial)], is_max)
    for kind, axes in zip(kinds, settings, strict=True):
        _draw_setting(axes, [f"{kind}/{label}" if label else kind for label in labels], shades, pick)
        axes.set_yticks(range(len(labels)), labels if axes is settings[0] else [""] * len(labels), parse_math=False)
    if settings:
        # as long as all of them together: left out of the layout, lest it push them apart
        key = "orange: the pick; darker blue: better score; grey: pruned"
        note(settings[0], (0, 0), key, (0, -27), xycoords="axes fraction", in_layout=False)
    return figure


def _story(finished: Sequence[FrozenTrial], pick: FrozenTrial | None) -> str:
    n_interrupted = sum(is_interrupted(trial) for trial in finished)
    n_pruned, n_failed = (sum(t.state is state for t in finished) for state in (TrialState.PRUNED, TrialState.FAIL))
    failed = f", {n_failed - n_interrupted} failed" if n_failed > n_interrupted else ""
    interrupted = f", {n_interrupted} interrupted" if n_interrupted else ""
    counts = f"{len(finished)} trial{'s' * (len(finished) != 1)}, {n_pruned} pruned{failed}{interrupted}"
    if pick is None:
        none = "none is feasible" if any(t.state is TrialState.COMPLETE for t in finished) else "none completed"
        return f"{counts}; {none}, so there is no pick" if finished else "No trial has finished yet"
    return f"{counts}; the pick is trial {pick.number} with score {pick.values[0]:.3g}"


def draw_scores(
    axes: Axes, trials: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial], pick: FrozenTrial | None, is_max: bool
) -> None:
    """Draw the value of each completed trial, the best so far, and the pick; a sentence where there is none."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and math.isfinite(trial.values[0])]
    if not ranked or pick is None:
        say(axes, "No trial completed with a finite score." if not done else "No trial that completed is feasible.")
        return
    best = (np.maximum if is_max else np.minimum).accumulate([trial.values[0] for trial in ranked])
    steps = [trial.number for trial in ranked]
    axes.step([*steps, trials[-1].number], [*best, best[-1]], where="post", color=Colour.INK, linewidth=1.0)
    for is_again, face in ((False, Colour.BLUE), (True, "none")):
        shown = [(trial.number, trial.values[0]) for trial in done if is_repeat(trial) is is_again]
        if shown:
            axes.plot(*zip(*shown, strict=True), "o", color=Colour.BLUE, markerfacecolor=face, markersize=5)
    axes.plot(pick.number, pick.values[0], "o", color=Colour.ORANGE, markersize=9)
    axes.margins(y=0.15)
    style = {"color": Colour.ORANGE, "ha": "left" if pick.number < trials[-1].number / 2 else "right"}
    offset = (0, 11 if is_max else -11)
    note(axes, (pick.number, pick.values[0]), f"the pick, trial {pick.number}", offset, **style)


def draw_steps(axes: Axes, trials: Sequence[FrozenTrial], pick: FrozenTrial | None) -> None:
    """Draw how many steps each trial ran."""
    colours = [
        Colour.GREY if trial.state is TrialState.PRUNED else Colour.ORANGE if trial is pick else Colour.BLUE
        for trial in trials
    ]
    numbers, steps = [trial.number for trial in trials], [steps_run(trial) for trial in trials]
    axes.vlines(numbers, 0, steps, colors=colours, linewidth=min(3.5, 140 / max(len(trials), 1)))
    axes.set_xlim(-1, max([1, *numbers]) + 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))


def _draw_alphas(axes: Axes, pick: FrozenTrial | None) -> None:
    seen = [(look.step, layer) for look in (records.looks(pick) if pick else ()) for layer in look.layers]
    seen = [(step, layer) for step, layer in seen if math.isfinite(layer.alpha)]
    if not seen:
        say(axes, "The pick has no fitted layer on record." if pick else "No trial completed, so there is no pick.")
        return
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, layer in seen:
        curves.setdefault(layer.name, []).append((step, layer.alpha))
    alpha_axis(axes, "y", [layer.alpha for _, layer in seen])
    small = {layer.name for _, layer in seen if Finding.TOO_SMALL.name in layer.findings}
    colours = _colours(list(curves), small)
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), ":" if name in small else "-", color=colours[name], linewidth=1.8)
    axes.margins(x=0)
    named = list(curves) if len(curves) <= _MAX_NAMED else [next(iter(curves)), list(curves)[-1]]
    axes.autoscale_view()
    ends = axes.transAxes.inverted().transform(axes.transData.transform([curves[name][-1] for name in named]))
    for name, place in zip(named, spread(ends[:, 1], 0.05), strict=True):
        write(axes, (1.02, place), name, color=colours[name], va="center")
    # curves come from the upper left
    write(axes, (0.97, 0.98), f"above {UNDER:g}: under-trained", ha="right", va="top")
    note(axes, (seen[-1][0], UNDER), f"{OVER:g} to {UNDER:g}: usual", (-7, -9), ha="right")
    write(axes, (0.03, 0.02), f"below {OVER:g}: heavy tail", va="bottom")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("step" + "; dotted: too small to judge" * bool(small))


def _colours(names: Sequence[str], small: set[str]) -> dict[str, Any]:
    """Colour layers; those too small to judge are grey; many go from dark to bright with depth."""
    judged = [name for name in names if name not in small]
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(judged)))
    shown = _LAYER_COLOURS if len(judged) <= len(_LAYER_COLOURS) else shades
    return {**dict.fromkeys(names, Colour.GREY), **dict(zip(judged, shown, strict=False))}


def _settings(trials: Sequence[FrozenTrial]) -> tuple[list[str], list[str]]:
    """List kinds and labels of the parameters ``<kind>/<label>`` that are numbers, as they were first suggested."""
    names = {
        name: None
        for trial in trials
        for name, distribution in trial.distributions.items()
        if isinstance(distribution, FloatDistribution | IntDistribution)
    }
    parts = [name.partition("/") for name in names]
    kinds = list(dict.fromkeys(kind for kind, _, _ in parts))[:_MAX_KINDS]
    return kinds, list(dict.fromkeys(label for kind, _, label in parts if kind in kinds))


def _shades(trials: Sequence[FrozenTrial], is_max: bool) -> list[tuple[FrozenTrial, Any]]:
    """Colour the trials, in the order in which they are drawn: pruned ones in grey, then the worst to the best."""
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    done.sort(key=lambda trial: trial.values[0], reverse=not is_max)
    return [(trial, Colour.FAINT) for trial in pruned] + list(
        zip(done, colormaps["Blues"](np.linspace(0.35, 1.0, len(done))), strict=True)
    )


def _draw_setting(
    axes: Axes, names: Sequence[str], shades: Sequence[tuple[FrozenTrial, Any]], pick: FrozenTrial | None
) -> None:
    """Draw one kind of setting, a row for each label: what the trials took, the pick's in orange."""
    for row, name in enumerate(names):
        own = [(trial, shade) for trial, shade in shades if name in trial.params]
        if not own:
            continue
        distribution = own[0][0].distributions[name]
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        axes.set_xscale("log" if distribution.log else "linear")
        axes.fill_between([distribution.low, distribution.high], row - 0.36, row + 0.36, color=Colour.PALE, zorder=0)
        heights = [row + _dodge(trial.number) for trial, _ in own]
        axes.scatter([t.params[name] for t, _ in own], heights, s=13, c=[shade for _, shade in own], linewidths=0)
        if pick is not None and name in pick.params:
            axes.plot(pick.params[name], row, "D", color=Colour.ORANGE, markersize=7, markeredgecolor="white")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _dodge(number: int) -> float:
    """Move a dot up or down by up to 0.3, so that fewer lie on each other; the golden ratio spreads any count."""
    return 0.6 * (number * 0.6180339887 % 1.0 - 0.5)
