"""The pick's layers: their spectra and fits from its saved weights, else the rows that its trial recorded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ww_opt.reporting.page.drawings import Interval, alphas_figure
from ww_opt.reporting.page.facts import Facts
from ww_opt.reporting.page.section import Drawing, Section
from ww_opt.reporting.plots.panels import Spectrum, read_spectra, spectrum_panel
from ww_opt.reporting.terminal import in_network_order, legend
from ww_opt.search.records import LayerRecord
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.findings import CALLS_TO_ACT, NARROW, label
from ww_opt.spectral.rows import LayerDiagnostics
from ww_opt.study.picking import AGAIN
from ww_opt.study.weights_folder import is_own, pick_file, weights_file

__all__ = ["drawn", "layers_section", "legend_of", "tabled"]

_COLUMNS = ("layer", "N", "M", "alpha", "sigma", "D", "xmin", "n_tail", "spikes", "traps", "rank_loss", "finding")
_N_DRAWN, _N_DRAWN_OF_MANY, _MANY = 24, 12, 40
"""Layers whose spectra are drawn, and of how many are many; those with something to act on come first."""
_MOST_WORK = 2e11
"""Sum over layers of N M^2 up to which weights are read again: half a minute or so."""
_ACT = {finding.name for finding in CALLS_TO_ACT}

Row = LayerDiagnostics | LayerRecord


def layers_section(facts: Facts) -> Section:
    """Table the pick's layers and draw the spectrum of each, as far as they find room."""
    title = "The pick's layers"
    if facts.pick is None:
        return Section("layers", title, ("There is no pick, so there are no layers to show.",))
    recorded = facts.result.look.layers if facts.result.look is not None else ()
    file, why = _weights(facts, recorded)
    rows: Sequence[Row] = in_network_order(recorded)
    spectra: list[Spectrum] = []
    if file is not None:
        try:
            rows = in_network_order(diagnose(file))
            spectra = read_spectra(file, _first(rows))
            why = f"Read from {file.name}: {_WHOSE[file.name.partition('-')[0]]}."
        except Exception as error:  # a file that another program left there costs no report
            why = f"{file.name} cannot be read ({type(error).__name__}), so this is what the trial recorded."
    if not rows:
        return Section("layers", title, (why or "The pick has no layers on record.",), pd.DataFrame(columns=_COLUMNS))
    notes = (*_about_drawn(spectra, rows), *legend_of(rows))
    return Section("layers", title, (why,) if why else (), tabled(rows), drawn(rows, spectra), notes)


def tabled(rows: Sequence[Row]) -> pd.DataFrame:
    """Layers as a frame, in the order given."""
    frame = pd.DataFrame([_cells(row) for row in rows], columns=list(_COLUMNS))
    return frame.drop(columns=[name for name in ("xmin",) if frame[name].isna().all()])


def drawn(rows: Sequence[Row], spectra: Sequence[Spectrum]) -> tuple[Drawing, ...]:
    """Alphas of all layers, then the spectra."""
    alphas = Drawing(f"Alpha of {len(rows)} layers, in the network's order", partial(alphas_figure, _alphas(rows)))
    by_name = {row.name: row for row in rows}
    return (alphas, *(_panel(own, by_name[own.name]) for own in spectra))


def legend_of(rows: Sequence[Row]) -> list[str]:
    """Each finding that occurs, as a sentence."""
    return [" ".join(own.split()) + "." for own in re.split(r"\n(?=  \S)", legend(rows)) if own]


_WHOSE = {
    "pick": "the pick, trained again with all examples from the start",
    "trial": "the weights that the trial of the pick ended with",
}


def _weights(facts: Facts, recorded: Sequence[LayerRecord]) -> tuple[Path | None, str]:
    """The file of the pick's weights, or why there is none to read."""
    folder, pick = facts.folder, facts.pick
    assert pick is not None
    absent = (
        "No weights of the pick lie here, so this is what its trial recorded at its last look, without the spectra."
    )
    if folder is None or not is_own(folder, facts.host):
        return None, absent
    again = pick_file(folder, pick.number)
    own = weights_file(folder, pick.number)
    file = again if facts.host.user_attrs.get(AGAIN) == pick.number and again.is_file() else own
    if not file.is_file():
        return None, absent
    if sum(float(row.N) * float(row.M) ** 2 for row in recorded) > _MOST_WORK:
        return None, (
            "The layers are too large to be read again here, so this is what the trial recorded; `ww-opt analyze` "
            f"reads {file.name}."
        )
    return file, ""


def _first(rows: Sequence[Row]) -> list[str]:
    """Names of the layers to draw: those to act on, then fitted ones in the network's order."""
    fitted = [row for row in rows if row.n_eigenvalues > 0]
    n = _N_DRAWN if len(fitted) <= _MANY else _N_DRAWN_OF_MANY
    return [row.name for row in sorted(fitted, key=lambda row: not _calls(row))[:n]]


def _names(row: Row) -> list[str]:
    return [item if isinstance(item, str) else item.name for item in row.findings]


def _calls(row: Row) -> bool:
    return not _ACT.isdisjoint(_names(row))


def _about_drawn(spectra: Sequence[Spectrum], rows: Sequence[Row]) -> Iterable[str]:
    if spectra:
        yield (
            "Left, all eigenvalues in units of the null's edge: noise cannot make what lies beyond 1, the spikes. "
            "Right, the share of eigenvalues that reach a value, and the power law through its tail."
        )
    n_fitted = sum(row.n_eigenvalues > 0 for row in rows)
    if spectra and len(spectra) < n_fitted:
        yield f"The spectra of {len(spectra)} of {n_fitted} layers are drawn, those to act on first; the table has all."


def _alphas(rows: Sequence[Row]) -> list[Interval]:
    return [
        Interval(row.name, row.alpha, row.alpha - row.sigma, row.alpha + row.sigma, row.M >= NARROW) for row in rows
    ]


def _panel(own: Spectrum, row: Row) -> Drawing:
    told = [f"alpha {row.alpha:.2f} ± {row.sigma:.2f}, D {row.D:.2f}"] if math.isfinite(row.alpha) else []
    told.append(f"{row.spikes} spike{'s' * (row.spikes != 1)}")
    told += [label(name) for name in _names(row)]
    caption = f"{row.name} · {row.N}x{row.M} · {', '.join(told)}"
    return Drawing(f"Spectrum of {row.name}: {', '.join(told)}", partial(spectrum_panel, own), caption)


def _cells(row: Row) -> dict[str, Any]:
    known = {name: getattr(row, name, math.nan) for name in _COLUMNS if name not in ("layer", "finding")}
    if not row.n_eigenvalues:
        known |= dict.fromkeys(("spikes", "traps", "rank_loss"))
    return {"layer": row.name, **known, "finding": ", ".join(label(name) for name in _names(row))}
