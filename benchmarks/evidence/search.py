"""End to end: the same Bayesian search on different objectives, and what each pick is worth on the sealed test set.

A search exploits what random sampling does not. Every pick is trained once more on all training examples in the plain
way, so that neither a validation split nor late entry is charged for the examples that it kept back. Incumbents along
a long search on the score show whether the test accuracy still rises when the score does (Goodhart).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from torch import nn

from benchmarks.evidence.kept import DATA, Record, rounded
from benchmarks.evidence.run import all_examples, unused_examples
from benchmarks.evidence.tasks import CASES, Case
from objectives._classification import accuracy
from ww_opt import SpectralObjective, Task
from ww_opt.search import records

__all__ = [
    "LONG",
    "LONG_SEARCHES",
    "METHODS",
    "SEARCHED",
    "Sealed",
    "Search",
    "missing",
    "plain_accuracy",
    "read_searches",
    "search",
    "search_all",
    "searches",
]

VALIDATION_SHARE = 0.1


SEARCHED = (
    "mlp_sgd_0", "mlp_adamw_20", "mlp_sgd_40", "cnn_adamw_0", "cnn_sgd_20", "cnn_bn_adamw_40", "digits_sgd_20",
    "digits_adamw_40",
)  # fmt: skip
"""Tasks that searches are run on: those that train within three seconds and leave room to lose."""
LONG_SEARCHES = (200,)
"""Trials of a long search."""
LONG = ("digits_adamw_40", "mlp_sgd_0")


class Search(NamedTuple):
    """One search."""

    case: str
    method: str
    seed: int
    n_trials: int


class _Trained(NamedTuple):
    """What a trial offers to be ranked by."""

    train_loss: float
    model: nn.Module
    test: float


METHODS: Mapping[str, Any] = {
    "weights": False,
    "training loss guard": True,
    "late guard": "late",
    "training loss": False,
    "validation split": False,
    "oracle": False,
}
"""What is minimised, by name, and the guard that its objective has."""


@dataclass(frozen=True)
class Sealed:
    """Accuracy on all that no run trains on."""

    case: Case

    @cached_property
    def _parts(self) -> tuple[Callable[[nn.Module], float], Any]:
        evaluate = self.case.task().evaluate
        assert evaluate is not None
        return evaluate, unused_examples(self.case)

    def __call__(self, model: nn.Module) -> float:
        """Return the accuracy of a model."""
        evaluate, unused = self._parts
        if unused is None:
            return evaluate(model)
        n, m = self.case.n_test, len(unused)
        return (n * evaluate(model) + m * accuracy(model, unused)) / (n + m)


def search(unit: Search) -> Record:
    """Run one search and train its pick once more."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    case = next(case for case in CASES if case.name == unit.case)
    task, held_out, sealed = case.task(), None, Sealed(case)
    if unit.method == "validation split":
        task, held_out = _split(case, task)
    found: dict[int, _Trained] = {}

    def on_trained(trial: optuna.Trial, model: nn.Module) -> None:
        look = records.looks(trial)[-1]
        found[trial.number] = _Trained(look.train_loss, model, sealed(model))

    objective = SpectralObjective(
        task, case.space, case.n_steps, case.n_steps, guard=METHODS[unit.method], on_trained=on_trained
    )

    def value(trial: optuna.Trial) -> float:
        plain = objective(trial)
        own = found[trial.number]
        if unit.method == "training loss":
            return own.train_loss
        if unit.method == "oracle":
            return -own.test
        return plain if held_out is None else -accuracy(own.model, held_out)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=unit.seed), pruner=optuna.pruners.NopPruner())
    study.optimize(value, n_trials=unit.n_trials)
    numbers = sorted(found)
    return {
        **unit._asdict(),
        "values": [rounded(study.trials[number].value) for number in numbers],
        "test": [rounded(found[number].test) for number in numbers],
        "n_diverged": unit.n_trials - len(numbers),
        "pick": rounded(plain_accuracy(case, study.best_trial.params, sealed)),
    }


def plain_accuracy(
    case: Case, parameters: Mapping[str, float], sealed: Callable[[nn.Module], float], seed: int = 0
) -> float:
    """Accuracy of the settings, trained on all examples in the plain way; NaN where that diverges."""
    tested: list[float] = []

    def on_trained(_: optuna.Trial, model: nn.Module) -> None:
        tested.append(sealed(model))

    objective = SpectralObjective(case.task(), case.space, case.n_steps, case.n_steps, seed=seed, on_trained=on_trained)
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    study.enqueue_trial(dict(parameters))
    study.optimize(objective, n_trials=1)
    return tested[0] if tested else math.nan


def _split(case: Case, task: Task) -> tuple[Task, Any]:
    examples = all_examples(task)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    n_held_out = round(VALIDATION_SHARE * len(examples))
    held_out, rest = examples.take(order[:n_held_out]), examples.take(order[n_held_out:])

    def batches() -> Iterator[Any]:
        return (rest.take(index) for index in torch.split(torch.randperm(len(rest)), case.batch_size))

    return replace(task, batches=batches), held_out


def searches() -> list[Search]:
    """List all searches: three seeds of 40 trials, one seed of every task first, and long ones on the score."""
    found = [Search(case, method, seed, 40) for seed in range(3) for case in SEARCHED for method in METHODS]
    long = [Search(case, method, 0, LONG_SEARCHES[0]) for case in LONG for method in ("weights", "late guard")]
    two_seeds = 2 * len(SEARCHED) * len(METHODS)
    return [*found[:two_seeds], *long, *found[two_seeds:]]


def missing(units: list[Search], folder: Path = DATA) -> list[Search]:
    """List the searches that were not run yet."""
    done = {Search(*(record[name] for name in Search._fields)) for record in read_searches(folder)}
    return [unit for unit in units if unit not in done]


def read_searches(folder: Path = DATA) -> list[Record]:
    """Read what was kept; a torn last line is left out."""
    path = folder / "searches.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def search_all(units: list[Search], workers: int, folder: Path = DATA) -> Iterator[tuple[Record, int]]:
    """Run what is missing; yield each search when it is kept, with the number of those still to come."""
    todo = missing(units, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(search, unit) for unit in todo]
        for n_left, future in zip(reversed(range(len(todo))), as_completed(futures), strict=True):
            record = future.result()
            with (folder / "searches.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
            yield record, n_left
