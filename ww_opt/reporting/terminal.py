"""What ``ww-opt`` prints: tables."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ww_opt.spectral.findings import Finding, current_name, label

__all__ = [
    "are_shares",
    "command_line",
    "in_network_order",
    "layer_table",
    "legend",
    "number",
    "settings_table",
    "table",
    "unread",
]

_SETTINGS = ("lr", "weight_decay", "momentum", "dropout", "init_scale")


def number(value: Any) -> str:
    """Write a number in at most four digits, and ``-`` for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
    return str(value)


def are_shares(metric: str, values: Iterable[float]) -> bool:
    """Whether a metric's values are told in percent: accuracies are, unless some lie outside [0, 1]."""
    return metric == "accuracy" and all(0.0 <= value <= 1.0 for value in values)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lay out rows in columns, numbers to the right; lines are cut to the width of the terminal, but not below 80."""
    cells = [[number(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]
    numeric = [all(_is_number(row[column]) for row in cells) for column in range(len(header))]
    limit = max(shutil.get_terminal_size((120, 24)).columns, 80)

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)
        ]
        text = "  ".join(padded).rstrip()
        return text if len(text) <= limit else text[: limit - 3] + "..."

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in cells)])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == "-"
    return True


def in_network_order(rows: Iterable[Any]) -> list[Any]:
    """Put rows that stand in alphabetical order, as some files have them, in that of their numbers: 2 before 10.

    Any other order is the network's own and stays.
    """
    given = list(rows)
    names = [row.name for row in given]
    return sorted(given, key=lambda row: _natural(row.name)) if names == sorted(names) else given


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def layer_table(rows: Iterable[Any], off: Callable[[Any], float | None] | None = None) -> str:
    """Tabulate layers in the order given, from a diagnosis or from a trial's record.

    Args:
        rows: of the layers.
        off: a further column behind alpha: how far it lies from what is usual, ``None`` where that is not asked.
    """
    beside = () if off is None else ("off",)
    return table(
        ("layer", "shape", "alpha", *beside, "D", "spikes", "traps", "rank loss", "finding"),
        [
            (
                row.name,
                f"{row.N}x{row.M}" if row.M else "-",
                row.alpha,
                *(() if off is None else (_signed(off(row)),)),
                row.D,
                *((row.spikes, row.traps, row.rank_loss) if row.n_eigenvalues else (None,) * 3),
                _labels(row),
            )
            for row in rows
        ],
    )


def _signed(value: float | None) -> str | None:
    return None if value is None or math.isnan(value) else f"{value:+.2f}" if value else "0"


def _names(row: Any) -> list[str]:
    return [item if isinstance(item, str) else item.name for item in row.findings]


def _labels(row: Any) -> str:
    return ", ".join(label(name) for name in _names(row))


def unread(rows: Iterable[Any]) -> str:
    """Say why there is no spectrum of some layers, one line for each reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if not row.is_analysed:
            reason = "; ".join(text for text in (row.fit_status, row.note) if text)
            found.setdefault(reason, []).append(row.name)
    return "\n".join(f"  {', '.join(names)}: {reason}" for reason, names in found.items())


def legend(rows: Iterable[Any]) -> str:
    """Explain each finding that occurs, one line each."""
    found = {current_name(name) for row in rows for name in _names(row)}
    lines = [item.value for item in Finding if item.name in found and item.value != item.label]
    return "\n".join(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="    ") for line in lines)


def settings_table(settings: Mapping[str, Mapping[str, float | None]]) -> str:
    """Tabulate a trial's settings, one line per label, without columns that no label uses."""
    used = [kind for kind in _SETTINGS if any(own.get(kind) is not None for own in settings.values())]
    header = ("layer", *(kind.replace("_", " ") for kind in used))
    return table(header, [(label, *(own.get(kind) for kind in used)) for label, own in settings.items()])


def command_line(program: str, *arguments: str) -> str:
    """How to call a program of this environment from here: by its name where the PATH leads to it, else by its path."""
    own = Path(sys.executable).with_name(program)
    is_on_path = Path(shutil.which(program) or "").parent == own.parent
    return shlex.join([program if is_on_path or not own.exists() else os.path.relpath(own), *arguments])
