"""Planted faults and healthy runs, look by look, before the pruner's rules: which half sees what, and when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.evidence.faults import IN_ONE_LAYER
from benchmarks.evidence.kept import Record
from benchmarks.evidence.tapes import Tape, planted
from ww_opt.search.faults import DEFAULT_FAULTS, FAULTS, N_LAST, WARM, fatal, lasting
from ww_opt.search.records import LayerRecord, Look
from ww_opt.search.rungs import LATE, Ranks

__all__ = ["COSTLY", "DUE", "Found", "fault_of", "found", "looks", "report"]

COSTLY = 0.02
"""Accuracy that a fault must cost to count."""
DUE = 60
"""Percent of the run before which a fault should have ended it; a look at just that percent still counts."""
_EVERY = 10


@dataclass(frozen=True)
class Found:
    """One run: what it cost, which rule ended it and after which percent, and after which percent ranks did.

    ``rule`` is empty and percents are NaN where nothing did.
    """

    case: str
    fault: str
    layer: str
    cost: float
    rule: str
    by_fault: float
    by_rank: float


def looks(run: Record) -> list[Look]:
    """The looks that a trial has by default, each tenth of the run, as records keep them."""
    found = []
    for own in run["looks"]:
        if own["percent"] % _EVERY or not own["percent"] or "rows" not in own:
            continue
        step, score = run["n_steps"] * own["percent"] // 100, _real(own["score"])
        found.append(Look(step, run["n_steps"], score, score, _real(own["train_loss"]), layers=_layers(own["rows"])))
    return found


def _layers(rows: Record) -> tuple[LayerRecord, ...]:
    layers = []
    for place, names in enumerate(rows["findings"]):
        own = {name: rows[name][place] for name in rows if name != "findings"}
        own = {name: math.nan if value is None else value for name, value in own.items()}
        unread: Record = dict.fromkeys(("alpha", "D", "sigma"), math.nan)
        layers.append(LayerRecord(**own, **unread, n_tail=0, findings=tuple(names)))
    return tuple(layers)


def _real(value: float | None) -> float:
    return math.nan if value is None else float(value)


def fault_of(run: Record, rules: Sequence[str] = DEFAULT_FAULTS) -> tuple[str, float]:
    """Name of the fault that ends a run, and the percent at which; an empty name and NaN where none does."""
    seen = looks(run)
    first_loss = _real(run["looks"][0]["train_loss"])
    for place, look in enumerate(seen):
        so_far = seen[: place + 1]
        kept = so_far if len(so_far) <= N_LAST else [so_far[0], *so_far[-N_LAST:]]
        fault = fatal(look)
        if fault is None and not math.isfinite(look.train_loss):
            return "not_finite", 100 * look.step / look.n_steps
        if fault is None and look.step >= WARM * look.n_steps:
            fault = lasting(kept, rules, {own.step: own.train_loss for own in so_far}, first_loss)
        if fault is not None:
            return fault.rule, 100 * look.step / look.n_steps
    return "", math.nan


def found(of: Iterable[Tape], rules: Sequence[str] = DEFAULT_FAULTS, ranks: Ranks | None = None) -> Iterator[Found]:
    """Judge every planted run beside the healthy one of its seed, and the 60 others of its task."""
    own, by_case = planted(), {tape.case: tape for tape in of}
    healthy = {(run["case"], run["seed"]): run["test"] for run in own if run["fault"] == "healthy"}
    for run in own:
        if run["case"] not in by_case:
            continue
        rule, percent = fault_of(run, rules)
        cost = healthy[run["case"], run["seed"]] - run["test"]
        by_rank = _by_rank(run, by_case[run["case"]], ranks or Ranks())
        yield Found(run["case"], run["fault"], run["layer"], cost, rule, percent, by_rank)


def _by_rank(run: Record, tape: Tape, ranks: Ranks) -> float:
    for fraction in ranks.fractions:
        percent = round(100 * fraction)
        said = run["looks"][percent // 5].get("ahead3", [None])[0]
        others = tape.ahead()[percent]
        if said is None or np.mean(others < said) >= ranks.share_at(LATE, fraction):
            return float(percent)
    return math.nan


def report(of: Sequence[Tape]) -> str:
    """Return what each half finds, as text."""
    rows = list(found(of))
    lines = [
        f"Planted faults, looks every {_EVERY} %; `costly`: more than {COSTLY:.0%} of accuracy. Of those, ended up to "
        f"{DUE} % of the run by a fault rule, by ranks (late), by either:",
        f"{'':20}{'runs':>5}{'costly':>7}{'faults':>8}{'ranks':>7}{'either':>7}  rules",
    ]
    for fault in (*IN_ONE_LAYER, "all"):
        own = [row for row in rows if row.fault == fault or (fault == "all" and row.fault != "healthy")]
        costly = [row for row in own if row.cost > COSTLY]
        by_fault = [row for row in costly if row.by_fault <= DUE]
        by_rank = [row for row in costly if row.by_rank <= DUE]
        either = [row for row in costly if row.by_fault <= DUE or row.by_rank <= DUE]
        names = {
            name: sum(row.rule == name for row in by_fault) for name in dict.fromkeys(row.rule for row in by_fault)
        }
        n = len(costly) or 1
        lines.append(
            f"{fault:20}{len(own):5}{len(costly):7}{len(by_fault) / n:8.0%}{len(by_rank) / n:7.0%}"
            f"{len(either) / n:7.0%}  {names}"
        )
    lines += [
        "",
        "What each rule found among all planted runs, by what the fault cost: over 2 points, within, gained over 2",
    ]
    for rule in FAULTS:
        costs = [row.cost for row in found(of, [rule]) if row.fault != "healthy" and row.rule == rule]
        split = (
            sum(own > COSTLY for own in costs),
            sum(abs(own) <= COSTLY for own in costs),
            sum(own < -COSTLY for own in costs),
        )
        lines.append(f"  {rule:14}{len(costs):4} runs: {split[0]:3}{split[1]:4}{split[2]:4}")
    lines += ["", "False alarms, by rule: the better half of each task's runs, the others, and healthy ones"]
    for name in ("better", "worse", "healthy"):
        runs = _runs(of, name) if name != "healthy" else [run for run in planted() if run["fault"] == "healthy"]
        counts = {rule: sum(fault_of(run, [rule])[0] == rule for run in runs) for rule in FAULTS}
        lines.append(f"  {name:8} {len(runs)} runs: {counts}")
    return "\n".join(lines)


def _runs(of: Sequence[Tape], which: str) -> list[Record]:
    result: list[Record] = []
    for tape in of:
        order = np.argsort([-run["test"] for run in tape.runs])
        half = order[: len(order) // 2] if which == "better" else order[len(order) // 2 :]
        result += [tape.runs[k] for k in half]
    return result
