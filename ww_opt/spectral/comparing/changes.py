"""Rows of a comparison -> what kind of change it is, in words, where that is sure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from ww_opt.spectral.comparing.judging import is_other_training
from ww_opt.spectral.comparing.shifts import LayerShift
from ww_opt.spectral.findings import Role

__all__ = ["kinds_of_change"]


def kinds_of_change(rows: Sequence[LayerShift], n_changed_vectors: int, n_differences: int) -> tuple[str, ...]:
    """Name the kinds of change that most of the changed layers show; empty where none is sure.

    Args:
        rows: the layers that both sides have.
        n_changed_vectors: biases, norms and the like that differ.
        n_differences: tensors on one side only, or of another shape.
    """
    changed = [row for row in rows if not row.is_unchanged]
    if not changed:
        if n_changed_vectors:
            return (f"no weight matrix changed; {_vectors(n_changed_vectors)} did",)
        where = " in what both have" if n_differences else ""
        return (f"nothing changed{where}: every number is the same",)
    found = []
    if is_other_training(changed):
        cosine = statistics.median(row.pair.cosine for row in changed if row.pair.cosine == row.pair.cosine)
        found.append(
            f"two trainings from different starts: their weights have nothing in common (cosine {cosine:.2f}), so "
            "spectra are compared and distances say nothing"
        )
    cast = {row.pair.cast for row in changed}
    if len(cast) == 1 and (dtype := cast.pop()):
        found.append(f"cast to {dtype}: rounding to it, and nothing else")
    for share, words in ((_levels, "quantised"), (_zeros, "pruned")):
        own = [row for row in changed if share(row) > 0]
        if 2 * len(own) > len(changed):
            found.append(f"{words}: {_of(own, changed)}, {_detail(words, own, share)}")
    if len(changed) < len(rows) and all(row.role is Role.HEAD for row in changed):
        found.append(f"only the output layer changed ({', '.join(row.name for row in changed)})")
    return tuple(found)


def _vectors(n: int) -> str:
    return f"{n} vector{'s' if n > 1 else ''} (biases, norms, running statistics)"


def _levels(row: LayerShift) -> float:
    return row.pair.new.levels if not row.pair.old.levels or row.pair.old.levels > row.pair.new.levels else 0


def _zeros(row: LayerShift) -> float:
    """Share of zeros that is new; those of rounding to few values are not pruned."""
    return row.pair.new.zeros if row.pair.new.zeros > row.pair.old.zeros + 0.05 and not row.pair.new.levels else 0.0


def _of(own: Sequence[LayerShift], changed: Sequence[LayerShift]) -> str:
    return f"{len(own)} of {len(changed)} changed layers"


def _detail(words: str, own: Sequence[LayerShift], share: Callable[[LayerShift], float]) -> str:
    low, high = (choose(map(share, own)) for choose in (min, max))
    if words == "pruned":
        return f"{low:.0%} to {high:.0%} of their weights are 0" if high - low > 0.01 else f"{high:.0%} zeros"
    values = f"{low:.0f} to {high:.0f}" if low < high else f"{high:.0f}"
    return f"{values} distinct values in a channel"
