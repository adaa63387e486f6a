"""What looks cost is counted in a trial and kept; a study settles its cadence once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from tests import tiny
from tests.search import test_own_loop
from ww_opt.search import records
from ww_opt.search.look_costs import cadence_of, counted, look_share

ADAPTIVE = replace(tiny.OBJECTIVE, n_steps=24, interval_steps=None)
QUARTERS, TWELFTHS = [6, 12, 18, 24], list(range(2, 25, 2))


def study_of(pruner: Any = None, **options: Any) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(sampler=sampler, pruner=pruner or optuna.pruners.NopPruner(), **options)


def steps(trial: optuna.trial.FrozenTrial) -> list[int]:
    return [look.step for look in records.looks(trial)]


def test_what_the_first_whole_trial_settles_the_next_ones_take_over() -> None:
    study = study_of()
    study.optimize(replace(ADAPTIVE, look_budget=1e-9), n_trials=1)
    assert study.user_attrs["ww_opt:n_looks"] == 4
    study.optimize(replace(ADAPTIVE, look_budget=1.0), n_trials=1)
    assert [steps(trial) for trial in study.trials] == [QUARTERS, QUARTERS]
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
    assert study.user_attrs["ww_opt:n_looks"] == 4


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
    for budget, expected in ((1e-9, 4), (1.0, 4)):
        options = {"interval_steps": None, "n_steps": 24, "look_budget": budget}
        study.optimize(lambda trial, own=options: test_own_loop.loop(trial, late=test_own_loop.LATE, **own).value(), 1)
        assert study.user_attrs["ww_opt:n_looks"] == expected
    assert [steps(trial) for trial in study.trials] == [QUARTERS, QUARTERS]
    first = records.looks(study.trials[0])
    assert [math.isnan(look.late_loss) for look in first] == [True, False, False, False], (
        "who joins at half tells there"
    )


def test_the_look_itself_is_counted() -> None:
    trial = study_of().ask()
    cadence = cadence_of(trial, 10, 5, 0.05)
    with counted(trial, cadence, training=1.0, step=5, before=2.0):
        pass
    assert 2.0 <= cadence.looking < 2.5
    assert records.read(trial, "seconds") is None, "only with the last look"
    with counted(trial, cadence, training=3.0, step=10):
        pass
    assert records.read(trial, "seconds") == {"training": 3.0, "looks": cadence.looking}


def test_the_share_is_that_of_all_trials_that_know() -> None:
    kept = [{"training": 10.0, "looks": 1.0}, {"training": 30.0, "looks": 1.0}, None]
    trials = [create_trial(value=0.0, user_attrs={"ww_opt:seconds": own} if own else {}) for own in kept]
    assert look_share(trials) == pytest.approx(0.05)
    assert math.isnan(look_share(trials[2:]))
