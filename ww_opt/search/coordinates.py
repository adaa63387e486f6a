"""A search space of ``<kind>/<label>`` parameters -> the unit cube, and what its settings have in common.

A kind with many labels (``lr/encoder.0``, ``lr/encoder.1``, ...) is many dimensions and few ideas: how high it is for
all, whether it rises or bends with depth, whether the last label stands apart, and, last, what each label does alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

Array = NDArray[np.float64]

__all__ = ["Array", "Coordinates", "agree", "common_space", "from_unit", "kind_of", "to_unit"]

_APART = 0.01
_TREND = 0.2
"""How much of its variance a trend over depth counts for."""


def kind_of(name: str) -> str:
    """``lr`` of ``lr/encoder.0``; empty where a parameter belongs to no layer."""
    kind, slash, label = name.partition("/")
    return kind if slash and label else ""


def agree(parameters: Mapping[str, Any]) -> bool:
    """Whether all labels of each kind have the same value, and some kind has several labels."""
    by_kind: dict[str, list[Any]] = {}
    for name, value in parameters.items():
        if kind_of(name):
            by_kind.setdefault(kind_of(name), []).append(value)
    return any(len(own) > 1 for own in by_kind.values()) and all(
        value == own[0] or (isinstance(value, float) and math.isclose(value, own[0]))
        for own in by_kind.values()
        for value in own
    )


def common_space(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Parameters that all trials have with one distribution of several values, in the order of suggestion."""
    first = trials[0].distributions if trials else {}
    return {
        name: own
        for name, own in first.items()
        if not own.single() and all(other.distributions.get(name) == own for other in trials)
    }


def to_unit(value: Any, distribution: FloatDistribution | IntDistribution) -> float:
    """Place of a value between the bounds, in [0, 1]; on the logarithm where the distribution says so."""
    low, high = _bounds(distribution)
    number = math.log(value) if distribution.log else float(value)
    return min(max((number - low) / (high - low), 0.0), 1.0)


def from_unit(place: float, distribution: FloatDistribution | IntDistribution) -> float | int:
    """Inverse of :func:`to_unit`, rounded to the distribution's steps and inside its bounds."""
    low, high = _bounds(distribution)
    number = low + place * (high - low)
    number = math.exp(number) if distribution.log else number
    if distribution.step is not None:
        number = distribution.low + round((number - distribution.low) / distribution.step) * distribution.step
    number = min(max(number, distribution.low), distribution.high)
    return int(number) if isinstance(distribution, IntDistribution) else float(number)


def _bounds(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Ends of the interval that [0, 1] stands for; half a step wider for steps, so that each has its share."""
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        wider = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        return math.log(low - wider), math.log(high + wider)
    wider = 0.5 * distribution.step if distribution.step is not None else 0.0
    return low - wider, high + wider


@dataclass(frozen=True)
class Coordinates:
    """The unit cube of a search space, ``n`` columns, and the coordinates that a model of it thinks in.

    Args:
        space: name -> distribution, none of a single value, in the order in which labels are suggested.
    """

    space: Mapping[str, BaseDistribution]

    @cached_property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """(Name, choice) of each column: choices of a categorical have one each, numbers have choice 0."""
        return tuple(
            (name, choice)
            for name, own in self.space.items()
            for choice in range(len(own.choices) if isinstance(own, CategoricalDistribution) else 1)
        )

    @property
    def n(self) -> int:
        """Columns of the cube."""
        return len(self.columns)

    @cached_property
    def is_number(self) -> NDArray[np.bool_]:
        """Which columns are numbers rather than choices, shape ``[n]``."""
        return np.array([not isinstance(self.space[name], CategoricalDistribution) for name, _ in self.columns])

    @cached_property
    def groups(self) -> tuple[NDArray[np.intp], ...]:
        """Columns of each kind that has two labels or more, in the order of its labels."""
        by_kind: dict[str, list[int]] = {}
        for column, (name, _) in enumerate(self.columns):
            if self.is_number[column] and kind_of(name):
                by_kind.setdefault(kind_of(name), []).append(column)
        return tuple(np.array(columns, dtype=np.intp) for columns in by_kind.values() if len(columns) > 1)

    @cached_property
    def _bases(self) -> tuple[Array, ...]:
        return tuple(_basis(len(group)) for group in self.groups)

    @cached_property
    def spreads(self) -> tuple[Array, ...]:
        """Quadratic forms, one ``[labels, labels]`` a group: how far labels are apart, their variance but for trends.

        A rise with depth, and of many labels a bend, count for a fifth: drawn blindly, rates with a slope over depth
        lost .2 points where rates apart lost .8 (mean of seven development tasks, up to 6.6 on one).
        """
        found = []
        for group, basis in zip(self.groups, self._bases, strict=True):
            trend = basis[:, 1:3] if len(group) > 4 else basis[:, 1:2]
            form = np.eye(len(group)) - 1.0 / len(group) - (1.0 - _TREND) * trend @ trend.T
            found.append(form / len(group))
        return tuple(found)

    @cached_property
    def projection(self) -> Array:
        """Cube -> coordinates, shape ``[p, n]``: of each kind mean, slope, bend and last; then what has no layer."""
        rows = []
        for group, basis in zip(self.groups, self._bases, strict=True):
            for direction in basis.T:
                row = np.zeros(self.n)
                row[group] = direction / math.sqrt(len(group))
                rows.append(row)
        grouped = {int(column) for group in self.groups for column in group}
        rows += [row for column, row in enumerate(np.eye(self.n)) if column not in grouped]
        return np.array(rows)

    @cached_property
    def is_shared(self) -> NDArray[np.bool_]:
        """Which coordinates are what all labels of a kind share, or belong to no kind; shape ``[p]``."""
        apart = [place > 0 for basis in self._bases for place in range(basis.shape[1])]
        return ~np.array(apart + [False] * (len(self.projection) - len(apart)), dtype=bool)

    @cached_property
    def residuals(self) -> tuple[tuple[NDArray[np.intp], Array], ...]:
        """Columns and projector of the kinds that have more labels than coordinates: what each label does alone."""
        return tuple(
            (group, np.eye(len(group)) - basis @ basis.T)
            for group, basis in zip(self.groups, self._bases, strict=True)
            if len(group) > basis.shape[1]
        )

    @property
    def n_shared(self) -> int:
        """Coordinates that are searched first."""
        return int(self.is_shared.sum())

    def shared(self, points: Array) -> Array:
        """Points of the cube whose labels agree, ``[m, n]``, from shared coordinates in [0, 1], ``[m, n_shared]``."""
        cube = np.empty((len(points), self.n))
        for place, group in enumerate(self.groups):
            cube[:, group] = points[:, place : place + 1]
        grouped = {int(column) for group in self.groups for column in group}
        rest = [column for column in range(self.n) if column not in grouped]
        cube[:, rest] = points[:, len(self.groups) :]
        return self.rounded(cube)

    def differ(self, points: Array) -> NDArray[np.bool_]:
        """At which points, ``[m, n]``, labels of some kind are apart by more than a hundredth of their range."""
        found = np.zeros(len(points), dtype=bool)
        for group in self.groups:
            found |= np.ptp(points[:, group], axis=1) > _APART
        return found

    def rounded(self, cube: Array) -> Array:
        """Points inside the cube, with one choice of each categorical: the largest."""
        inside = np.clip(cube, 0.0, 1.0)
        for columns in self._choices:
            chosen = inside[:, columns].argmax(axis=1)
            inside[:, columns] = np.eye(len(columns))[chosen]
        return inside

    @cached_property
    def _choices(self) -> tuple[list[int], ...]:
        by_name: dict[str, list[int]] = {}
        for column, (name, _) in enumerate(self.columns):
            if not self.is_number[column]:
                by_name.setdefault(name, []).append(column)
        return tuple(by_name.values())

    def encode(self, parameters: Mapping[str, Any]) -> Array:
        """Parameters of a trial -> a point of the cube, ``[n]``."""
        return np.array([self._encoded(name, choice, parameters[name]) for name, choice in self.columns])

    def _encoded(self, name: str, choice: int, value: Any) -> float:
        own = self.space[name]
        if isinstance(own, CategoricalDistribution):
            return float(own.to_internal_repr(value) == choice)
        assert isinstance(own, FloatDistribution | IntDistribution)
        return to_unit(value, own)

    def decode(self, point: Array) -> dict[str, Any]:
        """A point of the cube, ``[n]`` -> parameters of a trial."""
        found: dict[str, Any] = {}
        best: dict[str, float] = {}
        for (name, choice), place in zip(self.columns, point.tolist(), strict=True):
            own = self.space[name]
            if isinstance(own, CategoricalDistribution):
                if place > best.get(name, -math.inf):
                    best[name], found[name] = place, own.choices[choice]
            else:
                assert isinstance(own, FloatDistribution | IntDistribution)
                found[name] = from_unit(place, own)
        return found


def _basis(n_labels: int) -> Array:
    """Orthonormal directions, shape ``[n_labels, p]``: all alike, rising, bending, the last apart; p is 4 at most."""
    depth = np.linspace(-1.0, 1.0, n_labels)
    last = np.zeros(n_labels)
    last[-1] = 1.0
    directions: Sequence[Array] = [np.ones(n_labels), depth, depth**2, last]
    kept = directions if n_labels >= 4 else [directions[place] for place in (0, 1, 3)[:n_labels]]
    q, r = np.linalg.qr(np.stack(kept, axis=1))
    return np.asarray(q * np.sign(np.diag(r)))
