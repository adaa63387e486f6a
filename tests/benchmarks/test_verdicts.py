"""The kept rows of planted causes hold what the documents say of findings and suggestions."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evidence.faults import FAULTS, HEALTHY, IN_THE_NET, JUDGED_TASKS, OTHER_TASKS
from benchmarks.evidence.kept import Record, read
from benchmarks.evidence.verdicts import RIGHT, Verdict, by_finding, judged_rows, of_findings, verdicts
from ww_opt.spectral.findings import CALLS_TO_ACT, OUTWEIGHS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return read("faults")


@pytest.fixture(scope="module")
def judged(records: list[Record]) -> list[Verdict]:
    return verdicts(records)


def of(judged: list[Verdict], fault: str, tasks: tuple[str, ...] = tuple(HEALTHY)) -> list[Verdict]:
    return [item for item in judged if item.fault == fault and item.case in tasks]


@pytest.mark.parametrize("fault", list(RIGHT))
def test_the_right_cause_is_among_the_first_two(judged: list[Verdict], fault: str) -> None:
    # of the whole net's there are four runs on the other tasks, one of them behind batch norm, where nothing shows
    for tasks in ((*JUDGED_TASKS, *OTHER_TASKS),) if fault in IN_THE_NET else (JUDGED_TASKS, OTHER_TASKS):
        own = of(judged, fault, tasks)
        assert sum(item.is_second for item in own) >= 0.8 * len(own) > 0


def test_healthy_runs_are_left_alone(judged: list[Verdict], records: list[Record]) -> None:
    own = of(judged, "healthy")
    assert len(own) >= 18
    assert not any(item.is_anything or item.calls for item in own)


def test_no_kept_row_contradicts_itself(records: list[Record]) -> None:
    for record in records:
        for row in judged_rows(record):
            for finding in row.findings:
                assert not OUTWEIGHS.get(finding, frozenset()) & set(row.findings)


def test_the_document_has_these_figures(judged: list[Verdict], records: list[Record]) -> None:
    for fault in FAULTS:
        here, other = (of(judged, fault, tasks) for tasks in (JUDGED_TASKS, OTHER_TASKS))
        line = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| {fault} |"))
        if fault in RIGHT:
            assert f"| {fault} | {sum(item.is_first for item in here)} of {len(here)} |" in line
            for part in (here, other):
                assert f"{sum(item.is_second for item in part)} of {len(part)}" in line
        for part in (here, other):
            assert f"{sum(item.is_anything for item in part)} of {len(part)}" in line
    _, *rows = of_findings()
    for cells in rows:
        assert f"| {' | '.join(cells)} |" in DOCUMENT
    said = by_finding(records)
    assert all(healthy == 0 for finding, (_, _, healthy) in said.items() if finding in CALLS_TO_ACT)
