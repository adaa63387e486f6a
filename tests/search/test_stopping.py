"""A search ends when what it promises lies under the noise."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution

from ww_opt import LayerwiseSampler
from ww_opt.search.repeats import MARK
from ww_opt.search.stopping import expected, is_converged, remember_expected

SPACE = {f"lr/{number}": FloatDistribution(0.0, 1.0) for number in range(3)}


def _promising(gains: list[float], noise: float = 1.0) -> optuna.Study:
    study = optuna.create_study()
    for gain in gains:
        trial = study.ask(SPACE)
        remember_expected(study, study.trials[-1], gain, noise)
        study.tell(trial, 0.0)
    return study


@pytest.mark.parametrize(
    ("gains", "over"),
    [
        ([], False),
        ([0.4, 0.4, 0.4], False),
        ([0.4, 0.4, 0.4, 0.4], True),
        ([0.4, 0.6, 0.4, 0.4], False),
        ([9.0, 0.4, 0.4, 0.4, 0.4], True),
    ],
)
def test_four_in_a_row_end_it(gains: list[float], over: bool) -> None:
    assert is_converged(_promising(gains)) is over


def test_repeats_and_queued_trials_are_passed_over() -> None:
    study = _promising([0.1, 0.1, 0.1, 0.1])
    study.enqueue_trial({"lr/0": 0.5}, user_attrs={MARK: [0, 1]})
    study.tell(study.ask(SPACE), 3.0)
    study.tell(study.ask(SPACE), 3.0)  # of a sampler that does not say
    assert is_converged(study)


@pytest.mark.parametrize(("price", "patience"), [(0.0, 3), (math.nan, 3), (0.2, 0)])
def test_bad_rules_are_refused(price: float, patience: int) -> None:
    with pytest.raises(ValueError, match="must hold"):
        is_converged(_promising([]), price, patience)


def test_the_sampler_says_what_it_expects_and_a_flat_target_converges() -> None:
    study = optuna.create_study(sampler=LayerwiseSampler(seed=0))
    for number in range(40):
        trial = study.ask(SPACE)
        # noise around nothing: the settings do not matter
        study.tell(trial, math.sin(1000.0 * number**2))
        if is_converged(study):
            break
    assert is_converged(study)
    assert expected(study.trials[-1]) is not None
    assert expected(study.trials[0]) is None
