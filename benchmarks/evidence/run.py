"""Train some configurations of a task at once and keep what every score, rival and judge needs.

Four kinds of run, all with the case's own number of steps:

* ``base``: the whole training set; diagnosed at 25, 50 and 100 % of the schedule;
* ``holdout``: without a fifth of the training set, on which it is judged at the end (wrong labels included);
* ``late``: 5 % of the training examples join at 50, 75 and 90 % of the schedule; judged on them just before;
* ``seed``: base runs with other initial weights and another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.evidence.ensemble import Ensemble, Look
from benchmarks.evidence.kept import Record, columns, rounded
from benchmarks.evidence.tasks import LOOKS, Case, Configuration
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.training.late_entry import LateEntry
from ww_opt.training.task import Task

__all__ = ["Run", "Unit", "all_examples", "diagnosed", "sealed_accuracies", "unused_examples", "weights_path"]

HOLDOUT_SHARE = 0.2
DIAGNOSED = {"base": (25, 50, 100), "seed": (50, 100), "late": (50, 100), "holdout": ()}
TESTED = (50, 100)
_EVALUATION_BATCH = 250


class Unit(NamedTuple):
    """What is trained at once: one kind of run for some configurations of a case."""

    case: str
    kind: str
    seed: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class _Data:
    """A task, the examples it trains on, and what it is judged on, by percent of the schedule."""

    task: Task
    train: Any
    held_out: Mapping[int, Any] = field(default_factory=dict)


class Run:
    """One unit in training; its records grow with the looks."""

    def __init__(self, case: Case, unit: Unit, drawn: list[Configuration], weights: Path | None) -> None:
        self._case, self._unit, self._weights = case, unit, weights
        self._data = _data(case, unit.kind)
        self._unused = unused_examples(case)
        self._model = self._data.task.build_model()
        settings = [own.settings for own in drawn]
        self._ensemble = Ensemble(self._data.task, settings, case.label, unit.seed)
        self._records: list[Record] = [
            {
                "configuration": own.number,
                "kind": unit.kind,
                "seed": unit.seed,
                "parameters": {name: rounded(value) for name, value in own.parameters.items()},
                "curve": [],
                "states": {},
                "test": {},
                "held_out": {},
            }
            for own in drawn
        ]

    def records(self) -> list[Record]:
        """Train to the end and return what is kept of each configuration."""
        for look in self._ensemble.train(self._case.n_steps, self._case.n_steps // LOOKS):
            percent = 100 * look.step // self._case.n_steps
            self._keep_losses(look)
            if percent in self._data.held_out:
                self._keep("held_out", percent, _judgement(self._ensemble, self._data.held_out[percent]))
            if percent in DIAGNOSED[self._unit.kind]:
                self._keep("states", percent, self._states(percent))
            if percent in TESTED:
                self._keep("test", percent, self._accuracies())
        return self._records

    def _keep(self, what: str, percent: int, values: list[Any]) -> None:
        for record, value in zip(self._records, values, strict=True):
            record[what][str(percent)] = value

    def _keep_losses(self, look: Look) -> None:
        for k, record in enumerate(self._records):
            losses = float(look.train_loss[k]), float(look.running_loss[k])
            record["curve"].append([look.step, *(rounded(loss) for loss in losses)])

    def _states(self, percent: int) -> list[Record]:
        train = _on_training_set(self._ensemble, self._data.train)
        found = []
        for k, record in enumerate(self._records):
            state = self._ensemble.state(k)
            found.append({**diagnosed(self._model, state), "train": train[k]})
            if self._weights is not None:
                path = weights_path(self._weights, self._case.name, record, percent)
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, path)
        return found

    def _accuracies(self) -> list[float]:
        return [rounded(own) for own in sealed_accuracies(self._ensemble, self._case, self._unused, self._model)]


def _data(case: Case, kind: str) -> _Data:
    task = case.task()
    examples = all_examples(task)
    n = len(examples)
    if kind == "holdout":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        pool, rest = order[: round(HOLDOUT_SHARE * n)], order[round(HOLDOUT_SHARE * n) :]

        def batches() -> Iterator[Any]:
            index = rest[torch.randperm(len(rest))]
            return (examples.take(part) for part in torch.split(index, case.batch_size))

        return _Data(replace(task, batches=batches), examples.take(rest), {100: examples.take(pool)})
    if kind == "late":
        entry = LateEntry(n, case.batch_size, case.n_steps)
        times = [round(100 * time) for time in entry.times]
        held_out = {time: examples.take(cohort) for time, cohort in zip(times, entry.cohorts, strict=True)}
        return _Data(replace(task, batches=lambda: (examples.take(index) for index in entry)), examples, held_out)
    return _Data(task, examples)


def sealed_accuracies(ensemble: Ensemble, case: Case, unused: Any, model: nn.Module) -> list[float]:
    """Accuracy of each member on the objective's sealed part and on ``unused`` examples, which are as sealed.

    ``model`` takes the members' weights, one after the other; ``unused`` as from :func:`unused_examples`.
    """
    evaluate, found = ensemble.task.evaluate, []
    assert evaluate is not None
    for k in range(len(ensemble)):
        model.load_state_dict(ensemble.state(k))
        found.append(evaluate(model))
    if unused is None:
        return found
    logits = ensemble.logits(part.x for part in _parts(unused))
    right = (logits.argmax(-1) == unused.y).sum(-1)
    n = case.n_test + len(unused)
    return [(case.n_test * accuracy + float(own)) / n for accuracy, own in zip(found, right, strict=True)]


def unused_examples(case: Case) -> Any:
    """Return the clean training examples that no run uses, which are as sealed; ``None`` where they do not count."""
    return _without(all_examples(case.whole()), all_examples(case.task())) if case.n_test else None


def all_examples(task: Task) -> Any:
    """Return all training examples of a task, always in the same order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = list(task.epoch())
    return type(batches[0])(torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]))


def _without(examples: Any, others: Any) -> Any:
    """Return the examples whose inputs are not among those of ``others``."""
    known = {x.numpy().tobytes() for x in others.x}
    return examples.take(torch.tensor([k for k, x in enumerate(examples.x) if x.numpy().tobytes() not in known]))


def weights_path(folder: Path, case: str, record: Record, percent: int) -> Path:
    """Say where a state dict lies; late runs have a folder of their own."""
    name = case if record["kind"] != "late" else f"{case}-late"
    return folder / name / f"{record['configuration']}-{record['seed']}-{percent}.pt"


def diagnosed(model: nn.Module, state: dict[str, torch.Tensor]) -> Record:
    """Read a state: our columns, WeightWatcher's alphas, and the norm of all parameters."""
    model.load_state_dict(state)
    norm = torch.stack([parameter.detach().square().sum() for parameter in model.parameters()]).sum().sqrt()
    watched = diagnose(model, convention="weightwatcher")
    return {
        "rows": columns(diagnose(model)),
        "weightwatcher": [rounded(row.alpha) for row in watched],
        "norm": rounded(float(norm)),
    }


def _judgement(ensemble: Ensemble, examples: Any) -> list[Record]:
    """Judge all members on held-out examples; where an example has many labels, means over them are kept."""
    logits = ensemble.logits(part.x for part in _parts(examples))
    one_label = logits.ndim == 3
    result = []
    for own in logits:
        losses, right, margin, entropy = _per_label(own, examples.y)
        kept = {"loss": losses, "right": right, "margin": margin, "entropy": entropy}
        record: Record = {name: _list(value if one_label else value.mean(1), 4) for name, value in kept.items()}
        if one_label:
            record["right"] = "".join("1" if hit else "0" for hit in right)
            record["label"] = "".join(str(int(label)) for label in examples.y)
            record["logits"] = [_list(row, 3) for row in own]
        result.append(record)
    return result


def _per_label(logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss, whether the label is predicted, its margin over the best other class, and the entropy."""
    logs = logits.log_softmax(-1)
    own = logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    others = logits.scatter(-1, y.unsqueeze(-1), -torch.inf).amax(-1)
    losses = -logs.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return losses, (own > others).float(), own - others, -(logs.exp() * logs).sum(-1)


def _on_training_set(ensemble: Ensemble, examples: Any) -> list[Record]:
    """Return, per member, its training accuracy and the 5 % quantiles of its losses over all training labels."""
    logits = ensemble.logits(part.x for part in _parts(examples))
    levels = torch.linspace(0, 1, 21)
    result = []
    for own in logits:
        losses, right, _, _ = _per_label(own, examples.y)
        result.append({"accuracy": rounded(float(right.mean())), "losses": _list(losses.quantile(levels), 4)})
    return result


def _parts(examples: Any) -> Iterator[Any]:
    return (examples.take(index) for index in torch.split(torch.arange(len(examples)), _EVALUATION_BATCH))


def _list(values: torch.Tensor, digits: int) -> list[float | None]:
    return [rounded(float(value), digits) for value in values]
