"""The words of ``ww-opt data-check``."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ww_opt.reporting.terminal import number, table

if TYPE_CHECKING:
    from ww_opt.study.data_check import DataCheck, Gain

__all__ = ["answer", "data_text"]

_WIDTH = 100


def answer(found: DataCheck) -> str:
    """Say in one sentence whether more data will help."""
    if math.isnan(found.loss.mean):
        return "Whether more data will help cannot be told: too many trainings diverged"
    if found.accuracy.is_told:
        return f"Twice the data should change the accuracy by {_points(found.accuracy)}"
    if found.loss.is_told:
        return f"Twice the data should change the late loss by {_interval(found.loss)}"
    return "Whether more data will help cannot be told: the intervals cover 0"


def data_text(found: DataCheck) -> str:
    """Lay out the sizes and the answer."""
    header = ["examples", "late loss", "accuracy", "mean alpha", "spread of alpha"]
    rows = [
        [size.n_examples, *map(_mean, (size.losses, size.accuracies, size.alphas, size.spreads))]
        for size in found.sizes
    ]
    lines = [f"{answer(found)}.", "", table(header, rows), ""]
    told = [f"late loss {_interval(found.loss)}"]
    if not math.isnan(found.accuracy.mean):
        told.append(f"accuracy {_points(found.accuracy)}")
    law = (
        f"With twice the data a power law with an offset, a + b n^-c, foresees: {', '.join(told)} (90 % intervals). "
        f"{found.n_judges} examples that none of them was trained on judged all; every training had the same number of "
        "steps. Means over seeds; alpha is shown beside it and foresees nothing by itself."
    )
    return "\n".join([*lines, *textwrap.wrap(law, _WIDTH)])


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _interval(gain: Gain) -> str:
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if not math.isnan(gain.mean) else number(math.nan)


def _points(gain: Gain) -> str:
    return f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
