"""How much of the variance of drawn functions each setting makes, alone and jointly, over points like the trials'.

A point is put together from the trials: of each kind what all labels share from one trial, how far the last label is
apart from another, the trend over the other labels from a third, and what each does alone from a fourth. So parts are
independent, their shares add up to at most 1 (the rest acts jointly), and what the trials never varied makes nothing.
Sobol 1993; the two-way layout that the main effects are read from has no bias (Owen 2013, arXiv 1306.1195).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ww_opt.search.coordinates import Array, Coordinates, kind_of

__all__ = ["PARTS", "Mixture", "drawn_shares"]

PARTS = ("shared", "last", "trend", "alone")
"""What all labels of a kind share; the last label apart from the rest; rising or bending over depth; each by itself."""
_N_TOTAL = 512
_N_ROWS = 40
"""Values at most that a part takes."""
_N_BASES = 12
"""Points around each value."""
_N_PLACES = 8
"""Values that one setting takes."""

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Mixture:
    """Points put together from parts of trials.

    Args:
        coordinates: of the cube.
        points: of the trials, shape ``[m, n]``.
    """

    coordinates: Coordinates
    points: Array

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each column; a parameter that belongs to no layer is a kind of its own."""
        return tuple(kind_of(name) or name for name, _ in self.coordinates.columns)

    @cached_property
    def parts(self) -> tuple[tuple[str, str, Array], ...]:
        """Kind, part and what each trial has of it, ``[m, n]``; they add up to the points. No part: all of a kind."""
        found = []
        for group in self.coordinates.groups:
            for part, projector in zip(PARTS, _projectors(len(group)), strict=False):
                own = np.zeros_like(self.points)
                own[:, group] = self.points[:, group] @ projector
                found.append((self.kinds[group[0]], part, own))
        grouped = {int(column) for group in self.coordinates.groups for column in group}
        by_kind: dict[str, Array] = {}
        for column in (column for column in range(self.coordinates.n) if column not in grouped):
            own = by_kind.setdefault(self.kinds[column], np.zeros_like(self.points))
            own[:, column] = self.points[:, column]
        return (*found, *((kind, "", own) for kind, own in by_kind.items()))

    def is_apart(self, kind: str) -> bool:
        """Whether the trials tell the labels of a kind apart: they differed by more than a hundredth of the range."""
        own = [group for group in self.coordinates.groups if self.kinds[group[0]] == kind]
        return not own or bool(np.mean(self.points[:, own[0]].std(axis=1)) > 0.01)

    def drawn(self, n: int, rng: np.random.Generator) -> Indices:
        """Which trial each part is from, for ``n`` points; shape ``[n, parts]``."""
        return np.stack([_rows(n, len(self.points), rng) for _ in self.parts], axis=1)

    def at(self, rows: Indices) -> Array:
        """Points of the cube, of the parts of these trials."""
        total = np.zeros((len(rows), self.coordinates.n))
        for place, (_, _, own) in enumerate(self.parts):
            total += own[rows[:, place]]
        return self.coordinates.rounded(total)


def _projectors(n_labels: int) -> list[Array]:
    """Projectors of the parts of a kind, as many as its labels allow."""
    depth = np.linspace(-1.0, 1.0, n_labels)
    last = np.zeros(n_labels)
    last[-1] = 1.0
    basis = np.linalg.qr(np.stack([np.ones(n_labels), last, depth, depth**2][:n_labels], axis=1))[0]
    parts = [basis[:, :1], basis[:, 1:2], basis[:, 2:]]
    found = [own @ own.T for own in parts if own.shape[1]]
    return [*found, np.eye(n_labels) - basis @ basis.T] if n_labels > 4 else found


def _rows(n: int, m: int, rng: np.random.Generator) -> Indices:
    """``n`` of ``m`` rows, each as often as the others but for one."""
    return rng.permutation(np.concatenate([rng.permutation(m) for _ in range(-(-n // m))])[:n])


def drawn_shares(
    values: Callable[[Array], Array], mixture: Mixture, names: Sequence[Sequence[int]], rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Shares of the variance, each for every draw.

    Args:
        values: points ``[m, n]`` -> values ``[m, draws]``.
        mixture: of the trials.
        names: columns of each single setting.
        rng: draws the points.

    Returns:
        Of the kinds in the order of their parts, of the parts, and of single settings: what each makes alone, and
        what it has part in; shape ``[.., 2, draws]``.
    """
    total = values(mixture.at(mixture.drawn(_N_TOTAL, rng))).var(axis=0)
    bases = mixture.drawn(_N_BASES, rng)
    kinds = [kind for kind, _, _ in mixture.parts]
    n_rows = min(_N_ROWS, len(mixture.points))

    def part_share(which: Sequence[int]) -> Array:
        rows = np.repeat(bases[None], n_rows, axis=0)
        rows[:, :, which] = mixture.drawn(n_rows, rng)[:, None, which]
        return _effects(values(mixture.at(rows.reshape(-1, rows.shape[2]))).reshape(n_rows, _N_BASES, -1))

    of_kinds = [part_share([at for at, own in enumerate(kinds) if own == kind]) for kind in dict.fromkeys(kinds)]
    of_parts = [part_share([at]) for at in range(len(kinds))]
    points = mixture.at(bases)
    of_names = [_single(values, points, mixture.points[:, columns], columns) for columns in names]
    # main effects and total are estimated from different points: together they are no more than all
    everything = np.maximum(total, np.sum(of_kinds, axis=0)[0]) + 1e-12
    kinds_, parts_, names_ = (
        np.reshape(own, (-1, 2, len(total))) / everything for own in (of_kinds, of_parts, of_names)
    )
    return kinds_, parts_, names_


def _single(values: Callable[[Array], Array], bases: Array, own: Array, columns: Sequence[int]) -> Array:
    """Effects of one setting, at evenly spread quantiles of what was tried."""
    order = np.lexsort(own.T)
    places = order[((np.arange(_N_PLACES) + 0.5) / _N_PLACES * len(own)).astype(int)]
    points = np.repeat(bases[None], _N_PLACES, axis=0)
    points[:, :, columns] = own[places][:, None]
    return _effects(values(points.reshape(-1, bases.shape[1])).reshape(_N_PLACES, len(bases), -1))


def _effects(values: Array) -> Array:
    """Variance that the rows of ``[rows, bases, draws]`` make alone, and with the bases; shape ``[2, draws]``."""
    rows, bases = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    left = values - rows - bases + values.mean(axis=(0, 1), keepdims=True)
    n_rows, n_bases = values.shape[:2]
    joint = (left**2).sum(axis=(0, 1)) / ((n_rows - 1) * (n_bases - 1))
    alone = np.maximum(rows[:, 0].var(axis=0) - joint * (n_rows - 1) / n_rows / n_bases, 0.0)
    return np.array([alone, alone + joint])
