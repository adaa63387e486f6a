"""A pruned trial's number is carried to the end by what became of others that were there."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.search.test_pruner import passes
from ww_opt import LayerwiseSampler, SpectralPruner
from ww_opt.search.carried import carried
from ww_opt.search.rungs import Ranks


def study_of(reports: dict[int, tuple[float, float | None]], direction: str = "minimize") -> list[FrozenTrial]:
    """Trials that report at step 1, and complete with a value or are pruned."""
    study = optuna.create_study(direction=direction)
    for first, value in reports.values():
        trial = study.ask()
        trial.report(first, 1)
        if value is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    return study.trials


def told(trials: list[FrozenTrial], sign: float = 1.0) -> float:
    complete = [own for own in trials if own.state is TrialState.COMPLETE]
    (value,) = carried([own for own in trials if own.state is TrialState.PRUNED], complete, sign).values()
    return value


def test_it_is_as_many_spreads_from_the_median_as_it_was() -> None:
    reports = {place: (10.0 + place, -2.0 + 0.1 * place) for place in range(5)}
    assert told(study_of({**reports, 9: (16.0, None)})) == pytest.approx(-1.4)
    mirrored = {place: (-first, -value) for place, (first, value) in reports.items()}
    assert told(study_of({**mirrored, 9: (-16.0, None)}, "maximize"), -1.0) == pytest.approx(-1.4)


@pytest.mark.parametrize(
    ("reports", "value"),
    [
        ({0: (1.0, 0.0), 9: (3.0, None)}, 3.0),  # too few to go by
        ({**dict.fromkeys(range(5), (1.0, 0.0)), 9: (3.0, None)}, 0.0),  # all alike: nothing to scale by
        ({**dict.fromkeys(range(5), (math.nan, 0.0)), 9: (3.0, None)}, 3.0),
    ],
)
def test_where_others_say_nothing(reports: dict[int, tuple[float, float | None]], value: float) -> None:
    assert told(study_of(reports)) == value


def test_at_a_rung_it_goes_by_what_was_compared() -> None:
    study = optuna.create_study(pruner=SpectralPruner(ranks=Ranks(n_startup_trials=4)))
    assert [passes(study, ahead=loss) for loss in (2.0, 2.1, 2.2, 2.3, 9.0)] == [True] * 4 + [False]
    assert told(study.trials) == 1.0, "all four came to 1, although 9 is far from what they showed"


def test_a_trial_pruned_early_is_not_taken_for_the_worst_of_all() -> None:
    """Values at a rung are on another scale than those at the end."""
    study = optuna.create_study(sampler=LayerwiseSampler(seed=0, n_startup_trials=1))
    for place in range(20):
        trial = study.ask()
        x = trial.suggest_float("lr/a", 0.0, 1.0)
        trial.report(10.0 + (x - 0.3) ** 2, 1)
        if place % 2 and place > 8:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, -2.0 + (x - 0.3) ** 2)
    assert study.best_params["lr/a"] == pytest.approx(0.3, abs=0.05)
