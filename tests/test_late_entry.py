"""Who comes late comes no earlier than said, and nobody is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ww_opt.late_entry import LateEntry


def make(**changes: Any) -> LateEntry:
    return LateEntry(**{"n_examples": 100, "batch_size": 7, "n_steps": 200, **changes})


def test_cohorts_have_their_shares_and_are_apart() -> None:
    entry = make(shares=(0.05, 0.1, 0.001))
    assert [len(cohort) for cohort in entry.cohorts] == [5, 10, 1]
    assert len(torch.cat(entry.cohorts).unique()) == 16


def test_nobody_comes_before_his_time_and_all_come_after() -> None:
    entry = make()
    batches = list(entry)
    assert len(batches) == len(entry) == 200
    for cohort, first in zip(entry.cohorts, (100, 150, 180), strict=True):
        before, after = torch.cat(batches[:first]), torch.cat(batches[first:])
        assert not torch.isin(cohort, before).any()
        assert torch.isin(cohort, after).all()
    assert len(torch.cat(batches).unique()) == 100


def test_every_epoch_shows_everyone_present_once() -> None:
    entry = make(n_examples=20, batch_size=6, n_steps=16, shares=(0.2,), times=(0.5,))
    batches = list(entry)
    assert [len(batch) for batch in batches[:6]] == [6, 6, 4, 6, 6, 4]  # 16 are there from the start
    assert len(torch.cat(batches[:3]).unique()) == 16
    # step 8 is the last of an epoch with 4 left; the 4 newcomers join them
    assert [len(batch) for batch in batches[8:14]] == [6, 2, 6, 6, 6, 2]
    assert torch.isin(entry.cohorts[0], torch.cat(batches[8:10])).all()
    assert len(torch.cat(batches[10:14]).unique()) == 20


def test_joining_says_when_to_judge() -> None:
    entry = make(n_steps=10, times=(0.25, 0.5, 0.9))
    found = {step: entry.joining(step) for step in range(10)}
    assert [step for step, cohorts in found.items() if cohorts] == [3, 5, 9] == list(entry.steps)
    assert torch.equal(found[5][0], entry.cohorts[1])


def test_order_follows_the_global_generator_and_cohorts_the_seed() -> None:
    torch.manual_seed(0)
    first = torch.cat(list(make()))
    assert not torch.equal(torch.cat(list(make())), first)
    torch.manual_seed(0)
    assert torch.equal(torch.cat(list(make())), first)
    assert not torch.equal(make(seed=1).cohorts[0], make().cohorts[0])


def test_it_is_a_batch_sampler() -> None:
    entry = make(n_steps=4)
    loader = DataLoader(list(range(100)), batch_sampler=entry)
    assert [len(batch) for batch in loader] == [7, 7, 7, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_examples": 0}, "n_examples=0"),
        ({"shares": (0.05,)}, "a share and a time"),
        ({"times": (0.5, 0.75, 1.0)}, r"lie in \(0, 1\)"),
        ({"times": (0.5, 0.5, 0.9)}, "must rise"),
        ({"shares": (0.4, 0.4, 0.3)}, "lower `shares`"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
