"""What ``ww-opt`` prints: tables, the closing words and the progress line."""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ww_opt.spectral.findings import Finding, current_name, label

if TYPE_CHECKING:
    import optuna

    from ww_opt.study.closing import Closing, TestAccuracy

__all__ = [
    "Progress",
    "accuracy_text",
    "closing_text",
    "command_line",
    "layer_table",
    "legend",
    "mlflow_text",
    "number",
    "settings_table",
    "table",
    "unread",
]

_SETTINGS = ("lr", "weight_decay", "momentum", "dropout")
_N_REASONS = 5
_PROGRESS_WIDTH = 110


def number(value: Any) -> str:
    """Write a number in at most four digits, and ``-`` for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
    return str(value)


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


def layer_table(rows: Iterable[Any]) -> str:
    """Tabulate layers, from a diagnosis or from a trial's record."""
    return table(
        ("layer", "shape", "alpha", "D", "spikes", "traps", "rank loss", "finding"),
        [
            (
                row.name,
                f"{row.N}x{row.M}" if row.M else "-",
                row.alpha,
                row.D,
                *((row.spikes, row.traps, row.rank_loss) if row.n_eigenvalues else (None,) * 3),
                _labels(row),
            )
            for row in rows
        ],
    )


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


def closing_text(result: Closing, settings: Mapping[str, Any]) -> str:
    """Tell what a study found, without the test set."""
    counts = f"{_trials(result.n_complete)} completed, {result.n_pruned} pruned, {result.n_failed} failed"
    if result.pick is None or result.pick.value is None:
        lines = [f"{counts}. There is nothing to pick: widen the space or let the pruner start later."]
        lines += [f"  {reason}" for reason in result.reasons[:_N_REASONS]]
        return "\n".join(lines)
    better = "lower" if result.direction == "minimize" else "higher"
    head = f"The pick: trial {result.pick.number}, score {number(result.pick.value)} ({better} is better)"
    parts = [head, "", settings_table(settings)]
    if result.look is not None:
        if not math.isnan(result.look.train_loss):
            parts[0] += f", training loss {number(result.look.train_loss)}"
        layers = result.look.layers
        parts += ["", "Its layers", "", layer_table(layers), *([words] if (words := legend(layers)) else [])]
    parts += ["", f"{counts}; pruning saved {result.saved:.0%} of the epochs."]
    if result.trust:
        wrapped = [textwrap.fill(own, 100, initial_indent="- ", subsequent_indent="  ") for own in result.trust]
        parts += ["", "How far to trust this ranking", "", *wrapped]
    return "\n".join(parts)


def _trials(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'}"


def accuracy_text(accuracy: TestAccuracy) -> str:
    """Tell what the sealed test set says."""
    lines = ["The sealed test set, opened only now (accuracy)", f"  the pick          {accuracy.pick:6.1%}"]
    if not math.isnan(accuracy.again):
        lines[1] += f"  ({accuracy.again:.1%} trained again with all examples from the start)"
    if not math.isnan(accuracy.best):
        lines += [
            f"  the best trial    {accuracy.best:6.1%}  (trial {accuracy.best_number}, known by hindsight only)",
            f"  the median trial  {accuracy.median:6.1%}  (of {accuracy.n_trials} completed)",
        ]
    return "\n".join(lines)


def command_line(program: str, *arguments: str) -> str:
    """How to call a program of this environment from here: by its name where the PATH leads to it, else by its path."""
    own = Path(sys.executable).with_name(program)
    is_on_path = Path(shutil.which(program) or "").parent == own.parent
    return shlex.join([program if is_on_path or not own.exists() else os.path.relpath(own), *arguments])


def mlflow_text(uri: str) -> str:
    """Tell where the MLflow runs are, and how to look at them; without a password."""
    shown = re.sub(r"//[^/\s@]+@", "//***@", uri)
    if shown.startswith("http"):
        return f"MLflow runs: {shown}"
    return f"MLflow runs: {shown}; to look at them:\n  {command_line('mlflow', 'ui', '--backend-store-uri', shown)}"


class Progress(AbstractContextManager["Progress"]):
    """An observer that draws one line: trial, score, best score, pruned so far, time left.

    Where stderr is no terminal, each trial is a line of its own.
    """

    def __init__(self, name: str, n_trials: int, *, n_done: int = 0, n_pruned: int = 0) -> None:
        from tqdm import tqdm

        self._on_terminal = sys.stderr.isatty()
        self._n_pruned = n_pruned
        bar = " |{bar}| " if self._on_terminal else ", "
        self._bar = tqdm(
            total=max(n_trials, n_done),
            initial=n_done,
            desc=name,
            bar_format="{desc} {n_fmt}/{total_fmt}" + bar + "{remaining} left{postfix}",
            ncols=min(shutil.get_terminal_size((80, 24)).columns, _PROGRESS_WIDTH) if self._on_terminal else None,
            file=sys.stderr if self._on_terminal else io.StringIO(),
        )

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, host: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Move on by one trial."""
        state = trial.state.name
        self._n_pruned += state == "PRUNED"
        is_any_complete = any(t.state.name == "COMPLETE" for t in host.get_trials(deepcopy=False))
        best = f"{host.best_value:.3f} (trial {host.best_trial.number})" if is_any_complete else "-"
        value = f"{trial.value:.3f}" if state == "COMPLETE" else state.lower()
        self._bar.set_postfix_str(f"trial {trial.number} {value}, best {best}, pruned {self._n_pruned}", refresh=False)
        self._bar.update()
        if not self._on_terminal:
            click.echo(str(self._bar), err=True)
