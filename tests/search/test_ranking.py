"""Which trial is best: one answer for pick, weights, MLflow, progress line and figures."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ww_opt.search.ranking import INTERRUPTED, best, groups, is_feasible, n_settings, outcome, ranking

X = FloatDistribution(0.0, 10.0)


def trial(value: float | None = None, state: TrialState = TrialState.COMPLETE, **own: Any) -> FrozenTrial:
    """``layers``: names of those of its last look; ``optimizer`` and ``reason``: as recorded; ``constraints``."""
    layers = [{"name": name, "N": 64, "M": 32} for name in own.get("layers", ())]
    attrs = {f"ww_opt:{key}": own[key] for key in ("optimizer", "reason") if key in own}
    return create_trial(
        value=value,
        state=state,
        params={"x": own.get("x", 1.0)},
        distributions={"x": X},
        user_attrs={**attrs, "ww_opt:look:9": {"layers": []}, "ww_opt:look:10": {"layers": layers}},
        constraints=own.get("constraints"),
    )


def study_of(*trials: FrozenTrial, direction: str = "minimize") -> optuna.Study:
    study = optuna.create_study(direction=direction)
    study.add_trials(trials)
    return study


@pytest.mark.parametrize(("direction", "order"), [("minimize", [1, 2, 0]), ("maximize", [0, 1, 2])])
def test_the_best_stands_first_and_the_earlier_of_two_alike(direction: str, order: list[int]) -> None:
    study = study_of(trial(3.0), trial(1.0), trial(1.0), direction=direction)
    assert [own.number for own in ranking(study).trials] == order
    found = best(study)
    assert found is not None
    assert found.number == order[0]


def test_what_is_not_complete_feasible_and_finite_is_left_out_and_said() -> None:
    study = study_of(
        trial(5.0),
        trial(1.0, constraints={"a": -1.0, "b": 0.5}),
        trial(2.0, constraints={"a": math.inf}),
        trial(-math.inf),
        trial(0.0, TrialState.PRUNED),
        trial(state=TrialState.FAIL),
        trial(4.0, constraints={"a": 0.0}),
    )
    found = ranking(study)
    assert [own.number for own in found.trials] == [6, 0]
    assert found.left_out == (
        "2 completed trials not ranked, for a constraint is violated: 1, 2.",
        "1 completed trial not ranked, for the score is not finite: 3.",
    )


def test_no_feasible_trial_is_no_error() -> None:
    study = study_of(trial(1.0, constraints={"a": 1.0}))
    assert best(study) is None
    assert groups(study) == []


def test_constraints_of_a_sampler_and_of_a_trial_are_heard_alike() -> None:
    def constraints(own: FrozenTrial) -> list[float]:
        return [own.params["x"] - 5.0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = optuna.create_study(sampler=TPESampler(seed=0, constraints_func=constraints))
    new = optuna.create_study(sampler=TPESampler(seed=0))

    def objective(own: optuna.Trial) -> float:
        x = own.suggest_float("x", 0.0, 10.0)
        if own.study is new:
            own.set_constraint("x", x - 5.0)
        return -x

    for study in (old, new):
        study.optimize(objective, n_trials=12)
        by_hand = max((own for own in study.trials if own.params["x"] <= 5.0), key=lambda own: own.params["x"])
        found = best(study)
        assert found is not None
        assert found.number == by_hand.number == study.best_trial.number


def test_a_sampler_whose_constraints_raised_says_nothing_of_the_trial() -> None:
    own = trial(1.0)
    assert is_feasible(own)
    own.system_attrs["constraints"] = None
    assert not is_feasible(own)


@pytest.mark.parametrize("change", [{"layers": ("a", "b")}, {"optimizer": "SGD"}])
def test_the_best_of_another_kind_is_not_the_best(change: dict[str, Any]) -> None:
    kind = {"layers": ("a",), "optimizer": "AdamW"}
    study = study_of(trial(3.0, **kind), trial(1.0, **{**kind, **change}), trial(2.0, **kind))
    found = ranking(study)
    assert [own.number for own in found.trials] == [2, 0]
    assert "1 trials differ" in found.left_out[0]
    assert [[own.number for own in group] for group in groups(study)] == [[2, 0], [1]]


def test_several_objectives_have_no_best() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trial(create_trial(values=[1.0, 2.0]))
    assert best(study) is None


def test_settings_that_were_tried_twice_count_once() -> None:
    assert n_settings([trial(1.0, x=1.0), trial(2.0, x=1.0), trial(1.0, x=2.0)]) == 2
    assert n_settings([]) == 0


def test_how_a_trial_ended_in_a_word() -> None:
    ended = [
        trial(1.0),
        trial(state=TrialState.PRUNED),
        trial(state=TrialState.FAIL, reason="KeyError: 1"),
        trial(state=TrialState.FAIL, reason=INTERRUPTED),
    ]
    assert [outcome(own) for own in ended] == ["completed", "pruned", "failed", "interrupted"]
