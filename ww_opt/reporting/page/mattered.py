"""Which settings mattered, and what each layer's settings did to that layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial

import pandas as pd

from ww_opt.reporting.page.drawings import Interval, intervals_figure
from ww_opt.reporting.page.facts import Facts
from ww_opt.reporting.page.section import Drawing, Section
from ww_opt.search.importance import Importance, Share, least_r2
from ww_opt.search.layer_effects import LayerEffect, beyond_chance
from ww_opt.study.mattered import about_layers

__all__ = ["effects_section", "importance_section"]

_N_SETTINGS, _N_EFFECTS = 12, 16
_N_ROWS = 60
"""Rows that people are shown, the strongest; JSON has all."""
_WORDS = {"spectral_norm": "spectral norm", "stable_rank": "stable rank"}


def importance_section(facts: Facts) -> Section:
    """Shares of the variance of the score by kind, by part and by single setting, with their intervals."""
    found, title = facts.result.importance, "Which settings mattered"
    if found is None:
        return Section("importance", title, ("There is no pick, so nothing is told of what mattered.",))
    drawn = _drawn(found)
    drawings = (
        (Drawing("Share of each kind of setting and of single settings, with intervals",
                 partial(intervals_figure, drawn, "share of what the settings explain", is_share=True)),)
        if drawn else ()
    )  # fmt: skip
    said = [own for own in facts.result.mattered if own not in about_layers(found)]
    return Section(
        "importance", title, tuple(said), found.frame(), drawings, tuple(_about_model(found)), n_rows=_N_ROWS
    )


def _about_model(found: Importance) -> list[str]:
    left = f", {found.n_left_out} left out that did not complete or compare" if found.n_left_out else ""
    said = f"Evaluator: a Gaussian process over the settings of {found.n_trials} trials{left}."
    if found.r2 == found.r2:
        said += (
            f" Of a tenth of the trials, foreseen from the others, it explains R2 {found.r2:.2f}; below "
            f"{least_r2(found.n_trials):.2f} nothing would be told."
        )
    if not found.kinds:
        return [said]
    return [
        said,
        "A share is what a setting makes by itself. Its interval ends below at what it makes by itself at least, and "
        "above at what it has part in at most, each with 95 % of the belief.",
    ]


def _drawn(found: Importance) -> list[Interval]:
    single = [own for own in found.settings if own.label][:_N_SETTINGS]
    return [Interval(_name(own), own.share, own.low, own.high, own.low > 0.05) for own in (*found.kinds, *single)]


def _name(own: Share) -> str:
    return f"{own.kind}/{own.label}" if own.label else own.kind


def effects_section(facts: Facts) -> Section:
    """Rank correlations of each setting with what was measured of its own layer, with their intervals."""
    title = "What each layer's settings did to that layer"
    found = facts.result.importance
    effects: Sequence[LayerEffect] = () if found is None else found.effects
    columns = [item.name for item in fields(LayerEffect)]
    if not effects:
        why = "Too few trials have records of their layers, or no setting belongs to a layer by its name."
        return Section("effects", title, (why,), pd.DataFrame(columns=[*columns, "beyond_chance"]))
    told = beyond_chance(effects)
    known = {id(own) for own in told}
    rest = sorted((own for own in effects if id(own) not in known), key=lambda own: own.chance)
    rows = [{**asdict(own), "beyond_chance": id(own) in known} for own in (*told, *rest)]
    frame = pd.DataFrame(rows, columns=[*columns, "beyond_chance"])
    n_trials = sorted({own.n_trials for own in effects})
    over = f"{n_trials[0]} to {n_trials[-1]}" if len(n_trials) > 1 else f"{n_trials[0]}"
    notes = [
        f"Evaluator: rank correlation over {over} trials of a setting with its layer's last look, with its interval of "
        f"95 %. {len(told)} of {len(effects)} are beyond chance (Holm, 5 %).",
        "The search chose the settings, so that layers moved together: partial is what is left once the other layers' "
        "settings of that kind are taken out.",
    ]  # fmt: skip
    sentences = tuple(about_layers(found)) if found is not None else ()
    if not told:
        nothing = "What went together is no more than chance would give."
        return Section("effects", title, (nothing,), frame, notes=tuple(notes), n_rows=_N_ROWS)
    rows_drawn = [_interval(own) for own in told[:_N_EFFECTS]]
    if len(told) > len(rows_drawn):
        notes.append(f"The {len(rows_drawn)} strongest are drawn.")
    words = "Rank correlations of settings with measures of their own layers"
    draw = partial(intervals_figure, rows_drawn, "rank correlation", is_share=False)
    return Section("effects", title, sentences, frame, (Drawing(words, draw),), tuple(notes), n_rows=_N_ROWS)


def _interval(own: LayerEffect) -> Interval:
    what = _WORDS.get(own.measure, own.measure)
    setting = f"{own.kind}/{own.label}"
    where = "" if own.layer == own.label else f" of {own.layer}"
    return Interval(f"{setting}: {what}{where}", own.correlation, own.low, own.high)
