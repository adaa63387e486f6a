"""The present configuration as a point of the space, and the trial that tries it."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial

from ww_opt.search.repeats import start_of
from ww_opt.search.starting import GIVEN, PRESENT, Start, check_start, fitted, origin_of, remember_start
from ww_opt.training.layerwise import LayerSettings

LR = FloatDistribution(1e-4, 1e-1, log=True)
DECAY = FloatDistribution(1e-6, 1e-2, log=True)
SPACE = {"lr/a/b": LR, "weight_decay/a/b": DECAY, "lr/c": LR}


def test_values_are_taken_as_they_are_or_at_the_nearest_bound_and_that_is_told() -> None:
    inside = {"a/b": LayerSettings(lr=0.01, weight_decay=1e-3), "c": LayerSettings(lr=0.02)}
    assert fitted(SPACE, inside) == Start({"lr/a/b": 0.01, "weight_decay/a/b": 1e-3, "lr/c": 0.02})
    outside = {"a/b": LayerSettings(lr=5.0, weight_decay=0.0), "c": LayerSettings(lr=5.0)}
    start = fitted(SPACE, outside)
    assert start.values == {"lr/a/b": 0.1, "weight_decay/a/b": 1e-6, "lr/c": 0.1}
    assert start.note == (
        "The present configuration lies outside the bounds of the space: lr of 2 labels is 5 and was taken as 0.1; "
        "weight_decay of 1 label is 0 and was taken as 1e-06."
    )


def test_what_is_not_known_is_left_to_the_sampler() -> None:
    assert fitted(SPACE, {"a/b": LayerSettings(lr=0.01), "c": LayerSettings()}).values == {"lr/a/b": 0.01}


def test_what_a_user_names_is_taken_as_it_is() -> None:
    assert check_start(SPACE, {"lr/c": 0.1}) == Start({"lr/c": 0.1})
    (value,) = check_start(SPACE, {"lr/c": np.float32(0.0625)}).values.values()
    assert type(value) is float


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr/d": 0.1}, r"only name parameters of the space, but got 'lr/d'; parameters: \['lr/a/b', 'lr/c', 'weight"),
        ({"lr/c": 0.2}, r"inside the bounds of the space, lr/c in 0\.0001 to 0\.1 \(log\), but got 0\.2: change it"),
        ({"lr/c": "0.01"}, "but got '0.01'"),
        ({"lr/c": True}, "but got True"),
        ({"lr/c": float("nan")}, "but got nan"),
    ],
)
def test_what_is_no_point_of_the_space_is_named(given: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_start(SPACE, given)


def test_a_trial_is_known_by_its_values() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_float("lr/c", 1e-4, 1e-1)
    assert origin_of(trial) is None
    remember_start(study, Start({"lr/c": trial.params["lr/c"]}), PRESENT)
    assert start_of(study) == trial.params
    assert origin_of(trial) == PRESENT
    other = study.ask()
    assert origin_of(other) is None, "it has suggested nothing yet"
    remember_start(study, Start({"lr/c": 2.0}), GIVEN)
    assert origin_of(trial) is None
    remember_start(study, None, PRESENT)
    assert start_of(study) is None
    assert origin_of(FixedTrial({"lr/c": 2.0})) is None
