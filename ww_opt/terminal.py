"""What ``ww-opt`` prints: tables and the progress line."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ww_opt.spectral.findings import Finding

if TYPE_CHECKING:
    import optuna
    from tqdm import tqdm

    from ww_opt.closing import Closing, TestAccuracy

__all__ = ["Progress", "closing_text", "layer_table", "legend", "number", "table"]

_SETTINGS = ("lr", "weight_decay", "momentum", "dropout")


def number(value: Any) -> str:
    """Write a number in at most four digits; an empty cell for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
    return str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lay out rows in columns, numbers to the right; the last column is cut to the width of the terminal."""
    cells = [[number(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]
    numeric = [all(_is_number(row[column]) for row in cells) for column in range(len(header))]
    limit = max(shutil.get_terminal_size((120, 24)).columns, 80)

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()[:limit]

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
            (row.name, f"{row.N}x{row.M}", row.alpha, row.D, row.spikes, row.traps, row.rank_loss, _labels(row))
            for row in rows
        ],
    )


def _labels(row: Any) -> str:
    names = [item if isinstance(item, str) else item.name for item in row.findings]
    return ", ".join(name.lower().replace("_", "-") for name in names)


def legend(rows: Iterable[Any]) -> str:
    """Explain each finding that occurs, one line each."""
    found = {item if isinstance(item, str) else item.name for row in rows for item in row.findings}
    return "\n".join(f"  {item.value}" for item in Finding if item.name in found and item is not Finding.HEALTHY)


def settings_table(settings: Mapping[str, Mapping[str, float | None]]) -> str:
    """Tabulate a trial's settings, one line per label, without columns that no label uses."""
    used = [kind for kind in _SETTINGS if any(own.get(kind) is not None for own in settings.values())]
    return table(("layer", *used), [(label, *(own.get(kind) for kind in used)) for label, own in settings.items()])


def closing_text(result: Closing, accuracy: TestAccuracy | None, settings: Mapping[str, Any]) -> str:
    """Tell what a study found."""
    counts = f"{result.n_complete} trials completed, {result.n_pruned} pruned, {result.n_failed} failed"
    if result.pick is None or result.pick.value is None or result.look is None:
        return f"\n{counts}. No trial completed, so there is nothing to pick: look at the reasons, widen the space."
    loss = "" if math.isnan(result.look.train_loss) else f", training loss {number(result.look.train_loss)}"
    parts = [
        f"\nThe pick: trial {result.pick.number}, score {number(result.pick.value)}{loss}",
        settings_table(settings),
        "\nIts layers",
        layer_table(result.look.layers),
        legend(result.look.layers),
        f"\n{counts}; pruning saved {result.saved:.0%} of the epochs.",
    ]
    if accuracy is not None:
        parts.append(
            "The sealed test set, opened only now: accuracy of "
            f"the pick {accuracy.pick:.1%}, the best trial {accuracy.best:.1%} (trial {accuracy.best_number}), "
            f"the median trial {accuracy.median:.1%}, of {accuracy.n_trials} completed."
            if not math.isnan(accuracy.best)
            else f"The sealed test set, opened only now: accuracy of the pick {accuracy.pick:.1%}."
        )
    return "\n".join(part for part in parts if part)


class Progress:
    """An observer that draws one line: trial, score, best score, pruned so far, time left."""

    def __init__(self, bar: tqdm[Any], n_pruned: int = 0) -> None:
        self._bar = bar
        self._n_pruned = n_pruned

    def __call__(self, host: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Move on by one trial."""
        self._n_pruned += trial.state.name == "PRUNED"
        complete = any(t.state.name == "COMPLETE" for t in host.get_trials(deepcopy=False))
        best = number(host.best_value) if complete else "-"
        value = "pruned" if trial.state.name == "PRUNED" else number(trial.value)
        self._bar.set_postfix_str(f"trial {trial.number}: {value}, best {best}, pruned {self._n_pruned}")
        self._bar.update()
