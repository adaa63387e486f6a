"""The table of ``ww-opt judge``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ww_opt.reporting.terminal import are_shares, number, table

if TYPE_CHECKING:
    from ww_opt.study.judging import Judged

__all__ = ["judged_text"]


def judged_text(rows: Sequence[Judged], metric: str) -> str:
    """Lay out what the sealed test set says of settings: mean, and the range over seeds.

    Args:
        rows: from :func:`ww_opt.study.judging.judged`.
        metric: of the task; shares of ``accuracy`` are told in percent.
    """
    values = [value for row in rows for value in row.values if not math.isnan(value)]
    is_share = are_shares(metric, values)

    def told(value: float) -> str:
        return f"{100 * value:.1f}" if is_share else number(value)

    n_seeds = max((len(row.values) for row in rows), default=0)
    lines = [
        f"The sealed test set: {metric}{' in percent' * is_share}, each trained afresh on all examples with "
        f"{n_seeds} seed{'s' * (n_seeds != 1)} that no trial had",
        "",
    ]
    cells = [[row.name, _range(row, told), row.origin] for row in rows]
    return "\n".join([*lines, table(["", "mean (range)", "settings of"], cells)])


def _range(row: Judged, told: Callable[[float], str]) -> str:
    if math.isnan(row.mean):
        return f"diverged with {sum(map(math.isnan, row.values))} of {len(row.values)} seeds"
    spread = f"  ({told(min(row.values))} to {told(max(row.values))})" if len(row.values) > 1 else ""
    return f"{told(row.mean)}{spread}"
