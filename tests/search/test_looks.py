"""What looks cost is counted in a trial and kept; a study settles its cadence once."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial
from torch import nn

from tests import tiny
from tests.search import test_own_loop
from tests.training.test_late_entry import both, late_task
from ww_opt import LayerwiseSpace, Ranks, SpectralPruner
from ww_opt.search import records
from ww_opt.search.faults import DEFAULT_FAULTS
from ww_opt.search.looks import Looks, _copy, cadence_of, look_share
from ww_opt.search.pruner import RULES
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.scores import SCORES

ADAPTIVE = replace(tiny.OBJECTIVE, n_steps=24, interval_steps=None)
LATE = replace(ADAPTIVE, task=late_task([], both), guard="late")
QUARTERS, TWELFTHS = [6, 12, 18, 24], list(range(2, 25, 2))


def study_of(pruner: Any = None, **options: Any) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(sampler=sampler, pruner=pruner or optuna.pruners.NopPruner(), **options)


def steps(trial: optuna.trial.FrozenTrial) -> list[int]:
    return [look.step for look in records.looks(trial)]


def test_what_the_first_whole_trial_settles_the_next_ones_take_over() -> None:
    study = study_of()
    study.optimize(replace(ADAPTIVE, look_budget=1e-9), n_trials=1)
    assert study.user_attrs["ww_opt:n_looks"] == 2
    study.optimize(replace(ADAPTIVE, look_budget=1.0), n_trials=1)
    assert [steps(trial) for trial in study.trials] == [[6, 12, 24], [12, 24]]
    study.set_user_attr("ww_opt:n_looks", 12)
    study.optimize(replace(ADAPTIVE, look_budget=1e-9), n_trials=1)
    assert steps(study.trials[-1]) == TWELFTHS


def test_a_pruned_trial_settles_nothing_and_tells_what_it_cost() -> None:
    study = study_of(optuna.pruners.ThresholdPruner(upper=-100.0))
    study.optimize(ADAPTIVE, n_trials=1)
    assert study.trials[0].state is TrialState.PRUNED
    assert "ww_opt:n_looks" not in study.user_attrs
    assert 0.0 < look_share(study.trials) < math.inf


def test_what_an_older_or_newer_version_settled_is_measured_again() -> None:
    study = study_of()
    study.set_user_attr("ww_opt:n_looks", 10)
    study.optimize(replace(ADAPTIVE, look_budget=1e-9), n_trials=1)
    assert study.user_attrs["ww_opt:n_looks"] == 2


def test_an_interval_of_the_users_settles_nothing() -> None:
    study = study_of()
    study.optimize(tiny.OBJECTIVE, n_trials=1)
    assert "ww_opt:n_looks" not in study.user_attrs
    assert steps(study.trials[0]) == [5, 10, 15, 20]


def test_values_do_not_depend_on_the_cadence() -> None:
    values = []
    for n_looks in (4, 8, 12):
        study = study_of()
        study.set_user_attr("ww_opt:n_looks", n_looks)
        study.optimize(ADAPTIVE, n_trials=2)
        at_quarters = [[trial.intermediate_values[step] for step in QUARTERS] for trial in study.trials]
        values.append((at_quarters, [trial.params for trial in study.trials]))
    assert values[0] == values[1] == values[2]


def test_a_loop_of_ones_own_takes_it_over_too() -> None:
    study = study_of()
    for budget in (1e-9, 1.0):
        options = {"interval_steps": None, "n_steps": 24, "look_budget": budget}
        study.optimize(lambda trial, own=options: test_own_loop.loop(trial, late=test_own_loop.LATE, **own).value(), 1)
        assert study.user_attrs["ww_opt:n_looks"] == 2
    assert [steps(trial) for trial in study.trials] == [[6, 12, 18, 24], [12, 18, 24]], "18: who joins then"
    first = records.looks(study.trials[0])
    assert [math.isnan(look.late_loss) for look in first] == [True, False, False, False], (
        "who joins at half tells there"
    )


@pytest.mark.parametrize(
    ("pruner", "expected"),
    [
        (SpectralPruner(), [5, 12, 24]),  # a fifth and half of the run: where it compares, whatever a look costs
        (SpectralPruner(ranks=Ranks(fractions=(0.25, 0.75))), [6, 12, 18, 24]),
        (SpectralPruner(n_warmup_steps=8), [12, 24]),
        (SpectralPruner(rules=DEFAULT_FAULTS), [12, 24]),
        (optuna.pruners.MedianPruner(), [12, 24]),
    ],
)
def test_a_look_falls_on_each_rung(pruner: Any, expected: list[int]) -> None:
    study = study_of(pruner)
    study.set_user_attr("ww_opt:n_looks", 2)
    study.optimize(replace(LATE, n_steps=24, look_budget=1e-9), n_trials=1)
    assert steps(study.trials[0]) == expected
    options = {"interval_steps": None, "n_steps": 24, "look_budget": 1e-9}
    study.optimize(lambda trial: test_own_loop.loop(trial, late=test_own_loop.LATE, **options).value(), 1)
    assert steps(study.trials[1]) == sorted({*expected, 18}), "18: who joins then"


def test_the_look_itself_is_counted() -> None:
    trial = study_of().ask()
    cadence = cadence_of(trial, 10, 5, 0.05)
    looks = Looks(trial, cadence, SCORES["default"])
    with looks.counted(training=1.0, step=5, before=2.0):
        pass
    assert 2.0 <= cadence.looking < 2.5
    assert records.read(trial, "seconds") is None, "only with the last look"
    with looks.counted(training=3.0, step=10):
        pass
    assert records.read(trial, "seconds") == {"training": 3.0, "looks": cadence.looking}


def test_the_share_is_that_of_all_trials_that_know() -> None:
    kept = [{"training": 10.0, "looks": 1.0}, {"training": 30.0, "looks": 1.0}, None]
    trials = [create_trial(value=0.0, user_attrs={"ww_opt:seconds": own} if own else {}) for own in kept]
    assert look_share(trials) == pytest.approx(0.05)
    assert math.isnan(look_share(trials[2:]))


class TestInBackground:
    """A thread beside the training changes when an answer comes, and nothing else."""

    @pytest.mark.parametrize("interval_steps", [None, 3])
    @pytest.mark.parametrize(
        "pruner", [optuna.pruners.MedianPruner(2), SpectralPruner(n_warmup_steps=6, rules=list(RULES))]
    )
    def test_the_same_study(self, pruner: Any, interval_steps: int | None) -> None:
        found = []
        for in_background in (False, True):
            study = study_of(pruner)
            study.set_user_attr("ww_opt:n_looks", 8)
            objective = replace(LATE, interval_steps=interval_steps, in_background=in_background)
            study.optimize(objective, n_trials=8)
            found.append([told(trial) for trial in study.trials])
        assert found[0] == found[1]
        assert {state for state, *_ in found[0]} == {TrialState.COMPLETE, TrialState.PRUNED}, "else it is no test"

    def test_the_same_loop_of_ones_own(self) -> None:
        found = []
        for in_background in (False, True):
            study = study_of()
            options = {"interval_steps": 3, "in_background": in_background}
            study.optimize(
                lambda trial, own=options: test_own_loop.loop(trial, late=test_own_loop.LATE, **own).value(), 1
            )
            found.append(told(study.trials[0]))
        assert found[0] == found[1]

    def test_training_goes_on_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[str] = []
        trained_on = threading.Event()

        def slow(source: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                assert trained_on.wait(10.0), "training waits for the look"
                done.append("look")
            return diagnose(source)

        def loss(model: nn.Module, batch: Any) -> torch.Tensor:
            if model.training:
                done.append("step")
                if done.count("step") > 6:
                    trained_on.set()
            return tiny.loss(model, batch)

        monkeypatch.setattr("ww_opt.search.looks.diagnose", slow)
        objective = replace(ADAPTIVE, task=replace(tiny.TASK, loss=loss), in_background=True)
        study = study_of()
        study.optimize(objective, n_trials=1)
        assert done.index("look") > 6
        assert steps(study.trials[0]) == QUARTERS[:1] + steps(study.trials[0])[1:]

    def test_divergence_while_a_look_is_out_is_told_after_it(self) -> None:
        study = study_of()
        objective = replace(ADAPTIVE, space=LayerwiseSpace(lr=1e30), n_steps=240, in_background=True)
        study.optimize(objective, n_trials=1)
        assert study.trials[0].state is TrialState.PRUNED
        assert "diverged" in records.reason(study.trials[0])

    def test_what_the_thread_raises_is_raised(self) -> None:
        narrow = replace(tiny.TASK, build_model=lambda: nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3)))
        with pytest.raises(ValueError, match="at least 32 wide"):
            study_of().optimize(replace(ADAPTIVE, task=narrow, in_background=True), n_trials=1)

    def test_a_model_that_cannot_be_copied_is_looked_at_at_once(self, caplog: pytest.LogCaptureFixture) -> None:
        def build() -> nn.Module:
            model = tiny.build_model()
            model.lock = threading.Lock()  # type: ignore[assignment]
            return model

        found = []
        for task in (tiny.TASK, replace(tiny.TASK, build_model=build)):
            study = study_of()
            study.set_user_attr("ww_opt:n_looks", 4)
            study.optimize(replace(ADAPTIVE, task=task, in_background=True), n_trials=1)
            found.append(told(study.trials[0]))
        assert found[0] == found[1]
        assert "Sequential cannot be copied" in caplog.text
        assert "Leave `in_background` out" in caplog.text

    def test_a_layer_that_stood_still_is_not_diagnosed_again(self) -> None:
        model, twin = tiny.build_model(), tiny.build_model()
        _copy(model, twin)
        first = diagnose(twin).rows
        with torch.no_grad():
            model[2].weight.mul_(1.1)  # type: ignore[union-attr,operator]
        _copy(model, twin)
        second = diagnose(twin).rows
        assert [a is b for a, b in zip(first, second, strict=True)] == [True, False, True]
        assert second[1] == diagnose(model).rows[1]


class TestFreezing:
    RESTING = replace(tiny.OBJECTIVE, space=LayerwiseSpace(lr=1e-9), n_steps=24, interval_steps=4)

    def test_when_and_why_is_kept_and_the_model_is_given_back_whole(self) -> None:
        kept: list[nn.Module] = []
        study = study_of()
        objective = replace(self.RESTING, freeze=True, on_trained=lambda _, model: kept.append(model))
        study.optimize(objective, n_trials=1)
        (event,) = records.read(study.trials[0], "frozen")
        assert (event["step"], event["layers"]) == (12, ["0", "2"])
        assert event["overlap"] == pytest.approx(1.0)
        assert event["change"] < 0.01
        assert all(own.requires_grad for own in kept[0].parameters())
        roles = {layer.name: layer.role for layer in records.looks(study.trials[0])[-1].layers}
        assert roles == {"0": "HIDDEN", "2": "HIDDEN", "4": "HEAD"}, "what is frozen early is judged all the same"

    def test_layers_that_learn_are_left_alone(self) -> None:
        found = []
        for freeze in (False, True):
            study = study_of()
            study.optimize(replace(self.RESTING, space=LayerwiseSpace(lr=0.03), freeze=freeze), n_trials=1)
            assert records.read(study.trials[0], "frozen") is None
            found.append(told(study.trials[0]))
        assert found[0] == found[1], "watching changes nothing"

    def test_it_acts_at_once_and_so_not_in_the_background(self) -> None:
        with pytest.raises(ValueError, match="leave one of them out"):
            replace(self.RESTING, freeze=True, in_background=True)


def told(trial: optuna.trial.FrozenTrial) -> tuple[Any, ...]:
    """All that is known of a trial but the time that it took."""
    own = [replace(look, seconds=0.0) for look in records.looks(trial)]
    late = records.read(trial, "late")
    return trial.state, repr(own), trial.intermediate_values, trial.value, records.reason(trial), late
