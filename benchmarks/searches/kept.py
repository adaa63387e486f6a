"""Run searches, train every pick afresh, and keep what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.kept import DATA, Record, append, read, rounded
from benchmarks.evidence.search import SEARCHED
from benchmarks.evidence.tasks import CASES, Case
from benchmarks.searches import deep
from benchmarks.searches.engine import Env, Parameters, lockstep
from benchmarks.searches.methods import METHODS

__all__ = ["SEARCH_CASES", "SEEDS", "UNTUNED", "read_searches", "run_searches"]

SEEDS = (0, 1, 2)
FRESH = (101, 102, 103)
"""Seeds that no search sees."""
UNTUNED = "untuned"
DEEP = Case(
    "deep_adamw_0", deep.make_task, {"n_train": 1500, "batch_size": 64, "width": 48}, "adamw", 320,
    0.3,
)  # fmt: skip
SEARCH_CASES: Sequence[Case] = (*(case for case in CASES if case.name in SEARCHED), DEEP)
_NAME = "searched"


def read_searches(folder: Path = DATA) -> list[Record]:
    """Read what was kept; a torn last line is left out."""
    return read(_NAME, folder)


def run_searches(
    cases: Sequence[Case], methods: Sequence[str], seeds: Sequence[int] = SEEDS, folder: Path = DATA
) -> Iterator[Record]:
    """Run what is missing, one seed of every case first; yield each record when it is kept."""
    torch.set_num_threads(1)
    for seed in seeds:
        for case in cases:
            done = {own["method"] for own in read_searches(folder) if (own["case"], own["seed"]) == (case.name, seed)}
            missing = [method for method in methods if method not in done]
            if missing:
                for record in _searched(case, missing, seed, with_untuned=UNTUNED not in done):
                    append(_NAME, [record], folder)
                    yield record


def _searched(case: Case, methods: Sequence[str], seed: int, *, with_untuned: bool) -> list[Record]:
    env = Env(case)
    records: list[Record] = []
    picks: list[Parameters] = []
    for method, heard, pick in lockstep(env, {name: METHODS[name](env, seed) for name in methods}):
        picks.append(pick)
        records.append({
            "case": case.name, "method": method, "seed": seed,
            "values": [rounded(answer.value) for _, answer in heard],
            "test": [rounded(answer.test) for _, answer in heard],
            "pick": {name: rounded(value) for name, value in pick.items()},
        })  # fmt: skip
    if with_untuned:
        picks.append(env.untuned)
        records.append({"case": case.name, "method": UNTUNED, "seed": seed, "pick": env.untuned})
    for record, own in zip(records, _fresh(env, picks, seed), strict=True):
        record["fresh"] = own
    return records


def _fresh(env: Env, picks: Sequence[Parameters], seed: int) -> list[list[float]]:
    """Accuracy of each pick, trained afresh with seeds that no search saw."""
    by_seed = [env.plain_runs(picks, fresh + 1000 * seed) for fresh in FRESH]
    return [[rounded(value) for value in own] for own in zip(*by_seed, strict=True)]


def as_line(record: Record) -> str:
    """One line for whoever waits."""
    mean = 100 * sum(record["fresh"]) / len(record["fresh"])
    best: Any = min((value for value in record.get("values", []) if value is not None), default=None)
    return f"{record['case']} seed {record['seed']} {record['method']}: {mean:.1f} % afresh; best value {best}"
