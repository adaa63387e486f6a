"""Train each task's configurations once and keep what every score, rival and judge needs.

Four kinds of run, all with the case's own number of steps:

* ``base``: the whole training set; diagnosed at 25, 50 and 100 % of the schedule;
* ``holdout``: without a fifth of the training set, on which it is judged at the end (wrong labels included);
* ``late``: 5 % of the training examples join at 50, 75 and 90 % of the schedule; judged on them just before;
* ``seed``: the first configurations again, with other initial weights and another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.evidence.ensemble import Ensemble, Look
from benchmarks.evidence.kept import DATA, Record, append, columns, read, rounded
from benchmarks.evidence.tasks import CASES, LOOKS, N_CONFIGURATIONS, Case, Configuration, configurations
from ww_opt.late_entry import LateEntry
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.training import Task

__all__ = ["WEIGHTS", "Unit", "generate", "train_unit", "units"]

WEIGHTS = Path("/tmp/evidence-weights")
N_RESEEDED = 15
SEEDS = (1, 2)
HOLDOUT_SHARE = 0.2
DIAGNOSED = {"base": (25, 50, 100), "seed": (50, 100), "late": (50, 100), "holdout": ()}
JUDGED = (50, 75, 90)
_EVALUATION_BATCH = 250


class Unit(NamedTuple):
    """What is trained at once: one kind of run for some configurations of a case."""

    case: str
    kind: str
    seed: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """How much is generated, and where it goes.

    Args:
        cases: names of the tasks.
        n: configurations a task.
        n_reseeded: of them with further seeds.
        folder: of the records.
        weights: where state dicts are left for ``refresh``; ``None``: nowhere.
    """

    cases: tuple[str, ...] = tuple(case.name for case in CASES)
    n: int = N_CONFIGURATIONS
    n_reseeded: int = N_RESEEDED
    folder: Path = DATA
    weights: Path | None = None


def units(settings: Settings) -> Iterator[Unit]:
    """List what is missing; the base runs of all tasks come first, so that judging can begin early."""
    waves = [("base", 0, settings.n), ("holdout", 0, settings.n), ("late", 0, settings.n)]
    waves += [("seed", seed, settings.n_reseeded) for seed in SEEDS]
    done = {
        (name, record["kind"], record["seed"], record["configuration"])
        for name in settings.cases
        for record in read(name, settings.folder)
    }
    for kind, seed, n in waves:
        for case in CASES:
            if case.name in settings.cases:
                missing = [number for number in range(n) if (case.name, kind, seed, number) not in done]
                for start in range(0, len(missing), case.together):
                    yield Unit(case.name, kind, seed, tuple(missing[start : start + case.together]))


def generate(settings: Settings, workers: int = 1) -> Iterator[tuple[Unit, int]]:
    """Train what is missing; yield each unit when it is kept, with the number of units still to come."""
    todo = list(units(settings))
    with ProcessPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(train_unit, unit, settings): unit for unit in todo}
        for n_done, future in enumerate(as_completed(futures), start=1):
            unit = futures[future]
            append(unit.case, future.result(), settings.folder)
            yield unit, len(todo) - n_done


def train_unit(unit: Unit, settings: Settings) -> list[Record]:
    """Train a unit and return one record per configuration."""
    torch.set_num_threads(1)
    case = next(case for case in CASES if case.name == unit.case)
    drawn = configurations(case, max(unit.numbers) + 1)
    run = _Run(case, unit, [drawn[number] for number in unit.numbers], settings.weights)
    return run.records()


class _Examples(NamedTuple):
    """All training examples of a task, in one fixed order."""

    data: Any

    @classmethod
    def of(cls, task: Task) -> _Examples:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            batches = list(task.epoch())
        first = batches[0]
        return cls(type(first)(torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])))

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, index: torch.Tensor, size: int) -> Iterator[Any]:
        order = index[torch.randperm(len(index))]
        return (self.data.take(part) for part in torch.split(order, size))


class _Run:
    """One unit in training; its records grow with the looks."""

    def __init__(self, case: Case, unit: Unit, drawn: list[Configuration], weights: Path | None) -> None:
        self._case, self._unit, self._weights = case, unit, weights
        self._task = case.task()
        self._model = self._task.build_model()
        examples = _Examples.of(self._task)
        self._train, self._held_out = examples.data, {}
        task = self._task
        if unit.kind == "holdout":
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
            pool, rest = torch.split(order, [round(HOLDOUT_SHARE * len(order)), len(order) - round(HOLDOUT_SHARE * len(order))])
            self._train, self._held_out = examples.data.take(rest), {100: examples.data.take(pool)}
            task = replace(task, batches=lambda: examples.batches(rest, case.batch_size))
        if unit.kind == "late":
            entry = LateEntry(len(examples), case.batch_size, case.n_steps)
            self._held_out = {
                percent: examples.data.take(cohort) for percent, cohort in zip(JUDGED, entry.cohorts, strict=True)
            }
            task = replace(task, batches=lambda: (examples.data.take(index) for index in entry))
        self._ensemble = Ensemble(task, [own.settings for own in drawn], case.label, unit.seed)
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
        for look in self._ensemble.train(self._case.n_steps, self._case.n_steps // LOOKS):
            percent = 100 * look.step // self._case.n_steps
            self._note_losses(look)
            if percent in self._held_out:
                self._note_held_out(percent)
            if percent in DIAGNOSED[self._unit.kind]:
                self._note_states(percent)
            if percent in (50, 100):
                self._note_test(percent)
        return self._records

    def _note_losses(self, look: Look) -> None:
        for k, record in enumerate(self._records):
            losses = float(look.train_loss[k]), float(look.running_loss[k])
            record["curve"].append([look.step, *(rounded(loss) for loss in losses)])

    def _note_held_out(self, percent: int) -> None:
        data = self._held_out[percent]
        for record, own in zip(self._records, _judgement(self._ensemble, data), strict=True):
            record["held_out"][str(percent)] = own

    def _note_states(self, percent: int) -> None:
        quantiles = _loss_quantiles(self._ensemble, self._train)
        for k, record in enumerate(self._records):
            state = self._ensemble.state(k)
            record["states"][str(percent)] = diagnosed(self._model, state) | {"train": quantiles[k]}
            if self._weights is not None:
                path = weights_path(self._weights, self._case.name, record, percent)
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, path)

    def _note_test(self, percent: int) -> None:
        evaluate = self._task.evaluate
        assert evaluate is not None
        for k, record in enumerate(self._records):
            self._model.load_state_dict(self._ensemble.state(k))
            record["test"][str(percent)] = rounded(evaluate(self._model))


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


def _judgement(ensemble: Ensemble, data: Any) -> list[Record]:
    """Judge all members on held-out examples; where an example has many labels, means over them are kept."""
    logits = ensemble.logits(part.x for part in _parts(data))
    one_label = logits.ndim == 3
    result = []
    for own in logits:
        losses, right, margin, entropy = _per_label(own, data.y)
        kept = {"loss": losses, "right": right, "margin": margin, "entropy": entropy}
        record = {name: _list(value if one_label else value.mean(1), 4) for name, value in kept.items()}
        if one_label:
            record["right"] = "".join("1" if hit else "0" for hit in right)
            record["label"] = "".join(str(int(label)) for label in data.y)
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


def _loss_quantiles(ensemble: Ensemble, data: Any) -> list[Record]:
    """Return, per member, its training accuracy and the 5 % quantiles of its losses over all training labels."""
    logits = ensemble.logits(part.x for part in _parts(data))
    levels = torch.linspace(0, 1, 21)
    result = []
    for own in logits:
        losses, right, _, _ = _per_label(own, data.y)
        quantiles = torch.quantile(losses.flatten()[:100_000], levels)
        result.append({"accuracy": rounded(float(right.mean())), "losses": _list(quantiles, 4)})
    return result


def _parts(data: Any) -> Iterator[Any]:
    return (data.take(index) for index in torch.split(torch.arange(len(data)), _EVALUATION_BATCH))


def _list(values: torch.Tensor, digits: int) -> list[float | None]:
    return [rounded(float(value), digits) for value in values]
