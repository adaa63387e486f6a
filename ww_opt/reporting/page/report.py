"""The report of a study: its sections, and the same as JSON, as Markdown, as a page."""

from __future__ import annotations

import json
import math
import shlex
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd

from ww_opt import __version__
from ww_opt.reporting.page.answer import gain_section, pick_section, trust_section
from ww_opt.reporting.page.facts import Facts
from ww_opt.reporting.page.html import page
from ww_opt.reporting.page.mattered import effects_section, importance_section
from ww_opt.reporting.page.section import Section
from ww_opt.reporting.page.spectra import layers_section
from ww_opt.reporting.page.trials import compare_section, ended_section, scores_section, trials_section
from ww_opt.reporting.terminal import number
from ww_opt.study.secrets import without_logins

__all__ = ["Report", "report_of", "write_text"]


@dataclass(frozen=True)
class Report:
    """What people read of a study.

    Attributes:
        study: its name.
        sections: the answer first.
    """

    study: str
    sections: tuple[Section, ...]

    def __getitem__(self, key: str) -> Section:
        """The section of this key."""
        return next(own for own in self.sections if own.key == key)

    def to_json(self) -> str:
        """An object with ``study`` and ``sections``, by key; rows are lists in the order of ``columns``."""
        sections = {
            own.key: {
                "title": own.title,
                "sentences": list(own.sentences),
                "notes": list(own.notes),
                "columns": [str(name) for name in own.frame],
                "rows": _rows(own.frame),
            }
            for own in self.sections
        }
        return json.dumps({"study": self.study, "sections": sections}, allow_nan=False, indent=1)

    def to_markdown(self) -> str:
        """Headings, sentences and tables, without figures; what a name has of Markdown or HTML is escaped."""
        parts = [f"# {_escaped(self.study)}"]
        for own in self.sections:
            parts.append(f"## {_escaped(own.title)}")
            parts += [_escaped(sentence) for sentence in own.sentences]
            parts += [f"    {own.command}"] if own.command else []
            parts += [_markdown_table(own.table)] if not own.frame.empty else []
            parts += [_escaped(sentence) for sentence in own.notes]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """One page that needs nothing else: no network, no other file."""
        return page(self.study, self.sections)


def report_of(facts: Facts) -> Report:
    """Write the report of a study from what was gathered of it."""
    trials = trials_section(facts)
    return Report(
        facts.host.study_name,
        (
            pick_section(facts),
            gain_section(facts),
            trust_section(facts),
            scores_section(facts),
            importance_section(facts),
            effects_section(facts),
            layers_section(facts),
            ended_section(facts),
            trials,
            compare_section(facts, trials),
            _origin(facts),
        ),
    )


def write_text(text: str, target: Path) -> None:
    """Write a file aside and rename it: a reader never meets half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.write_text(text, encoding="utf-8", errors="replace")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _origin(facts: Facts) -> Section:
    """Where all this comes from, and what draws the rest."""
    storage = without_logins(facts.storage)
    ends = [own.datetime_complete for own in facts.trials if own.datetime_complete is not None]
    rows: list[tuple[str, Any]] = [("study", facts.host.study_name)]
    if facts.study is not None:
        objective = facts.study.objective
        rows += [("task", objective.task.name), ("score", objective.score), ("guard", str(objective.guard))]
    rows += [("direction", facts.result.direction)]
    rows += [("steps of a run", facts.n_steps)] if facts.n_steps else []
    rows += [("storage", storage)] if storage else []
    rows += [("as of", max(ends).isoformat(" ", "seconds"))] if ends else []
    rows += [(name, found) for name in ("ww_opt", "optuna", "torch") if (found := _version(name))]
    frame, title = pd.DataFrame(rows, columns=["what", "value"]), "Where this comes from"
    if not storage:
        return Section("origin", title, (), frame)
    said = "Parallel coordinates, contours, slices and trials as they run: Optuna's dashboard draws them well."
    said += " Put your login in place of ***." if "***" in storage else ""
    command = f"pip install optuna-dashboard && optuna-dashboard {shlex.quote(storage)}"
    return Section("origin", title, (said,), frame, command=command)


def _version(name: str) -> str:
    try:
        return __version__ if name == "ww_opt" else version(name)
    except PackageNotFoundError:
        return ""


def _rows(frame: pd.DataFrame) -> list[list[Any]]:
    return [[_plain(cell) for cell in row] for row in frame.itertuples(index=False, name=None)]


def _plain(cell: Any) -> Any:
    if cell is None or isinstance(cell, str | bool):
        return cell
    if hasattr(cell, "item"):
        cell = cell.item()
    if isinstance(cell, Integral):
        return cell
    if isinstance(cell, Real):
        return float(cell) if math.isfinite(cell) else None
    return str(cell)


def _markdown_table(frame: pd.DataFrame) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    head = [_escaped(str(name)).replace("_", " ") for name in frame]
    rows = [[_escaped(number(_plain(cell))) for cell in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _escaped(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{sign}" if sign in "\\`|[]*" else sign for sign in text)
