"""What a pruned trial would have been worth at the end: its last number is of another step than what completed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from ww_opt.search.decisions import RANK, Decision, decisions

__all__ = ["carried"]

_FEW = 4
_NEAR = 0.1


def carried(pruned: Sequence[FrozenTrial], complete: Sequence[FrozenTrial], sign: float) -> dict[int, float]:
    """Values of pruned trials carried to the end of the run, by number, lower is better.

    What one showed where it was pruned is set beside what completed trials showed there and what they came to: as many
    spreads from their median as it was there. At a rung of :class:`ww_opt.SpectralPruner` that is what the decision
    compared; else the value reported at that step. With fewer than four such trials it is the last value as it is.

    Args:
        pruned: trials that were pruned.
        complete: trials with finite values.
        sign: 1 where the study minimises, else -1.

    Returns:
        NaN where nothing finite is known of a trial.
    """
    known = [(own, decisions(own)) for own in complete]
    return {trial.number: _carried(trial, known, sign) for trial in pruned}


def _carried(trial: FrozenTrial, known: Sequence[tuple[FrozenTrial, Sequence[Decision]]], sign: float) -> float:
    step = trial.last_step
    ranked = next((own for own in decisions(trial) if own.is_pruned and own.half == RANK), None)
    last = math.nan if step is None else sign * trial.intermediate_values[step]
    here = last if ranked is None else ranked.value
    pairs = []
    for own, decided in known:
        if ranked is not None:
            there = next((one.value for one in decided if one.rule == ranked.rule and _is_near(one, ranked)), math.nan)
        else:
            there = math.nan if step is None else sign * own.intermediate_values.get(step, math.nan)
        if math.isfinite(there):
            pairs.append((there, sign * own.values[0]))
    if len(pairs) < _FEW or not math.isfinite(here):
        return last if math.isfinite(last) else math.nan
    shown, ends = zip(*pairs, strict=True)
    spread = _spread(shown)
    scale = _spread(ends) / spread if spread else 0.0
    return float(statistics.median(ends) + scale * (here - statistics.median(shown)))


def _spread(values: Sequence[float]) -> float:
    """Median distance from the median: one trial that diverged does not move it."""
    median = statistics.median(values)
    return statistics.median(abs(value - median) for value in values)


def _is_near(one: Decision, other: Decision) -> bool:
    return abs(one.fraction - other.fraction) <= _NEAR
