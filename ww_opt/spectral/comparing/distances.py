"""One layer's matrices before and after -> how far they moved, and what was done to their entries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Entries", "Pair", "pair"]

_MOST_LEVELS = 256
_N_LINES = 8
_N_CHANNELS = 256
_SHORT = 64
"""Entries of a channel below which a layer is also looked at as a whole for values that it was rounded to."""
_NEARLY = 1 - 1e-6
_LEAST = 8
"""Entries other than 0 that a line needs to tell whether it was rounded."""
_CASTS = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Entries:
    """What the entries of one layer show of what was done to them.

    Attributes:
        levels: distinct values in an output channel (or in the layer, where that says more) that was rounded to few,
            zeros counted; 0 where it was not. A count.
        zeros: share of the entries that are 0, between 0 and 1.
        at_limit: share of the entries that stand at the largest absolute value of the layer, or of their output
            channel, without the one in each that always does. Clipping leaves many there, rounding some.
        largest: that value, of the layer.
    """

    levels: int = 0
    zeros: float = 0.0
    at_limit: float = 0.0
    largest: float = math.nan


@dataclass(frozen=True)
class Pair:
    """One layer on both sides. Numbers are NaN where one of the norms is 0 or not finite.

    Attributes:
        distance: ``||new - old|| / ||old||``, Frobenius; 0 or more.
        cosine: between the two as vectors, -1 to 1: 1 for a mere change of scale, 0 for two unrelated trainings.
        ratio: ``||new|| / ||old||``.
        is_identical: every entry is the same number, or NaN on both sides.
        overshoot: mean of ``old / new`` where NEW stands at a limit (see :class:`Entries`): above 1 where it was
            clipped there, and not rounded.
        reordered: share of the output channels that are others of OLD's, 0 to 1; looked for where the cosine is below
            0.5.
        cast: the dtype to which casting OLD gives NEW, such as ``bfloat16``; empty: none.
        old, new: what their entries show.
    """

    distance: float = math.nan
    cosine: float = math.nan
    ratio: float = math.nan
    is_identical: bool = False
    overshoot: float = math.nan
    reordered: float = 0.0
    cast: str = ""
    old: Entries = Entries()
    new: Entries = Entries()


def pair(old: Tensor, new: Tensor) -> Pair:
    """Measure two stacks of matrices of one shape ``(k, rows, columns)``; in float64, on the CPU."""
    a, b = old.to("cpu", torch.float64), new.to("cpu", torch.float64)
    before = _entries(a)
    norms = float(a.norm()), float(b.norm())
    if torch.equal(a, b) or (math.isnan(norms[0]) and _is_same(a, b)):
        own = (0.0, 1.0, 1.0) if math.isfinite(norms[0]) else (math.nan,) * 3
        return Pair(*own, is_identical=True, old=before, new=before)
    after = _entries(b)
    if not all(map(math.isfinite, norms)) or norms[0] == 0:
        return Pair(old=before, new=after)
    cosine = float((a * b).sum()) / (norms[0] * norms[1]) if norms[1] > 0 else math.nan
    return Pair(
        distance=float((b - a).norm()) / norms[0],
        cosine=cosine,
        ratio=norms[1] / norms[0],
        overshoot=_overshoot(a, b),
        reordered=_reordered(a, b) if cosine < 0.5 else 0.0,
        cast=next((str(dtype).removeprefix("torch.") for dtype in _CASTS if torch.equal(a.to(dtype).to(a), b)), ""),
        old=before,
        new=after,
    )


def _is_same(old: Tensor, new: Tensor) -> bool:
    """Whether both hold the same numbers, NaN in the same places."""
    return torch.equal(old.isnan(), new.isnan()) and torch.equal(old.nan_to_num(), new.nan_to_num())


def _at_limit(size: Tensor) -> tuple[Tensor, int]:
    """Where absolute values, shape ``(k, rows, columns)``, are the largest of all, or of their row, and how many more.

    Of the two, the one of which more stand there than the one, or the one in each row, that always does.
    """
    tops = size.amax(dim=(0, 2), keepdim=True)
    of_all, of_row = (size >= top * _NEARLY for top in (size.max(), tops))
    of_row &= tops > 0
    more = int(of_all.sum()) - 1, int(of_row.sum()) - int((tops > 0).sum())
    return (of_all, more[0]) if more[0] >= more[1] else (of_row, more[1])


def _overshoot(old: Tensor, new: Tensor) -> float:
    if not bool(new.any()):
        return math.nan
    there, _ = _at_limit(new.abs())
    return float((old[there] / new[there]).mean())


def _reordered(old: Tensor, new: Tensor) -> float:
    """Of a few hundred channels of NEW, the share whose nearest one in OLD, by cosine, is another and near."""
    rows = [nn.functional.normalize(own.transpose(0, 1).flatten(1), dim=1) for own in (old, new)]
    asked = torch.arange(0, len(rows[1]), max(1, len(rows[1]) // _N_CHANNELS))
    nearest = (rows[1][asked] @ rows[0].T).max(dim=1)
    return float(((nearest.values > 0.9) & (nearest.indices != asked)).double().mean())


def _entries(stack: Tensor) -> Entries:
    if not bool(stack.isfinite().all()):
        return Entries()
    size = stack.abs()
    top = float(size.max())
    if top == 0:
        return Entries(zeros=1.0, largest=0.0)
    channels = stack.transpose(0, 1).flatten(1)  # a row for each output, whatever the kernel
    lines = [
        [channels[i] for i in _spread(len(channels))],
        [stack[:, :, i].flatten() for i in _spread(stack.shape[2])],
        [channels.flatten()] if channels.shape[1] < _SHORT else [],
    ]
    found = [levels for own in lines if (levels := _levels(own))]
    return Entries(
        levels=min(found, default=0),
        zeros=float((size == 0).double().mean()),
        at_limit=_at_limit(size)[1] / size.numel(),
        largest=top,
    )


def _spread(length: int) -> list[int]:
    return list(range(0, length, max(1, length // _N_LINES)))[:_N_LINES]


def _levels(lines: list[Tensor]) -> int:
    """Most distinct values in a line, where each line has few; 0 where one has many.

    Few are 256 or less, and less than half as many as there are entries. Zeros, which may be pruned, and entries at the
    limit, which may be clipped, are not what tells.
    """
    most = 0
    for line in lines:
        distinct, counts = torch.unique(line.abs(), return_counts=True)
        if int((line != 0).sum()) < _LEAST:
            continue  # too short, or pruned, to tell
        inner = slice(int(distinct[0] == 0), -1)
        n_values, n_entries = len(distinct[inner]), int(counts[inner].sum())
        if 2 * n_values + 3 > _MOST_LEVELS or 2 * n_values > n_entries:
            return 0
        most = max(most, int(torch.unique(line).numel()))
    return most
