"""One layer's matrices before and after -> how far they moved, and what was done to their entries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Entries", "Pair", "pair"]

_MOST_LEVELS = 256
_N_LINES = 8
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
        is_identical: every entry is the same number.
        overshoot: mean of ``old / new`` where NEW stands at a limit (see :class:`Entries`): above 1 where it was
            clipped there, and not rounded.
        cast: the dtype to which casting OLD gives NEW, such as ``bfloat16``; empty: none.
        old, new: what their entries show.
    """

    distance: float = math.nan
    cosine: float = math.nan
    ratio: float = math.nan
    is_identical: bool = False
    overshoot: float = math.nan
    cast: str = ""
    old: Entries = Entries()
    new: Entries = Entries()


def pair(old: Tensor, new: Tensor) -> Pair:
    """Measure two stacks of matrices of one shape ``(k, rows, columns)``; in float64, on the CPU."""
    a, b = old.to("cpu", torch.float64), new.to("cpu", torch.float64)
    before = _entries(a)
    if torch.equal(a, b):
        return Pair(0.0, 1.0, 1.0, is_identical=True, old=before, new=before)
    norms = float(a.norm()), float(b.norm())
    after = _entries(b)
    if not all(map(math.isfinite, norms)) or norms[0] == 0:
        return Pair(old=before, new=after)
    return Pair(
        distance=float((b - a).norm()) / norms[0],
        cosine=float((a * b).sum()) / (norms[0] * norms[1]) if norms[1] > 0 else math.nan,
        ratio=norms[1] / norms[0],
        overshoot=_overshoot(a, b),
        cast=next((str(dtype).removeprefix("torch.") for dtype in _CASTS if torch.equal(a.to(dtype).to(a), b)), ""),
        old=before,
        new=after,
    )


def _at_limit(size: Tensor) -> Tensor:
    """Where absolute values, shape ``(k, rows, columns)``, are the largest of their row, or of all."""
    tops = size.amax(dim=(0, 2), keepdim=True)
    return ((size >= tops * _NEARLY) & (tops > 0)) | (size >= size.max() * _NEARLY)


def _overshoot(old: Tensor, new: Tensor) -> float:
    if not bool(new.any()):
        return math.nan
    there = _at_limit(new.abs())
    return float((old[there] / new[there]).mean())


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
        [channels.flatten()],
    ]
    found = [levels for own in lines if (levels := _levels(own))]
    return Entries(
        levels=min(found, default=0),
        zeros=float((size == 0).double().mean()),
        at_limit=max(0, int(_at_limit(size).sum()) - len(channels)) / size.numel(),
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
