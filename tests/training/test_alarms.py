"""Cohorts that disagree and studies at chance are told; honest studies are not."""

from __future__ import annotations

import math

import pytest
import torch

from ww_opt.training.alarms import alarms, disagreement, nothing_learnt
from ww_opt.training.judging import Judgement, judge


def study(
    skill: float, wrong: tuple[float, ...] = (0.0, 0.0, 0.0), *, seed: int = 0, n: int = 60
) -> list[list[Judgement]]:
    """Ten trials of rising skill, judged by cohorts of which a share of the labels is wrong."""
    generator = torch.Generator().manual_seed(seed)
    true = [torch.randint(0, 6, (n,), generator=generator) for _ in wrong]
    hard = [torch.rand(n, generator=generator) for _ in wrong]  # the same examples are hard in every trial
    said = [(y + (torch.arange(n) < share * n) * 3) % 6 for y, share in zip(true, wrong, strict=True)]
    found = []
    for trial in range(10):
        cohorts = []
        for k, y in enumerate(true):
            signal = skill * (1 + trial) / 10 * (1 - hard[k]) * (1 + 0.1 * k)
            logits = torch.randn(n, 6, generator=generator) + signal[:, None] * torch.nn.functional.one_hot(y, 6)
            cohorts.append(judge(logits, said[k], k))
        found.append(cohorts)
    return found


def test_honest_studies_are_not_alarmed() -> None:
    told = [alarms(study(skill, seed=seed, n=n)) for skill in (3.0, 6.0, 12.0) for n in (20, 60) for seed in range(4)]
    assert sum(map(bool, told)) <= 1


@pytest.mark.parametrize("cohort", [0, 1, 2])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_cohort_with_wrong_labels_is_named(cohort: int, share: float) -> None:
    told = disagreement(study(12.0, tuple(share if k == cohort else 0.0 for k in range(3))))
    assert len(told) == 1
    assert told[0].startswith(f"Cohort {cohort + 1} of 3 disagrees")


def test_labels_wrong_alike_are_no_disagreement() -> None:
    assert disagreement(study(12.0, (0.4, 0.4, 0.4))) == []


def test_a_study_at_chance_is_told() -> None:
    told = [nothing_learnt(study(0.0, seed=seed)) for seed in range(8)]
    assert sum(map(bool, told)) >= 7
    assert "a constant guess" in next(own for own in told if own)[0]
    assert alarms(study(0.0)) == nothing_learnt(study(0.0))


def test_one_trial_alone() -> None:
    assert alarms(study(12.0)[-1:]) == []
    assert alarms(study(0.0)[-1:]) != []


def test_what_is_not_known_says_nothing() -> None:
    old = [[Judgement(own.step, own.n, own.accuracy, own.losses) for own in late] for late in study(0.0)]
    assert alarms(old) == alarms([]) == alarms([[]]) == []
    diverged = [judge(torch.full((8, 3), math.nan), torch.zeros(8, dtype=torch.int64))]
    assert alarms([*study(12.0), diverged]) == []


def test_losses_of_another_unit() -> None:
    trials = [[Judgement(5, 20, math.nan, (value,))] for value in (0.9, 1.2)]
    assert alarms(trials, [1.0, 1.0]) == []
    assert "is not below the loss before training, 0.8" in alarms(trials, [0.8, 0.8])[0]
    assert alarms(trials) == []
