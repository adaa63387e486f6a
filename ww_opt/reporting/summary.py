"""A trial and a study as others show them: parameters, curves over steps, the table of the layers, a note.

Pure functions of what Optuna's storage holds, without torch and mlflow. NaN and infinity are left out of curves and
are ``None`` in tables.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ww_opt.search import records
from ww_opt.search.ranking import best, is_interrupted
from ww_opt.spectral.findings import NARROW, label

__all__ = [
    "LayerTable",
    "best_value_at",
    "clean_names",
    "curves",
    "judged",
    "layer_table",
    "note",
    "parameters",
    "steps_run",
    "study_id",
    "study_note",
]

_MAX_LAYERS = 100  # beyond, a curve per layer would drown the page; the table still has every layer
_LAYER_METRICS = ("alpha", "D", "stable_rank", "spikes", "traps", "rank_loss")


@dataclass(frozen=True)
class LayerTable:
    """One row per step and layer; a cell is a number, a string or ``None``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def to_json(self) -> str:
        """``{"columns": [...], "data": [[...]]}``, which pandas and MLflow read as a split table."""
        return json.dumps({"columns": self.columns, "data": self.rows}, allow_nan=False)

    def to_csv(self) -> str:
        """Comma-separated with a header; empty where a cell is ``None``."""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([self.columns, *self.rows])
        return lines.getvalue()


def study_id(study: optuna.Study) -> str:
    """Name a study by its name and the start of its first trial, which no move to another storage changes."""
    first = next(iter(study.get_trials(deepcopy=False)), None)
    start = None if first is None else first.datetime_start
    return _digest(f"{study.study_name}\n{start}")[:16]


def best_value_at(study: optuna.Study, trials: Iterable[FrozenTrial], trial: FrozenTrial) -> float:
    """Give the best value at the time when ``trial`` ended, however late one asks; NaN where there was no best."""

    def end(one: FrozenTrial) -> tuple[datetime, int]:
        return one.datetime_complete or datetime.max, one.number

    found = best(study, [one for one in trials if end(one) <= end(trial)])
    return math.nan if found is None else found.values[0]


def clean_names(names: Iterable[str], max_length: int = 250) -> dict[str, str]:
    """Map names to keys of ``A-Z a-z 0-9 _ - . /`` and blank without empty path parts, which MLflow takes everywhere.

    A changed name that meets another's key gets a mark of its own at its end, so that no two are mixed up.
    """
    allowed = {name: re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)[:max_length] for name in names}
    keys = {name: "/".join(part for part in key.split("/") if part.strip(".")) or "_" for name, key in allowed.items()}
    count = Counter(keys.values())
    return {
        name: key if key == name or count[key] == 1 else f"{key[: max_length - 9]}_{_digest(name)[:8]}"
        for name, key in keys.items()
    }


def parameters(trial: FrozenTrial) -> dict[str, Any]:
    """List what a trial was trained with, each value once: what was suggested, and constants as ``<kind>/<label>``."""
    settings = records.read(trial, "settings", {})
    used = {f"{kind}/{label}": value for label, own in settings.items() for kind, value in own.items()}
    return {**{name: value for name, value in used.items() if value is not None}, **trial.params}


def steps_run(trial: FrozenTrial) -> int:
    """Steps that a trial ran: as recorded, else up to its last look or report."""
    seen = records.last_step(trial)
    return int(records.read(trial, "steps", default=(trial.last_step or 0) if seen is None else seen))


def curves(trial: FrozenTrial) -> dict[tuple[str, int], float]:
    """Collect the finite points of all curves by (name, step).

    ``value`` comes from Optuna's reports too, so trials without records have it; ``final_value`` is the objective.
    Each column of the layers gives ``mean_<column>``, over the layers that the score judges, and, up to 100 layers,
    ``<column>/<layer>``.
    """
    points: dict[tuple[str, int], float] = {("value", step): value for step, value in trial.intermediate_values.items()}
    for look in records.looks(trial):
        points |= {(name, look.step): value for name, value in _at_look(look).items()}
    last = max((step for _, step in points), default=0)
    values = trial.values or []
    for i, value in enumerate(values):
        points["final_value" if len(values) == 1 else f"final_value/{i}", last] = value
    return {place: value for place, value in points.items() if math.isfinite(value)}


def _at_look(look: records.Look) -> dict[str, float]:
    names = ("score", "value", "train_loss", "late_loss", "late_accuracy", "ahead_loss")
    own = {name: getattr(look, name) for name in names}
    own["diagnosis_seconds"] = look.seconds
    for column in _LAYER_METRICS:
        by_layer = {layer.name: float(getattr(layer, column)) for layer in look.layers}
        finite = [by_layer[layer.name] for layer in judged(look) if math.isfinite(by_layer[layer.name])]
        own[f"mean_{column}"] = fmean(finite) if finite else math.nan
        if len(by_layer) <= _MAX_LAYERS:
            own |= {f"{column}/{name}": value for name, value in by_layer.items()}
    return own


def judged(look: records.Look) -> list[records.LayerRecord]:
    """Return the layers that the score of the look judges: hidden ones that have a spectrum and are wide enough.

    Records from before there were roles say nothing of them; there the last layer is left out with a head's right.
    """
    hidden = [layer for layer in look.layers if layer.role in ("", "HIDDEN")]
    if len(hidden) > 1 and not any(layer.role for layer in look.layers):
        hidden = hidden[:-1]
    return [layer for layer in hidden if layer.n_eigenvalues > 0 and layer.M >= NARROW]


def layer_table(trial: FrozenTrial) -> LayerTable:
    """Table every layer at every look; findings are joined by commas."""
    columns = tuple(item.name for item in fields(records.LayerRecord))
    rows = [
        (look.step, *(_cell(getattr(layer, name)) for name in columns))
        for look in records.looks(trial)
        for layer in look.layers
    ]
    return LayerTable(("step", *columns), tuple(rows))


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return ", ".join(map(label, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(trial: FrozenTrial, max_length: int) -> str:
    """Tell a trial in Markdown: state, value, reason and the layers at its last look, as far as they fit.

    Args:
        trial: a finished trial.
        max_length: in characters; rows that would go beyond it are left out, and a last line says so.
    """
    text = f"**{_state(trial)}** {_numbers(trial.values or ())}\n\n{records.reason(trial)}".strip()
    look = records.last_look(trial)
    if look is not None and look.layers:
        text += f"\n\nLayers at step {look.step}:\n\n| layer | {' | '.join(_LAYER_METRICS)} | findings |"
        text += "\n" + "|---" * (len(_LAYER_METRICS) + 2) + "|"
        for layer in look.layers:
            numbers = " | ".join(_numbers([getattr(layer, column)]) for column in _LAYER_METRICS)
            row = f"\n| {layer.name} | {numbers} | {', '.join(map(label, layer.findings))} |"
            if len(text) + len(row) > max_length - 50:
                text += "\n\nThe other layers are in `layers.csv`."
                break
            text += row
    return text[:max_length]


def study_note(study: optuna.Study, trials: Iterable[FrozenTrial], leader: FrozenTrial | None) -> str:
    """Tell a study in one line: how its finished trials ended, and the best."""
    counts = Counter(_state(trial) for trial in trials)
    ended = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    found = "No best trial yet." if leader is None else f"Best: **trial {leader.number}**, {_numbers(leader.values)}."
    return f"{study.study_name}: {ended}. {found}"


def _state(trial: FrozenTrial) -> str:
    return "INTERRUPTED" if is_interrupted(trial) else trial.state.name


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
