"""Kept runs as a pruner's replay reads them: one row of numbers a trial at each look, lower is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.evidence.kept import DATA, Record, read
from benchmarks.evidence.replay import Array
from benchmarks.evidence.tasks import CASES
from benchmarks.evidence.watched import NAME
from ww_opt.spectral.scores import LATE_SHARE

__all__ = ["PERCENTS", "Tape", "planted", "tapes"]

PERCENTS = tuple(range(5, 101, 5))
_LAST = 45
"""Last look at which all three cohorts are still to join, but for that at half itself."""


@dataclass(frozen=True)
class Tape:
    """One task's 60 trials.

    Attributes:
        case: the task's name.
        truth: sealed accuracies of the same settings in the plain runs, which no pruner and no pick has seen.
        runs: the late runs.
        split: the runs with a validation split, in the same order; empty where there are none.
    """

    case: str
    truth: Array
    runs: Sequence[Record]
    split: Sequence[Record] = ()

    def ahead(self, n_cohorts: int = 3) -> dict[int, Array]:
        """Late loss of those who are still to join, by percent; ``n_cohorts`` 1: of the first cohort alone."""
        return self._by_percent(lambda look: _get(look, f"ahead{n_cohorts}", 0))

    def n_ahead(self, percent: int = 25) -> int:
        """Examples that are still to join."""
        return int(max(value[2] for name, value in _look(self.runs[0], percent).items() if name.startswith("ahead")))

    @cached_property
    def score(self) -> dict[int, Array]:
        """Spectral score of the weights, by percent, where they were read."""
        return self._by_percent(lambda look: look.get("score", math.nan))

    @cached_property
    def train(self) -> dict[int, Array]:
        """Training loss."""
        return self._by_percent(lambda look: look["train_loss"])

    @cached_property
    def validation(self) -> dict[int, Array]:
        """Minus the accuracy on the validation split, ties broken by the loss there."""
        return self._by_percent(lambda look: -look["split"][1] + 1e-4 * _real(look["split"][0]), self.split)

    @cached_property
    def final(self) -> Array:
        """What the product picks by: what latecomers said, and a share of the score."""
        late = np.array([_real(_look(run, 100)["late"][0]) for run in self.runs])
        return np.asarray(late + LATE_SHARE * self.score[100])

    def _by_percent(
        self, of: Callable[[Record], float | None], runs: Sequence[Record] | None = None
    ) -> dict[int, Array]:
        runs = self.runs if runs is None else runs
        found = {}
        for percent in PERCENTS:
            values = [of(_look(run, percent)) for run in runs]
            if not all(isinstance(value, float) and math.isnan(value) for value in values):
                found[percent] = np.array([_real(value) for value in values])
        return found


def tapes(folder: Path = DATA) -> list[Tape]:
    """Read what there is; tasks whose runs are not all there are left out."""
    kept = read(NAME, folder)
    found = []
    for case in CASES:
        own = _of(kept, case.name, "late")
        plain = {
            record["configuration"]: record["test"]["100"]
            for record in read(case.name, folder)
            if record["kind"] == "base"
        }
        own = [record for record in own if record["configuration"] in plain]
        if own and len(own) == len(plain):
            truth = np.array([plain[record["configuration"]] for record in own])
            split = _of(kept, case.name, "split")
            found.append(Tape(case.name, truth, own, split if len(split) >= len(own) else ()))
    return found


def planted(folder: Path = DATA) -> list[Record]:
    """Runs with one fault in one layer, and the healthy ones beside them."""
    return [record for record in read(NAME, folder) if record["kind"] == "planted"]


def _of(kept: Sequence[Record], case: str, kind: str) -> list[Record]:
    own = [record for record in kept if record["case"] == case and record["kind"] == kind]
    return sorted(own, key=lambda record: int(record["configuration"]))


def _look(run: Record, percent: int) -> Record:
    found: Record = run["looks"][percent // 5]
    return found


def _get(look: Mapping[str, list[float | None]], name: str, place: int) -> float | None:
    return look[name][place] if name in look else math.nan


def _real(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else float(value)
