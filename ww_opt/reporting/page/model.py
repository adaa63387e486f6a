"""One model's layers as a page: what needs attention, what it may come from, every layer, spectra, scores."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ww_opt.reporting.page.html import model_page
from ww_opt.reporting.page.section import Section
from ww_opt.reporting.page.spectra import drawn, legend_of, tabled
from ww_opt.reporting.plots.panels import read_spectra
from ww_opt.reporting.terminal import in_network_order
from ww_opt.spectral.advice import CANNOT_TELL, Suggestion, by_attention, nothing_learnt, suggestions
from ww_opt.spectral.reading.weights import Source
from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics, why_not_judged
from ww_opt.spectral.scores import SCORES

__all__ = ["model_report"]

_N_DRAWN = 48
"""Spectra that find room on a page; what needs attention comes first."""


def model_report(name: str, source: Source, diagnosis: Diagnosis) -> str:
    """Write the page of a model that was diagnosed.

    Args:
        name: of the model, as people know it; escaped.
        source: where its spectra are read again, to be drawn.
        diagnosis: its rows, or those of some layers.

    Returns:
        HTML that needs nothing else.
    """
    found = suggestions(diagnosis)
    rows = by_attention(Diagnosis(tuple(in_network_order(diagnosis)), diagnosis.convention), found)
    first = [row.name for row in rows if row.is_analysed][:_N_DRAWN]
    spectra = sorted(read_spectra(source, first), key=lambda own: first.index(own.name))
    about = f"{len(spectra)} of {len(rows)} layers are drawn, those that need attention first." if spectra else ""
    notes = (*legend_of(rows), *((diagnosis.note,) if diagnosis.note else ()))
    sections = [
        _answer(diagnosis, found),
        Section("layers", "Layers", ("What needs attention stands first.",), tabled(rows), notes=notes, shown=_SHOWN),
        Section("spectra", "Spectra", tuple(filter(None, (about, _READ))), drawings=drawn(diagnosis.rows, spectra)),
        _scores(diagnosis),
    ]
    return model_page(name, sections)


_SHOWN = ("layer", "N", "M", "alpha", "D", "spikes", "traps", "rank_loss", "finding")
_READ = (
    "Left of each pair, all eigenvalues in units of the null's edge: noise cannot make what lies beyond 1, the spikes. "
    "Right, the share of eigenvalues that reach a value, and the power law through its tail."
)


def _answer(diagnosis: Diagnosis, found: Sequence[Suggestion]) -> Section:
    frame = pd.DataFrame(
        [
            {"layers": ", ".join(own.layers) or "the whole net", "may come from; what to try": own.cause.value,
             "how sure": f"{own.sureness}{own.caveat}"}
            for own in found
        ]
    )  # fmt: skip
    learnt = nothing_learnt(diagnosis)
    if found:
        n = len({name for own in found for name in own.layers})
        title = f"{n} layer{'s' * (n != 1)} need{'s' * (n == 1)} attention" if n else "The whole net needs attention"
        said = learnt or "What it may come from, most likely first."
    else:
        title, said = "Nothing needs attention", learnt or "No finding calls to act, as far as a spectrum shows it."
    return Section("answer", title, (said,), frame, notes=(CANNOT_TELL,))


def _scores(diagnosis: Diagnosis) -> Section:
    values = [{"score": own.name, "value": own(diagnosis), "better": _BETTER[own.direction]} for own in SCORES.values()]
    why = why_not_judged(diagnosis.rows)
    left_out = [row for row in diagnosis if row.is_analysed and not row.is_judged]
    said = [f"Not in the scores: {_reasons(left_out)}."] if left_out else []
    return Section("scores", "Scores", (*said, *((why,) if why else ())), pd.DataFrame(values))


_BETTER = {"minimize": "lower", "maximize": "higher"}


def _reasons(rows: Sequence[LayerDiagnostics]) -> str:
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row.in_score.removeprefix("no: "), []).append(row.name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
