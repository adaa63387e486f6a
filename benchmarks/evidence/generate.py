"""Which runs there are, which are missing, and training them; what is kept of one is told in `run.py`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.evidence.kept import DATA, Record, append, read
from benchmarks.evidence.run import Run, Unit
from benchmarks.evidence.tasks import CASES, N_CONFIGURATIONS, configurations

__all__ = ["Settings", "generate", "train_unit", "units"]

N_RESEEDED = 15
SEEDS = (1, 2)


@dataclass(frozen=True)
class Settings:
    """How much is generated, and where it goes.

    Args:
        cases: names of the tasks.
        n: configurations a task.
        n_reseeded: how many of them get further seeds.
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
    for n_left, (unit, records) in zip(reversed(range(len(todo))), _trained(todo, settings, workers), strict=True):
        append(unit.case, records, settings.folder)
        yield unit, n_left


def _trained(todo: list[Unit], settings: Settings, workers: int) -> Iterator[tuple[Unit, list[Record]]]:
    if workers == 1:
        yield from ((unit, train_unit(unit, settings.weights)) for unit in todo)
        return
    with ProcessPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(train_unit, unit, settings.weights): unit for unit in todo}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def train_unit(unit: Unit, weights: Path | None = None) -> list[Record]:
    """Train a unit and return one record per configuration."""
    torch.set_num_threads(1)
    case = next(case for case in CASES if case.name == unit.case)
    drawn = configurations(case, max(unit.numbers) + 1)
    return Run(case, unit, [drawn[number] for number in unit.numbers], weights).records()
