"""Settings per layer: what layers share first, distinct always, from storage alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState

from ww_opt.search.coordinates import Coordinates
from ww_opt.search.sampler import LayerwiseSampler
from ww_opt.search.surrogate import fit_surrogate

LR = FloatDistribution(1e-4, 1e-1, log=True)


class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: LayerwiseSampler(seed=0, n_startup_trials=2)


def places(trial: optuna.trial.BaseTrial | optuna.trial.FrozenTrial, n: int) -> np.ndarray:
    return np.array([(math.log10(trial.params[f"lr/{number}"]) + 4) / 3 for number in range(n)])


def searched(n_labels: int, n_trials: int, seed: int = 0, every_third: TrialState | None = None) -> optuna.Study:
    """A study of a target that has a smooth trend over depth and a little of each label's own."""
    rng = np.random.default_rng(seed)
    depth = np.linspace(-1, 1, n_labels)
    best = 0.42 - 0.15 * depth + 0.1 * depth**2 + rng.normal(scale=0.05, size=n_labels)
    study = optuna.create_study(sampler=LayerwiseSampler(seed=seed))
    study.enqueue_trial({f"lr/{number}": 10**-2.5 for number in range(n_labels)})
    space = {f"lr/{number}": LR for number in range(n_labels)}
    for number in range(n_trials):
        trial = study.ask(space)
        value = float(np.mean((places(trial, n_labels) - best) ** 2))
        if every_third is not None and number % 3 == 2:
            trial.report(value, 1)
            study.tell(trial, state=every_third)
        else:
            study.tell(trial, value)
    return study


# failures count against the settings around them, here without a reason
@pytest.mark.parametrize(
    ("every_third", "enough"), [(None, 0.006), (TrialState.PRUNED, 0.006), (TrialState.FAIL, 0.012)]
)
def test_a_trend_over_many_labels_is_found_in_few_trials(every_third: TrialState | None, enough: float) -> None:
    study = searched(60, 40, every_third=every_third)
    # the labels' own part is 0.0025; the best of all labels alike is 0.010
    assert study.best_value < enough
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 40


def test_labels_agree_at_first_and_after_a_resumption() -> None:
    study = searched(12, 6)
    for trial in study.trials[1:]:
        assert np.ptp(places(trial, 12)) < 1e-9
    assert len({trial.params["lr/0"] for trial in study.trials}) == 6
    study.sampler = LayerwiseSampler(seed=1)
    trial = study.ask({f"lr/{number}": LR for number in range(12)})
    assert trial.params["lr/0"] not in {own.params["lr/0"] for own in study.trials[:-1]}


def test_depth_is_the_order_of_suggestion_not_of_names() -> None:
    study = searched(12, 8)
    found = study.sampler.infer_relative_search_space(study, study.trials[0])
    assert list(found) == [f"lr/{number}" for number in range(12)]


def test_running_trials_of_others_are_not_proposed_again() -> None:
    study = searched(8, 14)
    space = {f"lr/{number}": LR for number in range(8)}
    points = [places(study.ask(space), 8) for _ in range(5)]
    apart = [np.abs(a - b).max() for number, a in enumerate(points) for b in points[:number]]
    assert min(apart) > 1e-3


def test_constraints_are_met() -> None:
    study = optuna.create_study(sampler=LayerwiseSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(f"lr/{number}", 0, 1) for number in range(4)])
        trial.set_constraint("mean", float(x.mean() - 0.5))
        return float(np.mean((x - 0.8) ** 2))

    study.optimize(objective, n_trials=25)
    late = [np.mean(list(trial.params.values())) for trial in study.trials[12:]]
    assert np.median(late) < 0.52
    assert study.best_value == pytest.approx(0.09, abs=0.03)


def test_only_failed_pruned_or_equal_trials_are_no_obstacle() -> None:
    for value in (math.nan, 1.0):
        study = optuna.create_study(sampler=LayerwiseSampler(seed=0, n_startup_trials=1))
        study.optimize(lambda trial, own=value: trial.suggest_float("lr/a", 0, 1) * 0 + own, n_trials=4)
        assert len({trial.params["lr/a"] for trial in study.trials}) == 4


def test_other_parameters_are_searched_beside_them() -> None:
    study = optuna.create_study(direction="maximize", sampler=LayerwiseSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        lr = [trial.suggest_float(f"lr/{number}", 1e-4, 1e-1, log=True) for number in range(3)]
        kind = trial.suggest_categorical("optimizer", ["sgd", "adam"])
        width = trial.suggest_int("width", 1, 9)
        return (kind == "adam") - abs(width - 4) / 8 - float(np.mean([(math.log10(own) + 2) ** 2 for own in lr]))

    study.optimize(objective, n_trials=35)
    assert study.best_params["optimizer"] == "adam"
    assert abs(study.best_params["width"] - 4) <= 1


def test_the_cube_and_back() -> None:
    space = {
        "lr/a": LR, "lr/b": LR, "n/a": IntDistribution(1, 64, log=True), "step": FloatDistribution(0, 1, step=0.25),
        "kind": CategoricalDistribution(["x", "y", "z"]),
    }  # fmt: skip
    coordinates = Coordinates(space)
    own = {"lr/a": 3e-3, "lr/b": 0.1, "n/a": 7, "step": 0.75, "kind": "y"}
    assert coordinates.decode(coordinates.encode(own)) == pytest.approx(own)
    assert coordinates.n == 7
    assert coordinates.n_shared == 1 + 1 + 1 + 3


def test_gradients_are_those_of_the_beliefs() -> None:
    coordinates = Coordinates({f"lr/{number}": FloatDistribution(0, 1) for number in range(7)})
    rng = np.random.default_rng(0)
    points = rng.random((12, 7))
    surrogate = fit_surrogate(coordinates, points, rng.normal(size=12))
    point, step = rng.random(7), 1e-6 * np.eye(7)
    belief = surrogate.at(point)
    means, deviations = surrogate.predict(point[None])
    assert (belief.mean, belief.sd) == pytest.approx((means[0], deviations[0]))
    for name in ("mean", "sd"):
        slopes = [
            (getattr(surrogate.at(point + own), name) - getattr(surrogate.at(point - own), name)) / 2e-6 for own in step
        ]
        assert getattr(belief, f"{name}_gradient") == pytest.approx(slopes, abs=1e-5)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="n_startup_trials >= 1"):
        LayerwiseSampler(n_startup_trials=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=LayerwiseSampler(seed=0))
    with pytest.raises(ValueError, match="multi-objective"):
        study.ask({"lr/a": LR})


def test_a_proposal_that_another_worker_is_still_writing_is_passed_over() -> None:
    study = searched(60, 10)
    space = {f"lr/{number}": LR for number in range(60)}
    running = study.ask(space)
    texts = {key: value for key, value in study.trials[-1].system_attrs.items() if key.startswith("ww_opt:proposed:")}
    assert len(texts) > 1, "60 parameters do not fit into one attribute"
    half = study.ask()
    study._storage.set_trial_system_attr(half._trial_id, "ww_opt:proposed:0", texts["ww_opt:proposed:0"])
    assert study.ask(space).params != running.params


def test_pruned_trials_tell_where_not_to_look() -> None:
    """Values at the rung are on another scale; carried to the end they count as what they may have come to."""
    study = optuna.create_study(sampler=LayerwiseSampler(seed=0))
    space = {f"lr/{number}": LR for number in range(4)}
    for number in range(30):
        trial = study.ask(space)
        value = float(np.mean((places(trial, 4) - 0.5) ** 2))
        trial.report(value + 5.0, 1)
        if number > 8 and value > 0.02:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    later = [float(np.mean((places(trial, 4) - 0.5) ** 2)) for trial in study.trials[-10:]]
    assert float(np.median(later)) < 0.01
