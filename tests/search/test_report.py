"""What `report` checks, in which direction it reports, and what it does where Optuna takes no reports."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.testing.pruners import DeterministicPruner
from optuna.trial import FixedTrial, TrialState
from torch import nn

import ww_opt
from tests import tiny
from ww_opt.search import records
from ww_opt.search.report import _tell_of_first_loss
from ww_opt.spectral.scores import SCORES

GUARDED = SCORES["default"].guarded()


def asked(direction: str = "minimize") -> optuna.Trial:
    return optuna.create_study(direction=direction, pruner=optuna.pruners.NopPruner()).ask()


class TestDirection:
    @pytest.mark.parametrize("name", ["default", "spike_share"])
    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_the_study_reads_it_rightly(self, name: str, direction: str) -> None:
        trial, model = asked(direction), tiny.build_model()
        value = ww_opt.report(trial, model, 1, score=name)
        sign = 1.0 if SCORES[name].direction == direction else -1.0
        assert value == sign * ww_opt.score(model, name)
        (look,) = records.looks(trial)
        trial.study.tell(trial, value)
        assert trial.study.trials[0].intermediate_values == {1: value} == {1: look.value}
        assert look.score == ww_opt.score(model, name)

    def test_the_better_trial_is_kept_in_a_study_that_maximises(self) -> None:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
        study = optuna.create_study(direction="maximize", pruner=pruner)

        def objective(trial: optuna.Trial) -> float:
            torch.manual_seed(0)
            model = tiny.build_model()
            if trial.number:  # one layer with eigenvalues beyond the null's edge, in the second trial alone
                with torch.no_grad():
                    vector = torch.randn(48, 1, generator=torch.Generator().manual_seed(1))
                    sign = 1.0 if trial.number == 1 else 0.0
                    model[2].weight.add_(sign * 0.1 * vector @ vector.T)  # type: ignore[index]
            ww_opt.report(trial, model, 1)
            return 0.5

        study.optimize(objective, n_trials=2)
        assert study.trials[1].intermediate_values[1] > study.trials[0].intermediate_values[1]
        assert study.trials[1].state is TrialState.COMPLETE

    def test_a_study_of_two_objectives_remembers_and_prunes_nothing(self) -> None:
        study = optuna.create_study(directions=["maximize", "minimize"], pruner=DeterministicPruner(True))
        trial, model = study.ask(), tiny.build_model()
        assert ww_opt.report(trial, model, 1) == ww_opt.score(model)
        assert [look.step for look in records.looks(trial)] == [1]
        with pytest.raises(optuna.TrialPruned, match="diverged"):
            ww_opt.report(trial, model, 2, train_loss=math.nan)

    @pytest.mark.parametrize("trial", [FixedTrial({}), optuna.trial.create_trial(value=1.0)])
    def test_trials_without_a_study(self, trial: Any) -> None:
        model = tiny.build_model()
        assert ww_opt.report(trial, model, 1) == ww_opt.score(model)


class TestSteps:
    @pytest.mark.parametrize("step", [1.0, "1", None, True])
    def test_other_types_are_refused(self, step: Any) -> None:
        with pytest.raises(TypeError, match="`step` must be a whole number, but got step="):
            ww_opt.report(asked(), tiny.build_model(), step)

    def test_whole_numbers_of_others_will_do(self) -> None:
        trial: Any = asked()
        ww_opt.report(trial, tiny.build_model(), np.int64(3), n_steps=torch.tensor(5))  # type: ignore[arg-type]
        assert [(look.step, look.n_steps) for look in records.looks(trial)] == [(3, 5)]

    @pytest.mark.parametrize(("step", "n_steps"), [(-1, 0), (6, 5), (1, -1)])
    def test_values_out_of_range_are_refused(self, step: int, n_steps: int) -> None:
        with pytest.raises(ValueError, match=f"<= n_steps` must hold, but got step={step}, n_steps={n_steps}"):
            ww_opt.report(asked(), tiny.build_model(), step, n_steps=n_steps)

    @pytest.mark.parametrize("second", [2, 1])
    def test_they_rise(self, second: int) -> None:
        trial, model = asked(), tiny.build_model()
        ww_opt.report(trial, model, 2)
        with pytest.raises(ValueError, match=f"but got step={second} after step=2"):
            ww_opt.report(trial, model, second)


class TestLosses:
    def test_a_tensor_with_a_gradient_is_a_number(self) -> None:
        trial, model = asked(), tiny.build_model()
        batch = next(tiny.batches())
        loss = tiny.loss(model, batch)
        ww_opt.report(trial, model, 1, train_loss=loss, first_loss=loss)  # type: ignore[arg-type]
        assert records.looks(trial)[0].train_loss == pytest.approx(float(loss.detach()))
        assert records.read(trial, "first_loss") == pytest.approx(float(loss.detach()))

    @pytest.mark.parametrize(("value", "words"), [(torch.ones(2), "a Tensor: take the mean"), ("high", "a str")])
    def test_what_is_no_number_is_refused(self, value: Any, words: str) -> None:
        with pytest.raises(TypeError, match=f"`train_loss` must be a number, but got {words}"):
            ww_opt.report(asked(), tiny.build_model(), 1, train_loss=value)

    def test_unknown_ones_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"takes the losses \['first_loss', 'train_loss'\], but got val_loss"):
            ww_opt.report(asked(), tiny.build_model(), 1, val_loss=1.0)  # type: ignore[call-arg]

    def test_a_first_loss_is_read_and_kept(self) -> None:
        trial, model = asked(), tiny.build_model()
        first = ww_opt.report(trial, model, 1, train_loss=1.0, first_loss=2.0, score=GUARDED)
        second = ww_opt.report(trial, model, 2, train_loss=1.0, score=GUARDED)
        assert first == second == ww_opt.score(model, train_loss=1.0, first_loss=2.0)

    def test_one_that_is_missing_is_told_once(self, caplog: pytest.LogCaptureFixture) -> None:
        _tell_of_first_loss.cache_clear()
        trial, model = asked(), tiny.build_model()
        with caplog.at_level(logging.WARNING):
            for step in (1, 2):
                ww_opt.report(trial, model, step, train_loss=1.0, score=GUARDED)
            ww_opt.report(asked(), model, 1)
        assert caplog.text.count("pass `first_loss=`") == 1


@pytest.mark.parametrize("trial", [None, {}, nn.Linear(1, 1)])
def test_what_is_no_trial_is_refused(trial: Any) -> None:
    for call in (lambda: ww_opt.report(trial, tiny.build_model(), 1), lambda: tiny.OBJECTIVE(trial)):
        with pytest.raises(TypeError, match=f"`trial` must be what Optuna gives.*got a {type(trial).__name__}"):
            call()
