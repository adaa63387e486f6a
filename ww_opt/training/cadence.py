"""When a run is looked at: as often as its looks may cost, and always where somebody decides.

A pruner compares trials at the same step, so that steps must not follow the clock: there are four cadences and no more,
all of them hold half of the run, and what one trial has settled the next ones take over.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["CADENCES", "Cadence", "affordable", "look_steps"]

CADENCES = (12, 8, 4, 2)
"""Looks a run, evenly spaced, from the finest to the coarsest."""
_BEGIN = 4
"""Looks a run until it is known what they cost."""
_TOLD_BY_THE_LAST = 0.8
"""Share of a run from which on a cohort that joins is told by the last look: pruning would save little more."""


_AIM = 0.8
"""Of the budget: what was measured once is met again within a quarter or so."""


def look_steps(n_steps: int, n_looks: int, joining: Sequence[int] = ()) -> tuple[int, ...]:
    """Steps of ``n_looks`` even looks, and of cohorts and comparisons that come early enough to decide; rising.

    Args:
        n_steps: optimizer steps of the run.
        n_looks: even looks, at least 1; fewer where the run has fewer steps.
        joining: steps done when a cohort joins or a pruner compares.
    """
    even = {math.ceil(k * n_steps / n_looks) for k in range(1, n_looks + 1)}
    early = {step for step in joining if 0 < step < _TOLD_BY_THE_LAST * n_steps}
    return tuple(sorted(even | early))


def affordable(cost: float, training: float, n_steps: int, joining: Sequence[int] = (), *, budget: float) -> int:
    """Return the finest of ``CADENCES`` whose looks take well under ``budget`` of the training; else the coarsest.

    Args:
        cost: seconds of a look.
        training: seconds of training of the whole run, without looks.
        n_steps: optimizer steps of the run.
        joining: as in :func:`look_steps`.
        budget: share of ``training``.
    """
    fits = (n for n in CADENCES if len(look_steps(n_steps, n, joining)) * cost <= _AIM * budget * training)
    return next(fits, CADENCES[-1])


@dataclass
class Cadence:
    """The looks of one run.

    Args:
        n_steps: optimizer steps of the run.
        interval_steps: steps between looks, kept whatever they cost. ``None``: as ``budget`` allows.
        budget: share of the training time that looks may take. Those at half of the run, at its end and where somebody
            decides are never left out.
        joining: steps done when a cohort joins or a pruner compares.
        n_looks: one of ``CADENCES``, settled by an earlier run. ``None``: this run begins with the quarters,
            measures, and goes on with what it can afford.

    Attributes:
        training: seconds of training up to the last look.
        looking: seconds of all looks so far.
        is_waited_for: whether an answer is outstanding, to be had at the next of ``steps``.

    Raises:
        ValueError: a number is out of range.
    """

    n_steps: int
    interval_steps: int | None = None
    budget: float = 0.05
    joining: tuple[int, ...] = ()
    n_looks: int | None = None
    training: float = field(default=0.0, init=False)
    looking: float = field(default=0.0, init=False)
    is_waited_for: bool = field(default=False, init=False)
    _looks: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        interval = 1 if self.interval_steps is None else self.interval_steps
        if not 1 <= interval <= self.n_steps:
            raise ValueError(
                f"`1 <= interval_steps <= n_steps` must hold, but got interval_steps={self.interval_steps}, "
                f"n_steps={self.n_steps}."
            )
        if not 0.0 < self.budget <= 1.0:
            raise ValueError(
                f"`0 < look_budget <= 1` must hold, but got look_budget={self.budget}: it is a share of training time."
            )
        self._is_settled = self.n_looks is not None
        self._current = _BEGIN if self.n_looks is None else self.n_looks

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps at which a look may fall, rising; the last is ``n_steps``."""
        if self.interval_steps is not None:
            return (*range(self.interval_steps, self.n_steps, self.interval_steps), self.n_steps)
        return tuple(sorted({step for n in CADENCES for step in look_steps(self.n_steps, n, self.joining)}))

    def is_due(self, step: int) -> bool:
        """Whether training has to stop at this one of ``steps``: for a look, or for an answer."""
        return self.is_waited_for or self.is_look(step)

    def is_look(self, step: int) -> bool:
        """Whether a look falls on this one of ``steps``."""
        return self.interval_steps is not None or step in look_steps(self.n_steps, self._current, self.joining)

    def spent(self, looking: float, training: float, step: int) -> None:
        """Count a look, or what is left of the one before.

        Args:
            looking: seconds that it took.
            training: seconds of training since the start of the run.
            step: optimizer steps done.
        """
        self.looking, self.training = self.looking + looking, training
        if self.is_look(step) or not self._looks:
            self._looks.append(looking)
        else:
            self._looks[-1] += looking
        if self.interval_steps is None and not self._is_settled:
            cost = statistics.mean(self._looks[1:] or self._looks)  # the first look also loads what is loaded once
            whole = training * self.n_steps / step
            self._current = affordable(cost, whole, self.n_steps, self.joining, budget=self.budget)
            self.n_looks = self._current
