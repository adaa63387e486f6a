"""What a score may look at: one run up to a look. The sealed test accuracy stands beside it, for the judge alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence.kept import DATA, Record, diagnosis, read
from ww_opt.spectral.rows import Diagnosis
from ww_opt.spectral.scores import Rows, judged

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]
Rule = Callable[[Sequence["Seen"]], Array]
"""Runs of one study -> how good each of them looks, higher is better, NaN last; it may compare them."""

FREE = "free"
"""Name of the file that holds the probes."""

__all__ = ["FREE", "Array", "HeldOut", "Index", "Mask", "Rule", "Seen", "Trial", "trials"]


@dataclass(frozen=True)
class HeldOut:
    """Judgement on held-out training examples, wrong labels included; arrays ``[n]``, logits ``[n, classes]``."""

    loss: Array
    right: Array
    margin: Array
    entropy: Array
    label: Index | None = None
    logits: Array | None = None

    @classmethod
    def of(cls, record: Record) -> HeldOut:
        """Read what `generate` kept."""
        floats = {name: np.array([float(value) for value in record[name]]) for name in ("right",)}
        for name in ("loss", "margin", "entropy"):
            floats[name] = np.array([np.nan if value is None else value for value in record[name]])
        if "logits" not in record:
            return cls(**floats)
        label = np.array([int(digit) for digit in record["label"]])
        logits = np.array([[np.nan if value is None else value for value in row] for row in record["logits"]])
        return cls(**floats, label=label, logits=logits)


@dataclass(frozen=True)
class Seen:
    """One run up to ``percent`` of its schedule.

    Attributes:
        percent: 50 or 100.
        n_epochs: epochs of the whole run.
        parameters: what the run was trained with.
        curve: steps, clean training loss and running loss of each look, ``[looks, 3]``; the first before training.
        states: what was kept at the diagnosed looks so far, by percent.
        held_out: judgements on examples that are held out so far, by percent: the cohorts of a late run, or the
            validation pool of a holdout run.
        probes: share of training predictions that changed since the look before, norm of the head's gradient on a
            batch, and of its weight, ``[looks, 3]``; no looks where they were not kept.
    """

    percent: int
    n_epochs: float
    parameters: Mapping[str, float]
    curve: Array
    states: Mapping[int, Record]
    held_out: Mapping[int, HeldOut]
    probes: Array = field(default_factory=lambda: np.empty((0, 3)))

    def diagnosis(self, percent: int | None = None) -> Diagnosis:
        """Return the rows at a look, the present one by default."""
        return diagnosis(self.states[self.percent if percent is None else percent]["rows"])

    @cached_property
    def rows(self) -> Rows:
        """The judged layers now."""
        return judged(self.diagnosis())

    def earlier(self, percent: int) -> Rows:
        """Return the judged layers at an earlier look."""
        return judged(self.diagnosis(percent))

    def norm(self, percent: int | None = None) -> float:
        """Return the L2 norm of all parameters."""
        value = self.states[self.percent if percent is None else percent]["norm"]
        return np.nan if value is None else float(value)

    @property
    def watched(self) -> Array:
        """WeightWatcher's alphas of all its layers, NaN where it fits none."""
        return np.array([np.nan if value is None else value for value in self.states[self.percent]["weightwatcher"]])

    @property
    def train_loss(self) -> float:
        """Clean training loss now."""
        return float(self.curve[-1, 1])

    @property
    def running_loss(self) -> float:
        """Mean loss of the last steps, dropout on."""
        return float(self.curve[-1, 2])

    @property
    def first_loss(self) -> float:
        """Clean training loss before training."""
        return float(self.curve[0, 1])

    @property
    def sum_of_losses(self) -> float:
        """Sum of the running losses of all looks so far."""
        return float(self.curve[1:, 2].sum())

    def loss_after(self, epochs: float) -> float:
        """Return the clean training loss at the look nearest to ``epochs``."""
        total = 100 / self.percent * self.curve[-1, 0]
        nearest = int(np.argmin(np.abs(self.curve[:, 0] / total * self.n_epochs - epochs)))
        return float(self.curve[nearest, 1])

    @property
    def train_accuracy(self) -> float:
        """Share of the training labels that the model predicts now."""
        return float(self.states[self.percent]["train"]["accuracy"])

    def train_quantiles(self, percent: int | None = None) -> Array:
        """Return the 5 % quantiles of the losses of the training examples, ``[21]``."""
        kept = self.states[self.percent if percent is None else percent]["train"]["losses"]
        return np.array([np.nan if value is None else value for value in kept])


@dataclass(frozen=True)
class Trial:
    """One run: what may be seen at half of the schedule and at the end, and the sealed accuracies."""

    number: int
    kind: str
    seed: int
    seen: Mapping[int, Seen]
    test: Mapping[int, float]


def trials(name: str, kind: str, n_epochs: float, folder: Path = DATA) -> list[Trial]:
    """Read a task's runs of one kind, by number and seed."""
    free = {own["configuration"]: own["looks"] for own in read(FREE, folder) if own["case"] == name}
    found = [
        _trial(record, n_epochs, free.get(record["configuration"], ()) if kind == "base" else ())
        for record in read(name, folder)
        if record["kind"] == kind
    ]
    return sorted(found, key=lambda trial: (trial.number, trial.seed))


def _trial(record: dict[str, Any], n_epochs: float, free: Sequence[Sequence[float | None]]) -> Trial:
    curve = np.array([[np.nan if value is None else value for value in look] for look in record["curve"]])
    probes = np.array([[np.nan if value is None else value for value in look] for look in free]).reshape(-1, 4)
    states = {int(percent): state for percent, state in record["states"].items()}
    held_out = {int(percent): HeldOut.of(own) for percent, own in record["held_out"].items()}
    seen = {}
    for percent in (50, 100):
        so_far = curve[curve[:, 0] <= curve[-1, 0] * percent / 100]
        seen[percent] = Seen(
            percent=percent,
            n_epochs=n_epochs,
            parameters=record["parameters"],
            curve=so_far,
            states={key: value for key, value in states.items() if key <= percent},
            held_out={key: value for key, value in held_out.items() if key <= percent},
            probes=probes[probes[:, 0] <= curve[-1, 0] * percent / 100, 1:],
        )
    test = {int(percent): float(value) for percent, value in record["test"].items()}
    return Trial(record["configuration"], record["kind"], record["seed"], seen, test)
