"""Leaders are trained again with other draws; their means decide."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from ww_opt.search import repeats
from ww_opt.search.ranking import best, ranking
from ww_opt.search.repeats import MARK, Repeat, leaders, n_leaders, spread, still_to_repeat

X = {"lr/all": FloatDistribution(0.0, 100.0)}


def _study(values: list[float], direction: str = "minimize") -> optuna.Study:
    study = optuna.create_study(direction=direction)
    for value in values:
        _add(study, value)
    return study


def _add(study: optuna.Study, value: float | None, repeat: Repeat | None = None, state: str = "COMPLETE") -> None:
    number = len(study.trials) if repeat is None else repeat.of
    attributes = {} if repeat is None else {MARK: list(repeat)}
    if state == "FAIL":
        attributes["ww_opt:reason"] = "RuntimeError: out of memory"
    study.add_trial(
        create_trial(
            state=TrialState[state],
            value=value,
            params={"lr/all": float(number)},
            distributions=X,
            user_attrs=attributes,
        )
    )


def test_the_mean_decides_among_leaders_and_repeats_are_not_ranked() -> None:
    study = _study([3.0, 1.0, 1.1, 2.0])
    for draw in (1, 2):
        _add(study, 1.9, Repeat(1, draw))
        _add(study, 1.2 - 2 * draw, Repeat(2, draw))  # lower than all: no trial of its own
    found = ranking(study)
    assert [trial.number for trial in found.trials] == [2, 1, 3, 0]


def test_means_are_over_the_draws_that_all_leaders_have() -> None:
    study = _study([0.0, 1.0])
    _add(study, 5.0, Repeat(0, 1))
    _add(study, 1.0, Repeat(1, 1))
    _add(study, -90.0, Repeat(0, 2))
    found = spread(study, study.trials[:2])
    assert found is None  # one alone has two draws
    _add(study, 1.0, Repeat(1, 2))
    found = spread(study, study.trials[:2])
    assert found is not None
    assert found.n_draws == 3
    assert found.means == {0: -85.0 / 3, 1: 1.0}


def test_noise_is_what_leader_and_draw_do_not_explain() -> None:
    study = _study([1.0, 2.0])
    for draw in (1, 2):
        _add(study, 1.0 + draw, Repeat(0, draw))
        _add(study, 2.0 + draw, Repeat(1, draw))
    found = spread(study, study.trials[:2])
    assert found is not None
    assert found.noise == pytest.approx(0.0, abs=1e-12)
    _add(study, 1.0, Repeat(0, 3))
    _add(study, 4.0, Repeat(1, 3))
    found = spread(study, study.trials[:2])
    assert found is not None
    # residuals of the difference 1, 1, 1, 3 around its mean 1.5, halved: variance sum(d^2) / 2 over 3
    assert found.noise == pytest.approx(math.sqrt((3 * 0.25 + 2.25) / 2 / 3))


def test_a_leader_whose_repeat_diverged_comes_last_among_them() -> None:
    study = _study([1.0, 2.0, 5.0])
    for draw in (1, 2):
        _add(study, None if draw == 2 else 1.0, Repeat(0, draw), "PRUNED" if draw == 2 else "COMPLETE")
        _add(study, 2.0, Repeat(1, draw))
    assert [trial.number for trial in ranking(study).trials] == [1, 0, 2]


def test_direction_is_the_study_s() -> None:
    study = _study([3.0, 2.9, 0.0], "maximize")
    for draw in (1, 2):
        _add(study, 1.0, Repeat(0, draw))
        _add(study, 2.0, Repeat(1, draw))
    assert [trial.number for trial in ranking(study).trials] == [1, 0, 2]


@pytest.mark.parametrize(("gain", "pick"), [(0.05, 0), (3.0, 1)])
def test_the_user_s_own_settings_lead_unless_another_beats_the_noise(gain: float, pick: int) -> None:
    study = _study([2.0, 2.0 - gain])
    study.set_user_attr(repeats.START, {"params": study.trials[0].params})
    for draw, shift in ((1, 0.5), (2, -0.5)):
        _add(study, 2.0 + shift, Repeat(0, draw))
        _add(study, 2.0 - gain - shift, Repeat(1, draw))
    found = best(study)
    assert found is not None
    assert found.number == pick


def test_leaders_hold_the_user_s_own_settings() -> None:
    study = _study([9.0, 1.0, 2.0, 3.0])
    ranked = list(ranking(study).trials)
    assert leaders(study, ranked, 2) == [1, 2]
    study.set_user_attr(repeats.START, {"params": study.trials[0].params})
    assert leaders(study, ranked, 2) == [1, 0]


def test_what_is_still_to_be_repeated() -> None:
    study = _study([1.0, 2.0])
    _add(study, 1.0, Repeat(0, 1))
    _add(study, None, Repeat(1, 1), "FAIL")  # failed: it is not tried for ever
    assert still_to_repeat(study, [0, 1], 2) == [Repeat(0, 2), Repeat(1, 2)]
    study.add_trial(
        create_trial(state=TrialState.FAIL, user_attrs={MARK: [0, 2], "ww_opt:reason": repeats.INTERRUPTED})
    )
    assert still_to_repeat(study, [0, 1], 2) == [Repeat(0, 2), Repeat(1, 2)]


@pytest.mark.parametrize(("n_trials", "n_repeats", "n"), [(40, 2, 5), (40, 0, 0), (15, 2, 0), (16, 2, 2), (400, 2, 5)])
def test_leaders_cost_a_quarter_of_the_budget_at_most(n_trials: int, n_repeats: int, n: int) -> None:
    assert n_leaders(n_trials, n_repeats) == n
    assert n * n_repeats <= n_trials / 4


def test_leaders_are_compared_over_the_draws_that_the_user_s_own_settings_have() -> None:
    study = _study([2.0, 1.0, 1.5])
    study.set_user_attr(repeats.START, {"params": study.trials[0].params})
    for number in (0, 1, 2):
        _add(study, 2.0 - number, Repeat(number, 1))
    for number in (1, 2):  # a worker did not come to the second draw of trial 0
        _add(study, 90.0, Repeat(number, 2))
    found = spread(study, study.trials[:3])
    assert found is not None
    assert found.means == {0: 2.0, 1: 1.0, 2: 0.75}
