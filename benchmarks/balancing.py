"""What balance rules are worth in flight, ``python -m benchmarks.balancing``: on top of the best shared settings.

Each development task at the shared settings that its searches picked (``benchmarks/evidence/data/searched.jsonl``),
trained with seeds that no search saw; exponents are asked for once an epoch, as TempBalance does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, stdev

import click
import numpy as np
import torch
from optuna.trial import FixedTrial
from torch.optim import Optimizer

from benchmarks.evidence.tasks import Case
from benchmarks.searches.kept import SEARCH_CASES, read_searches
from ww_opt import BalanceSchedule
from ww_opt.spectral import hill_alphas
from ww_opt.training.balancing import FACTORS, Balanced
from ww_opt.training.randomness import seeded
from ww_opt.training.run import train
from ww_opt.training.task import Task

__all__ = ["RULES", "accuracy"]

_SHARED = "shared TPE"


@dataclass(frozen=True)
class Rule:
    """What is scaled, and whether the layer with the largest exponent gets the smallest factor instead."""

    setting: Balanced
    is_reversed: bool = False


RULES: Mapping[str, Rule | None] = {
    "none": None,
    "TempBalance": Rule("lr"),
    "TempBalance, reversed": Rule("lr", is_reversed=True),
    "AlphaDecay": Rule("weight_decay"),
    "AlphaDecay, reversed": Rule("weight_decay", is_reversed=True),
}


def accuracy(case: Case, parameters: Mapping[str, float], rule: Rule | None, seed: int) -> float:
    """Train once and return the sealed accuracy."""
    task, schedules = case.task(), list[BalanceSchedule]()
    assert task.evaluate is not None
    with seeded(seed, "cpu"):
        model = task.build_model()
        groups = case.space.configure(FixedTrial(dict(parameters)), model)
        balanced = replace(task, optimizer=partial(_balanced, task, rule, schedules))
        epoch = max(round(case.n_steps / case.n_epochs), 1)
        for _ in train(model, balanced, groups, n_steps=case.n_steps, interval_steps=epoch):
            for schedule in schedules:
                sign = -1.0 if rule is not None and rule.is_reversed else 1.0
                schedule.update({name: sign * own for name, own in hill_alphas(model).items()})
        return task.evaluate(model)


def _balanced(task: Task, rule: Rule | None, schedules: list[BalanceSchedule], groups: object) -> Optimizer:
    optimizer: Optimizer = task.optimizer(groups)
    if rule is not None:
        schedules.append(BalanceSchedule(optimizer, rule.setting, FACTORS[rule.setting]))
    return optimizer


def picks(name: str) -> dict[int, Mapping[str, float]]:
    """Shared settings that the searches of a task ended with, by seed."""
    return {own["seed"]: own["pick"] for own in read_searches() if (own["case"], own["method"]) == (name, _SHARED)}


def gains(case: Case, n_seeds: int) -> Iterator[dict[str, float]]:
    """Accuracy by rule, in percent, for each pick and fresh seed; pairs share both."""
    for searched, parameters in sorted(picks(case.name).items()):
        for own in range(n_seeds):
            seed = 10_000 + 100 * searched + own
            yield {name: 100 * accuracy(case, parameters, rule, seed) for name, rule in RULES.items()}


@click.command()
@click.option("--seeds", "n_seeds", default=3, show_default=True, help="Fresh seeds of each pick.")
def main(n_seeds: int) -> None:
    """Print a row for each task, and the mean with its 95 % interval over runs."""
    torch.set_num_threads(1)
    rules = [name for name in RULES if name != "none"]
    click.echo(f"| task | runs | without | {' | '.join(rules)} |\n{'|---' * (len(rules) + 3)}|")
    whole: list[dict[str, float]] = []
    for case in SEARCH_CASES:
        found = list(gains(case, n_seeds))
        if found:
            whole += found
            click.echo(_row(case.name, found, rules))
    click.echo(_row("mean", whole, rules))


def _row(name: str, found: list[dict[str, float]], rules: list[str]) -> str:
    cells = []
    for rule in rules:
        differences = [own[rule] - own["none"] for own in found]
        half = 1.96 * stdev(differences) / np.sqrt(len(differences)) if len(differences) > 1 else np.nan
        cells.append(f"{mean(differences):+.1f} ± {half:.1f}")
    return f"| {name} | {len(found)} | {mean(own['none'] for own in found):.1f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
