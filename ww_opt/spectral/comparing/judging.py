"""All layers before and after -> which broke, what stands out, and whether the two have anything in common."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ww_opt.spectral.comparing.bands import BANDS, SPREAD, Bands, Spread, is_outside
from ww_opt.spectral.comparing.rules import breaks, is_taken_back
from ww_opt.spectral.comparing.shifts import LayerShift
from ww_opt.spectral.findings import NARROW

__all__ = ["is_other_training", "judged_shifts", "others_cosine"]


def is_other_training(rows: Sequence[LayerShift]) -> bool:
    """Whether the two have no weights in common: trained from different starts, so that distances say nothing."""
    cosines = [row.pair.cosine for row in rows if not math.isnan(row.pair.cosine)]
    return len(cosines) > 0 and abs(statistics.median(cosines)) < 0.25


def others_cosine(rows: Sequence[LayerShift]) -> dict[str, float]:
    """Median cosine of the other layers, by name; empty where fewer than three can be compared."""
    cosines = {row.name: row.pair.cosine for row in rows if not math.isnan(row.pair.cosine)}
    if len(cosines) < 3:
        return {}
    return {name: statistics.median(own for other, own in cosines.items() if other != name) for name in cosines}


def judged_shifts(rows: Sequence[LayerShift], bands: Bands = BANDS, spread: Spread = SPREAD) -> tuple[LayerShift, ...]:
    """Say of each row which rules it broke, what stands out in it, and what of its scale is harmless."""
    cosines, is_other = others_cosine(rows), is_other_training(rows)
    result = []
    for row in rows:
        found = () if row.is_unchanged and row.new.is_analysed else breaks(row, cosines.get(row.name, math.nan), bands)
        unusual = () if row.is_unchanged else tuple(_unusual(row, is_other, spread))
        result.append(replace(row, breaks=found, stands_out=unusual, note=_note(row, bands)))
    return tuple(result)


def _unusual(row: LayerShift, is_other: bool, spread: Spread) -> Iterator[str]:
    """What of a layer changed more than is usual, in words."""
    own, old, new = row.pair, row.old, row.new
    if not old.is_analysed:
        yield "OLD holds NaN or infinity"
        return
    if not is_other and own.distance > spread.distance:
        yield f"moved by {own.distance:.0%}"
    if is_outside(own.ratio, spread.ratio):
        yield f"norm x{own.ratio:.3g}"
    if new.M >= NARROW and max(old.D, new.D) <= spread.D and abs(new.alpha - old.alpha) > spread.alpha:
        yield f"alpha {old.alpha:.2f} -> {new.alpha:.2f}"
    if min(old.effective_rank, new.effective_rank) > 0 and is_outside(
        new.effective_rank / old.effective_rank, spread.rank
    ):
        yield f"effective rank x{new.effective_rank / old.effective_rank:.2f}"
    if own.new.levels and not own.old.levels:
        yield f"rounded to {own.new.levels} values"
    if own.new.zeros > own.old.zeros + 0.05:
        yield f"{own.new.zeros:.0%} zeros"


def _note(row: LayerShift, bands: Bands) -> str:
    """That a change of scale is harmless, where a norm takes it back."""
    if not is_outside(row.pair.ratio, bands.factors) or not is_taken_back(row, bands):
        return ""
    how = (
        "follows" if math.isnan(row.norm_ratio) else f"behind it moved along (running deviation x{row.norm_ratio:.3g})"
    )
    return f"norm x{row.pair.ratio:.3g}, harmless: a norm {how}"
