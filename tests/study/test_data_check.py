"""Will more data help? Parts of the data, a law through them, and honest intervals."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import Tensor

from tests import tiny
from ww_opt import LateExamples, LayerwiseSpace
from ww_opt.reporting.data_text import answer, data_text
from ww_opt.reporting.plots import data_figure
from ww_opt.search.objective import SpectralObjective
from ww_opt.study.data_check import SHARES, DataCheck, Gain, data_check, law_at

X = torch.randn(240, 40, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3] + 0.1 * torch.randn(240, 3, generator=torch.Generator().manual_seed(2))).argmax(dim=1)
RATES = {f"lr/{layer}": 0.05 for layer in (0, 2, 4)}


def objective_of(seen: list[Tensor] | None = None, **changes: object) -> SpectralObjective:
    def take(index: Tensor) -> tuple[Tensor, Tensor]:
        if seen is not None:
            seen.append(index)
        return X[index], Y[index]

    late = LateExamples(len(X), 16, take, lambda model, batch: (model(batch[0]), batch[1]))
    return replace(tiny.OBJECTIVE, task=replace(tiny.TASK, late_entry=replace(late, **changes)), n_steps=40)


def test_parts_grow_and_who_judges_is_never_trained_on() -> None:
    seen: list[Tensor] = []
    told: list[str] = []
    found = data_check(objective_of(seen), RATES, announce=told.append)
    assert [size.n_examples for size in found.sizes] == [round(share * 204) for share in SHARES]
    assert found.n_judges == 36
    assert len(told) == 5
    assert all(len(size.losses) == 2 and size.losses[0] != size.losses[1] for size in found.sizes)
    # judges come in parts of 12 (36 in 3 even ones) and a first look of 16; training in batches of up to 16
    judges = torch.cat([index for index in seen if len(index) == 12][:3]).unique()
    assert len(judges) == 36
    trained = torch.cat([index for index in seen if not torch.isin(index, judges).all()]).unique()
    assert not torch.isin(trained, judges).any()
    assert len(trained) == 204
    again = data_check(objective_of(), RATES)
    assert again.sizes == found.sizes
    assert again.loss == found.loss


def test_the_callers_random_stream_goes_on_as_if_nothing_had_been() -> None:
    before = torch.get_rng_state()
    data_check(objective_of(), RATES)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("exponent", [0.3, 1.0])
def test_a_planted_law_is_foreseen(exponent: float) -> None:
    rng = np.random.default_rng(0)
    n = np.repeat([250.0, 350.0, 500.0, 700.0, 1000.0], 2)
    covered = 0
    for _ in range(50):
        values = 1.0 + 0.5 * (n / 1000.0) ** -exponent + rng.normal(scale=0.02, size=len(n))
        drawn = law_at(n, values, np.array([1000.0, 2000.0]))
        change = drawn[:, 1] - drawn[:, 0]
        low, high = np.quantile(change, [0.05, 0.95])
        covered += low <= 0.5 * (2.0**-exponent - 1.0) <= high
        assert high < 0.0
    assert covered >= 40, "nine of ten, but for chance"


def test_no_law_goes_below_the_floor() -> None:
    n = np.repeat([250.0, 350.0, 500.0, 700.0, 1000.0], 2)
    falling = 0.6 - 0.5 * np.log2(n / 250.0) / 2.0 + 0.01 * np.tile([1.0, -1.0], 5)
    at = np.array([2000.0, 4000.0, 1e9])
    assert (law_at(n, falling, at).mean(0) < 0.0).all()
    assert (law_at(n, falling, at, floor=0.0) > -1e-9).mean() > 0.99


def test_of_noise_nothing_is_foreseen() -> None:
    rng = np.random.default_rng(0)
    n = np.repeat([250.0, 350.0, 500.0, 700.0, 1000.0], 2)
    told = 0
    for _ in range(50):
        drawn = law_at(n, rng.normal(size=len(n)), np.array([1000.0, 2000.0]))
        low, high = np.quantile(drawn[:, 1] - drawn[:, 0], [0.05, 0.95])
        told += low > 0.0 or high < 0.0
    assert told <= 10


def test_trainings_that_diverge_are_told() -> None:
    wild = replace(objective_of(), space=LayerwiseSpace(lr=FloatDistribution(1e-3, 1e31, log=True)))
    found = data_check(wild, dict.fromkeys(RATES, 1e30))
    assert math.isnan(found.loss.mean)
    assert "cannot be told: too many trainings diverged" in data_text(found)
    assert data_figure(found, answer(found)).axes


def test_without_classes_only_the_loss_is_foreseen() -> None:
    found = data_check(objective_of(logits=None), RATES)
    assert math.isnan(found.accuracy.mean)
    assert "accuracy" not in data_text(found).splitlines()[-2]


def _check(loss: Gain, accuracy: Gain) -> DataCheck:
    return DataCheck((), 10, loss, accuracy, np.zeros((3, 50)), np.ones(50))


@pytest.mark.parametrize(
    ("loss", "accuracy", "words"),
    [
        (Gain(-0.2, -0.3, -0.1), Gain(0.05, 0.02, 0.08), r"change the accuracy by \+5.0 points \[\+2.0, \+8.0\]"),
        (Gain(-0.2, -0.3, -0.1), Gain(0.05, -0.02, 0.08), r"change the late loss by -0.200 \[-0.300, -0.100\]"),
        (Gain(-0.2, -0.3, 0.1), Gain(0.05, -0.02, 0.08), "cannot be told: the intervals cover 0"),
    ],
)
def test_the_answer(loss: Gain, accuracy: Gain, words: str) -> None:
    assert re.search(words, answer(_check(loss, accuracy)))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"shares": (0.5, 1.0)}, "must be four at least"),
        ({}, {"shares": (0.2, 0.3, 0.5, 0.9)}, "rise to 1"),
        ({}, {"n_seeds": 1}, "n_seeds >= 2"),
        ({"batch_size": 64}, {}, "smallest part must fill a batch of 64"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, object], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_check(objective_of(**changes), RATES, **options)  # type: ignore[arg-type]


def test_examples_without_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="has no `late_entry`"):
        data_check(tiny.OBJECTIVE, RATES)
