"""Kept rows of planted causes -> how often findings and suggestions are right, and how often they are false alarms."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.evidence.faults import FAULTS, IN_ONE_LAYER, JUDGED_TASKS, OTHER_TASKS
from benchmarks.evidence.kept import DATA, Record, diagnosis, read
from benchmarks.evidence.tasks import CASES, Case
from ww_opt.spectral import diagnose
from ww_opt.spectral.advice import SIGNS, Cause, Signs, suggestions
from ww_opt.spectral.findings import CALLS_TO_ACT, Finding
from ww_opt.spectral.rows import Diagnosis
from ww_opt.spectral.rules import LIMITS, Limits, with_findings
from ww_opt.spectral.scores import judged

__all__ = ["Verdict", "by_finding", "left_out", "of_causes", "of_findings", "of_good_runs", "verdict", "verdicts"]

RIGHT: Mapping[str, Cause] = {
    "lr x100": Cause.RATE_TOO_HIGH,
    "lr 0": Cause.NOT_MOVED,
    "frozen at init": Cause.NOT_MOVED,
    "weight decay x100": Cause.DECAY_TOO_HIGH,
    "huge entry": Cause.HUGE_ENTRY,
    "int4": Cause.ROUNDED,
    "too little training": Cause.TOO_LITTLE_TRAINING,
    "all lr x30": Cause.RATE_TOO_HIGH,
    "all lr /30": Cause.TOO_LITTLE_TRAINING,
    "all weight decay x100": Cause.DECAY_TOO_HIGH,
}
"""What should be suggested; of wrong labels, too few examples and healthy runs nothing can be."""
_LITTLE = frozenset({"lr 0", "frozen at init", "too little training", "all lr /30"})
SPEAKS_FOR: Mapping[Finding, frozenset[str]] = {
    Finding.QUANTISED: frozenset({"int4"}),
    Finding.TRAP: frozenset({"huge entry", "lr x100", "all lr x30"}),
    Finding.RANK_COLLAPSE: frozenset({"lr x100", "weight decay x100", "all lr x30", "all weight decay x100"}),
    Finding.OVER_TRAINED: frozenset(
        {"lr x100", "weight decay x100", "huge entry", "all lr x30", "all weight decay x100"}
    ),
    Finding.OVERGROWN: frozenset({"lr x100", "all lr x30"}),
    Finding.SHRUNK: frozenset({"weight decay x100", "all weight decay x100"}),
    Finding.ODD_SCALE: frozenset({"lr x100", "weight decay x100", "all lr x30", "all weight decay x100"}),
    Finding.MOVED_LITTLE: _LITTLE,
    Finding.UNDER_TRAINED: _LITTLE,
    Finding.HEAVY_TAIL: frozenset(),
}
"""Faults in a layer of which a finding is right."""
_CHOICES: Mapping[str, Sequence[float]] = {
    "uneven": (3.0, 4.0, 5.0),
    "overgrown": (3.0, 4.0, 6.0),
    "lost": (0.1, 0.15, 0.2),
    "fresh_rank": (0.85, 0.9, 0.95),
}


@dataclass(frozen=True)
class Verdict:
    """What was said of one planted cause.

    Attributes:
        case, fault: what was trained, and what was planted; ``healthy`` for nothing.
        is_first, is_second: whether the right cause was the first suggestion, or among the first two.
        names_layer: whether it was among the first two and named the layer.
        is_anything: whether anything was suggested.
        calls: layers, other than the faulty one, with a finding that asks for action.
    """

    case: str
    fault: str
    is_first: bool
    is_second: bool
    names_layer: bool
    is_anything: bool
    calls: tuple[str, ...]


def judged_rows(record: Record, limits: Limits = LIMITS) -> Diagnosis:
    """The kept rows with the findings of today's rules."""
    return Diagnosis(with_findings(diagnosis(record["rows"]), limits))


def verdict(record: Record, limits: Limits = LIMITS, signs: Signs = SIGNS) -> Verdict:
    """Judge one record."""
    rows, right = judged_rows(record, limits), RIGHT.get(record["fault"])
    said = suggestions(rows, signs)
    own = next((item for item in said[:2] if item.cause is right), None)
    return Verdict(
        record["case"],
        record["fault"],
        bool(said) and said[0].cause is right,
        own is not None,
        own is not None and (not record["layer"] or record["layer"] in own.layers),
        bool(said),
        tuple(row.name for row in rows if row.name != record["layer"] and CALLS_TO_ACT.intersection(row.findings)),
    )


def verdicts(records: Iterable[Record], limits: Limits = LIMITS, signs: Signs = SIGNS) -> list[Verdict]:
    """Judge all records."""
    return [verdict(record, limits, signs) for record in records]


def left_out(records: Sequence[Record]) -> list[Verdict]:
    """Judge each of the tasks that rules were made on with the thresholds that are best on the others.

    Best are those with most causes among the first two, a suggestion on a healthy run counting against one that is
    right; of equals the middle.
    """
    settings = [dict(zip(_CHOICES, own, strict=True)) for own in itertools.product(*_CHOICES.values())]
    own = [record for record in records if record["case"] in JUDGED_TASKS]
    found = [verdicts(own, *_thresholds(setting)) for setting in settings]
    kept = []
    for case in JUDGED_TASKS:
        merits = [sum(_merit(item) for item in all_of if item.case != case) for all_of in found]
        best = [setting for setting, merit in zip(settings, merits, strict=True) if merit == max(merits)]
        middle = {name: statistics.median_low(setting[name] for setting in best) for name in _CHOICES}
        kept += [item for item in found[settings.index(middle)] if item.case == case]
    return kept


def _thresholds(setting: Mapping[str, float]) -> tuple[Limits, Signs]:
    return (
        Limits(uneven=setting["uneven"], overgrown=setting["overgrown"]),
        Signs(lost=setting["lost"], fresh_rank=setting["fresh_rank"]),
    )


def _merit(item: Verdict) -> int:
    return item.is_second - (item.fault == "healthy" and item.is_anything)


def by_finding(records: Iterable[Record]) -> dict[Finding, tuple[int, int, int]]:
    """Of each finding: how often it was said of a judged layer, how often rightly, how often in a healthy run."""
    found = {finding: [0, 0, 0] for finding in SPEAKS_FOR}
    for record in records:
        for row in judged(judged_rows(record)):
            is_there = row.name == record["layer"] or record["fault"] not in (*IN_ONE_LAYER, "int4")
            for finding in set(row.findings) & set(SPEAKS_FOR):
                right = is_there and record["fault"] in SPEAKS_FOR[finding]
                for place, counts in enumerate((True, right, record["fault"] == "healthy")):
                    found[finding][place] += counts
    return {finding: (said, right, healthy) for finding, (said, right, healthy) in found.items()}


def of_causes(folder: Path = DATA) -> Iterator[Sequence[str]]:
    """Rows of the table of causes, its head first: tasks that rules were made on, the same left out, other tasks."""
    records = read("faults", folder)
    here = verdicts(record for record in records if record["case"] in JUDGED_TASKS)
    other = verdicts(record for record in records if record["case"] in OTHER_TASKS)
    out = left_out(records)
    yield (
        "planted", "first", "of the first two", "and the layer named", "left out: first two", "other tasks: first two",
        "anything said", "other tasks", "other layers called to act",
    )  # fmt: skip
    for fault in FAULTS:
        own, rest = ([item for item in part if item.fault == fault] for part in (here, other))
        if not own:
            continue
        is_told = fault in RIGHT
        left = [item for item in out if item.fault == fault]
        yield (
            fault,
            _share(own, lambda item: item.is_first) if is_told else "",
            _share(own, lambda item: item.is_second) if is_told else "",
            _share(own, lambda item: item.names_layer) if is_told else "",
            _share(left, lambda item: item.is_second) if is_told else "",
            _share(rest, lambda item: item.is_second) if is_told else "",
            _share(own, lambda item: item.is_anything),
            _share(rest, lambda item: item.is_anything),
            _share([*own, *rest], lambda item: bool(item.calls)),
        )


def of_findings(folder: Path = DATA) -> Iterator[Sequence[str]]:
    """Rows of the table of findings, its head first, over all tasks."""
    records = read("faults", folder)
    n_layers = sum(len(judged(diagnosis(record["rows"]))) for record in records if record["fault"] == "healthy")
    yield "finding", "said of layers", "rightly", f"of {n_layers} layers of healthy runs"
    for finding, (said, right, healthy) in by_finding(records).items():
        yield finding.label, f"{said}", f"{right}" if SPEAKS_FOR[finding] else "", f"{healthy}"


def of_good_runs(folder: Path = DATA, cases: Sequence[Case] = CASES) -> Iterator[Sequence[str]]:
    """Rows of the table of what is said of the best quarter of runs with settings drawn at random, its head first."""
    yield "task", "best quarter", "anything suggested", "a layer called to act"
    for case in cases:
        runs = [record for record in read(case.name, folder) if record["kind"] == "base" and "100" in record["states"]]
        best = sorted(runs, key=lambda record: -record["test"]["100"])[: len(runs) // 4]
        normed = {row.name: row.normed for row in diagnose(case.task().build_model())}
        said = called = 0
        for record in best:
            kept = diagnosis(record["states"]["100"]["rows"])
            rows = Diagnosis(with_findings(replace(row, normed=normed.get(row.name)) for row in kept))
            said += bool(suggestions(rows))
            called += any(CALLS_TO_ACT.intersection(row.findings) for row in rows)
        if best:
            yield case.name, f"{len(best)}", f"{said}", f"{called}"


def _share(of: Sequence[Verdict], holds: Callable[[Verdict], bool]) -> str:
    return f"{sum(map(holds, of))} of {len(of)}" if of else ""
