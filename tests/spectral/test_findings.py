"""Findings have one name each, and those of one row never contradict each other."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from ww_opt.spectral.findings import (
    CALLS_TO_ACT,
    OUTWEIGHS,
    SAID_OF,
    SAID_OF_ALL,
    Finding,
    Role,
    agreed,
    current_name,
    label,
)
from ww_opt.spectral.rows import LayerDiagnostics
from ww_opt.spectral.rules import with_findings

CONTRADICT = [
    (Finding.UNDER_TRAINED, Finding.OVERGROWN),
    (Finding.UNDER_TRAINED, Finding.OVER_TRAINED),
    (Finding.UNDER_TRAINED, Finding.RANK_COLLAPSE),
    (Finding.MOVED_LITTLE, Finding.OVER_TRAINED),
    (Finding.MOVED_LITTLE, Finding.OVERGROWN),
    (Finding.MOVED_LITTLE, Finding.SHRUNK),
    (Finding.MOVED_LITTLE, Finding.TRAP),
    (Finding.MOVED_LITTLE, Finding.RANK_COLLAPSE),
    (Finding.OVERGROWN, Finding.SHRUNK),
    (Finding.ODD_SCALE, Finding.OVERGROWN),
    (Finding.TOO_SMALL, Finding.OVERGROWN),
    *((Finding.NO_FAULT, other) for other in Finding if other is not Finding.NO_FAULT),
]


def any_row(draw: random.Random, name: str) -> LayerDiagnostics:
    """A row of random numbers, likely near where findings begin; not one that a matrix could give."""
    M = draw.choice((6, 20, 48, 200))
    N = M * draw.choice((1, 3))
    null = 0.6 * M
    return LayerDiagnostics(
        name=name, kind="linear", role=draw.choice((Role.HIDDEN,) * 4 + tuple(Role)), parameter=f"{name}.weight",
        N=N, M=M, n_matrices=1, n_eigenvalues=M, alpha=draw.choice((math.nan, 1.5, 3.0, 8.0)),
        frobenius_norm=math.sqrt(N * M) * 10 ** draw.uniform(-2, 2), null_effective_rank=null,
        effective_rank=null * draw.choice((0.03, 0.2, 0.5, 0.9, 1.0)), rank_loss=draw.choice((0, 1, M // 3, M - 1)),
        spikes=draw.choice((0, 0, 1, M // 2)), traps=draw.choice((0, 0, 0, 1, 9)), largest_entry=draw.uniform(2, 40),
        excess=draw.choice((-1.0, 0.0, 1.0, 30.0)) / math.sqrt(N * M), levels=draw.choice((0, 0, 14)),
        normed=draw.choice((True, False, None)),
    )  # fmt: skip


def test_no_two_findings_of_a_row_contradict_each_other() -> None:
    draw, seen = random.Random(0), set()
    for _ in range(1500):
        for row in with_findings(any_row(draw, str(place)) for place in range(5)):
            seen |= set(row.findings)
            assert row.findings, "something is always said"
            for one, other in itertools.permutations(row.findings, 2):
                assert other not in OUTWEIGHS.get(one, ())
            for pair in CONTRADICT:
                assert not set(pair) <= set(row.findings), pair
            assert set(row.findings) <= SAID_OF.get(row.role, SAID_OF_ALL) | {Finding.NO_FAULT}
            if row.normed is not False:
                assert not {Finding.OVERGROWN, Finding.SHRUNK} & set(row.findings)
            if row.normed is True:
                assert Finding.ODD_SCALE not in row.findings
    assert seen == set(Finding)  # the rows are varied enough to speak for all


def test_all_subsets_agree() -> None:
    for size in (1, 2, 3):
        for found in itertools.combinations(Finding, size):
            for pair in CONTRADICT:
                assert not set(pair) <= set(agreed(found))
    assert agreed(()) == (Finding.NO_FAULT,)


def test_a_finding_has_one_name() -> None:
    labels = [finding.label for finding in Finding]
    assert len(set(labels)) == len(labels)
    for finding in Finding:
        assert finding.label.replace("-", " ") == finding.name.lower().replace("_", " ")
        assert label(finding.name) == finding.label
        if finding in CALLS_TO_ACT:
            assert any(word in finding.value for word in ("sure;", "likely;")), "it says how sure it is"
            assert any(word in finding.value for word in ("lower", "clip", "measure")), "and what to try"


@pytest.mark.parametrize(("old", "new"), [("RANDOM", "MOVED_LITTLE"), ("HEALTHY", "NO_FAULT"), ("FUTURE", "FUTURE")])
def test_records_of_earlier_versions_are_read(old: str, new: str) -> None:
    assert current_name(old) == new
    assert label(old) == label(new)


def test_a_layer_without_spikes_that_lost_rank_has_moved() -> None:
    row = replace(
        any_row(random.Random(1), "fc"), role=Role.HIDDEN, N=64, M=64, n_eigenvalues=64, alpha=3.0, spikes=0,
        excess=0.0, traps=0, levels=0, rank_loss=0, null_effective_rank=38.0, effective_rank=38.0,
    )  # fmt: skip
    assert with_findings([row])[0].findings == (Finding.MOVED_LITTLE,)
    assert with_findings([replace(row, effective_rank=30.0)])[0].findings == (Finding.NO_FAULT,)
