"""A study starts from an earlier one, of another depth or with other bounds."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ww_opt.search.transfer import carried_over

LR = FloatDistribution(1e-5, 1.0, log=True)


def _space(n: int, own: FloatDistribution = LR) -> dict[str, FloatDistribution]:
    return {f"lr/block{number}": own for number in range(n)}


def _earlier(*trials: list[float]) -> optuna.Study:
    study = optuna.create_study()
    for number, rates in enumerate(trials):
        study.enqueue_trial({f"lr/block{place}": rate for place, rate in enumerate(rates)})
        study.tell(study.ask(_space(len(rates))), float(number))
    return study


def test_a_trend_and_a_head_apart_carry_over_to_another_depth() -> None:
    study = _earlier([1e-4, 1e-3, 1e-2, 0.5])
    (found,) = carried_over(study, _space(6), n=1)
    assert list(found) == list(_space(6))
    assert list(found.values()) == pytest.approx([1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2, 0.5])


def test_the_same_depth_gives_a_straight_line_back() -> None:
    study = _earlier([1e-4, 1e-3, 1e-2, 0.5])
    (found,) = carried_over(study, _space(4), n=1)
    assert list(found.values()) == pytest.approx([1e-4, 1e-3, 1e-2, 0.5])


def test_shared_settings_carry_over_both_ways() -> None:
    (found,) = carried_over(_earlier([0.01]), _space(5), n=1)
    assert list(found.values()) == pytest.approx([0.01] * 5)
    (found,) = carried_over(_earlier([0.001, 0.001, 0.1]), _space(1), n=1)
    assert found["lr/block0"] == pytest.approx(math.exp((2 * math.log(0.001) + math.log(0.1)) / 3))


def test_values_stay_inside_the_new_bounds_and_same_ones_come_once() -> None:
    study = _earlier([0.5, 0.5], [0.4, 0.4], [0.05, 0.05])
    found = carried_over(study, _space(2, FloatDistribution(1e-4, 0.1, log=True)), n=3)
    assert [own["lr/block0"] for own in found] == pytest.approx([0.1, 0.05])


def test_what_has_no_layer_keeps_its_value_and_what_is_new_is_left_to_the_sampler() -> None:
    study = optuna.create_study()
    own = {"lr/a": LR, "batch": CategoricalDistribution((32, 64)), "width": IntDistribution(8, 64)}
    study.enqueue_trial({"lr/a": 0.1, "batch": 64, "width": 64})
    study.tell(study.ask(own), 0.0)
    now = {"lr/b": LR, "dropout/b": FloatDistribution(0, 1), "batch": own["batch"], "width": IntDistribution(8, 32)}
    (found,) = carried_over(study, now, n=1)
    assert found == {"lr/b": pytest.approx(0.1), "batch": 64}
    new = optuna.create_study()
    new.enqueue_trial(found)
    assert new.ask(now).params["batch"] == 64


def test_nothing_to_start_from_is_told() -> None:
    with pytest.raises(ValueError, match="has none: run it first"):
        carried_over(optuna.create_study(), _space(2))
    with pytest.raises(ValueError, match="must have searched what is searched now"):
        carried_over(_earlier([0.1]), {"momentum/a": FloatDistribution(0, 0.9)})
    with pytest.raises(ValueError, match="n=0"):
        carried_over(_earlier([0.1]), _space(2), n=0)
