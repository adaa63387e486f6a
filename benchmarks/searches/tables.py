"""Kept searches -> tables: what each method's pick is worth, afresh, beside what the user came with."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from benchmarks.evidence.kept import Record
from benchmarks.searches.kept import UNTUNED

__all__ = ["Table", "accuracies", "judges", "lines", "trials_needed"]

Key: TypeAlias = tuple[str, int]
Table: TypeAlias = Mapping[str, Mapping[Key, float]]
"""Method -> (case, seed) -> accuracy in percent."""
_DRAWS = 2000


def accuracies(records: Iterable[Record]) -> Table:
    """Mean accuracy of each pick over the seeds that it was trained afresh with."""
    found: dict[str, dict[Key, float]] = defaultdict(dict)
    for record in records:
        found[record["method"]][record["case"], record["seed"]] = 100 * statistics.fmean(record["fresh"])
    return found


def trials_needed(records: Iterable[Record], rival: str, method: str) -> list[int]:
    """Per search: runs after which ``method`` has what ``rival`` reaches at its end, by the sealed accuracy of leaders.

    One more than there were where it never does. The accuracy is that of the run whose value is best so far.
    """
    by = {(own["method"], own["case"], own["seed"]): own for own in records if own["method"] in (rival, method)}
    found = []
    for (name, case, seed), own in by.items():
        other = by.get((rival, case, seed))
        if name != method or other is None:
            continue
        goal = _leading(other)[-1]
        reached = [number for number, value in enumerate(_leading(own), start=1) if value >= goal]
        found.append(reached[0] if reached else len(own["values"]) + 1)
    return found


def _leading(record: Record) -> list[float]:
    """Sealed accuracy of the leader after each run."""
    best, found, leader = math.inf, [], 0.0
    for value, test in zip(record["values"], record["test"], strict=True):
        if value is not None and value < best:
            best, leader = value, test
        found.append(leader)
    return found


def judges(records: Sequence[Record], ours: str) -> list[str]:
    """A Markdown table of one method by what it goes by: what each loses beside the same search on the test set."""
    prefix = f"{ours}, by "
    chosen = [own for own in records if own["method"] == ours or own["method"].startswith(prefix)]
    table = {
        "latecomers" if name == ours else name.removeprefix(prefix): own for name, own in accuracies(chosen).items()
    }
    full = sorted(set.intersection(*(set(own) for own in table.values())))
    rows = ["| searched by | mean | points lost beside the search on the test set |", "|---|---|---|"]
    for name, own in sorted(table.items(), key=lambda item: -statistics.fmean(item[1][key] for key in full)):
        lost = np.array([table["test set"][key] - own[key] for key in full])
        rows.append(f"| {name} | {statistics.fmean(own[key] for key in full):.1f} | {_interval(lost)} |")
    return [f"{len(full)} searches each:", "", *rows]


def lines(records: Sequence[Record], method: str) -> list[str]:
    """A Markdown table over the searches that all methods have, the best mean first; all by latecomers."""
    table = accuracies(own for own in records if ", by " not in own["method"])
    full = set.intersection(*(set(own) for own in table.values()))
    cases = list(dict.fromkeys(case for case, _ in sorted(full)))
    means = {name: statistics.fmean(own[key] for key in full) for name, own in table.items()}
    head = [f"| | {' | '.join(cases)} | mean | {method} beside it | below what the user came with |"]
    head.append("|" + "---|" * (len(cases) + 4))
    rows = []
    for name in sorted(means, key=lambda own: -means[own]):
        own = table[name]
        cells = [f"{statistics.fmean(own[key] for key in full if key[0] == case):.1f}" for case in cases]
        apart = np.array([table[method][key] - own[key] for key in sorted(full)])
        below = sum(own[key] < table[UNTUNED][key] - 0.5 for key in full)
        rows.append(
            f"| {name} | {' | '.join(cells)} | {means[name]:.1f} | {_interval(apart)} | {below} of {len(full)} |"
        )
    return [*head, *rows]


def _interval(differences: np.ndarray) -> str:
    """Mean and its 95 % interval over searches, drawn with replacement."""
    if not differences.any():
        return ""
    rng = np.random.default_rng(0)
    drawn = rng.choice(differences, size=(_DRAWS, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{differences.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
