"""How good is the pick? Rivals, seeds that no trial had, and a search on the test set."""

from __future__ import annotations

import math
from dataclasses import replace

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import nn

from tests import tiny
from ww_opt import LayerwiseSpace
from ww_opt.reporting.judged_text import judged_text
from ww_opt.search.repeats import MARK, START
from ww_opt.study.judging import Judged, ceiling, judged, rivals

NAMES = ("lr/0", "lr/2", "lr/4")
BOUNDS = FloatDistribution(1e-3, 1e-1, log=True)


def host_of(*settings: tuple[tuple[float, float, float], float]) -> optuna.Study:
    host = optuna.create_study()
    for rates, value in settings:
        trial = optuna.trial.create_trial(
            params=dict(zip(NAMES, rates, strict=True)), distributions=dict.fromkeys(NAMES, BOUNDS), value=value
        )
        host.add_trial(trial)
    return host


FOUR = (((0.01,) * 3, 0.0), ((0.02,) * 3, -1.0), ((0.03,) * 3, -0.5), ((0.01, 0.02, 0.03), -2.0))


class TestRivals:
    def test_the_start_the_best_shared_setting_and_the_pick(self) -> None:
        host = host_of(*FOUR)
        host.set_user_attr(START, {"params": dict.fromkeys(NAMES, 0.01)})
        found = rivals(host)
        assert [row.origin for row in found] == ["trial 0", "trial 1", "trial 3"]
        assert found[2].parameters == dict(zip(NAMES, (0.01, 0.02, 0.03), strict=True))

    def test_the_start_itself_is_no_shared_rival(self) -> None:
        host = host_of((FOUR[0][0], -3.0), *FOUR[1:])
        host.set_user_attr(START, {"params": dict.fromkeys(NAMES, 0.01)})
        assert [row.origin for row in rivals(host)] == ["trial 0", "trial 1", "trial 0"]

    def test_without_a_start_and_without_a_shared_setting(self) -> None:
        assert [row.origin for row in rivals(host_of(FOUR[3]))] == ["trial 0"]

    def test_a_start_that_no_trial_had_to_its_end_is_judged_all_the_same(self) -> None:
        host = host_of(*FOUR[1:])
        host.set_user_attr(START, {"params": dict.fromkeys(NAMES, 0.01)})
        assert rivals(host)[0].origin == "your optimizer and model"

    def test_a_repeat_is_no_rival(self) -> None:
        host = host_of(*FOUR[:2])
        repeat = optuna.trial.create_trial(
            params=dict.fromkeys(NAMES, 0.03), distributions=dict.fromkeys(NAMES, BOUNDS), value=-9.0,
            user_attrs={MARK: [1, 1]},
        )  # fmt: skip
        host.add_trial(repeat)
        assert {row.origin for row in rivals(host)} == {"trial 1"}

    def test_a_study_without_a_pick_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"must have a completed trial to be judged.*ww-opt run"):
            rivals(optuna.create_study())


class TestJudged:
    def test_seeds_differ_from_those_of_the_study_and_equal_settings_are_trained_once(self) -> None:
        seen: list[int] = []

        def build_model() -> nn.Module:
            seen.append(torch.initial_seed())
            return tiny.build_model()

        objective = replace(tiny.OBJECTIVE, task=replace(tiny.TASK, build_model=build_model))
        rows = [Judged(name, dict.fromkeys(NAMES, 0.05), "") for name in "ab"]
        found = judged(objective, rows, 2, lambda _: None)
        assert len(set(seen)) == 2
        assert not set(seen) & set(range(objective.seed, objective.seed + 100))
        assert found[0].values == found[1].values
        assert len(found[0].values) == 2
        assert math.isclose(found[0].mean, sum(found[0].values) / 2)

    def test_divergence_is_told_and_not_averaged(self) -> None:
        space = LayerwiseSpace(lr=FloatDistribution(1e-3, 1e30, log=True))
        objective = replace(tiny.OBJECTIVE, space=space)
        (row,) = judged(objective, [Judged("wild", dict.fromkeys(NAMES, 1e29), "")], 2, lambda _: None)
        assert math.isnan(row.mean)
        assert "diverged with 2 of 2 seeds" in judged_text([row], "accuracy")

    def test_without_a_test_set_it_is_refused(self) -> None:
        objective = replace(tiny.OBJECTIVE, task=replace(tiny.TASK, evaluate=None))
        with pytest.raises(ValueError, match=r"needs a sealed test set.*'tiny'.*evaluate"):
            judged(objective, [], 2)
        with pytest.raises(ValueError, match="n_seeds >= 1"):
            judged(tiny.OBJECTIVE, [], 0)


class TestCeiling:
    @pytest.mark.parametrize("higher_is_better", [True, False])
    def test_it_goes_by_the_metric_alone(self, higher_is_better: bool) -> None:
        heard: list[float] = []

        def evaluate(model: nn.Module) -> float:
            heard.append(tiny.evaluate(model))
            return heard[-1] if higher_is_better else 1.0 - heard[-1]

        task = replace(tiny.TASK, evaluate=evaluate, higher_is_better=higher_is_better)
        objective = replace(tiny.OBJECTIVE, task=task)
        study = replace(tiny.STUDY, objective=objective, n_trials=6, n_repeats=0)
        told: list[float] = []
        found = ceiling(study, dict.fromkeys(NAMES, 0.01), [lambda _, trial: told.append(trial.params["lr/0"])])
        assert found is not None
        assert found.origin == "6 trials, for judging only"
        assert len(told) == len(heard) == 6
        assert told[0] == 0.01
        assert found.parameters["lr/0"] == told[heard.index(max(heard))]

    def test_leaders_are_repeated_with_other_seeds(self) -> None:
        seen: list[int] = []

        def build_model() -> nn.Module:
            seen.append(torch.initial_seed())
            return tiny.build_model()

        objective = replace(tiny.OBJECTIVE, task=replace(tiny.TASK, build_model=build_model))
        ceiling(replace(tiny.STUDY, objective=objective, n_trials=16), dict.fromkeys(NAMES, 0.01))
        assert seen[1:] == [objective.seed] * 12 + [objective.seed + draw for draw in (1, 1, 2, 2)]


def test_the_table() -> None:
    rows = [Judged("what you came with", {}, "trial 0", (0.5, 0.6)), Judged("the pick", {}, "trial 7", (0.75, 0.75))]
    text = judged_text(rows, "accuracy")
    assert "accuracy in percent, each trained afresh on all examples with 2 seeds that no trial had" in text
    assert "what you came with  55.0  (50.0 to 60.0)  trial 0" in text
    assert "0.55  (0.5 to 0.6)" in judged_text(rows, "R2")
