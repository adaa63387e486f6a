"""The words at the end of a study, read as they are printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from tests import tiny
from tests.study.test_closing import late_study
from ww_opt.reporting.closing_text import accuracy_text, closing_text
from ww_opt.search import records
from ww_opt.study.closing import TestAccuracy, closing
from ww_opt.study.study import open_study

X = FloatDistribution(0.0, 100.0)


def told(values: list[float], late: list[dict[str, Any]], noise: tuple[float, float] | None = None) -> str:
    """Closing text of a study by late examples, of trials that remember ``late``; ``noise``: values of the repeats."""
    study = replace(late_study([]), n_repeats=0 if noise is None else 2)
    host: optuna.Study = open_study(study)
    for number, value in enumerate(values):
        look = records.Look(20, 20, value, 1.0, train_loss=1.0)
        attrs = {"ww_opt:look:20": records._to_json(records.asdict(look)), "ww_opt:late": late}
        host.add_trial(create_trial(value=value, params={"x": float(number)}, distributions={"x": X}, user_attrs=attrs))
    if noise is not None:
        host.set_user_attr(f"ww_opt:repeats:{host.best_trial.number}", list(noise))
    return closing_text(closing(study, host, repeat=noise is not None), {})


def cohort(accuracy: float, **own: Any) -> dict[str, Any]:
    known = {"accuracy_error": 0.04, "constant_accuracy": 0.17, "constant_loss": 2.3, "loss_error": 0.1}
    return {"step": 1, "n": 90, "accuracy": accuracy, "losses": [2.5 - accuracy] * 61, **known, **own}


VALUES = [-1.0 + 0.1 * number for number in range(12)]
WELL = [cohort(0.8)] * 3


def test_a_study_at_chance_is_told_so_first() -> None:
    text = told(VALUES, [cohort(0.2)] * 3, (-1.0, -1.01))
    assert text.startswith("Read this first\n\n- Nothing was learnt that late examples can confirm")
    assert "predicts 20%" in " ".join(text.split())
    assert text.index("Nothing was learnt") < text.index("The pick: trial 0")
    assert "tells settings apart" not in text


def test_a_study_with_disagreeing_cohorts_is_told_so_first() -> None:
    text = told(VALUES, [cohort(0.8), cohort(0.2), cohort(0.8)], (-1.0, -1.01))
    assert text.startswith("Read this first\n\n- Cohort 2 of 3 disagrees with the others: of its 90 late labels 20%")
    assert "tells settings apart" not in text


def test_a_study_of_ties_names_them() -> None:
    text = " ".join(told([-1.0, -0.99, -0.995, *VALUES[3:]], WELL, (-1.0, -1.02)).split())
    assert "Read this first" not in text
    assert "2 of the other 11 trials lie within the noise of the seeds of the pick" in text
    assert "could as well be it: 2, 1." in text


def test_a_study_that_went_well_says_what_its_score_is() -> None:
    text = told(VALUES, WELL, (-1.0, -1.005))
    assert text.startswith("The pick: trial 0, score -1 (lower is better), training loss 1\nThe score is what training")
    assert "guessing gives 0 less half of what it gets right, below is better" in " ".join(text.split())
    assert "the score tells settings apart, and the pick from the rest" in " ".join(text.split())
    assert "12 trials completed, 0 pruned, 0 failed" in text
    assert "\nWhat mattered\n\n- By themselves x makes" in text
    assert text.index("What mattered") < text.index("How far to trust")


@pytest.mark.parametrize(
    ("metric", "pick", "line"),
    [
        ("accuracy", 0.59, "  the pick              59.0%"),
        ("R2", 0.59, "  the pick               0.59"),
        ("accuracy", -3.5, "  the pick               -3.5"),
    ],
)
def test_only_shares_of_accuracy_are_percents(metric: str, pick: float, line: str) -> None:
    accuracy = TestAccuracy(pick, float("nan"), 0, float("nan"), 1, metric=metric)
    first, second = accuracy_text(accuracy).splitlines()
    assert f"({metric})" in first
    assert second == line


def test_nothing_to_pick_says_why(tmp_path: Path) -> None:
    host = open_study(tiny.STUDY)
    host.add_trial(create_trial(value=1.0, constraints={"x": 1.0}))
    text = closing_text(closing(tiny.STUDY, host), {})
    assert "There is nothing to pick: relax what is said below." in text
    assert "1 completed trial not ranked, for a constraint is violated: 0." in text


def test_what_the_user_came_with_and_the_best_shared_setting_stand_beside_the_pick() -> None:
    accuracy = TestAccuracy(0.81, 0.82, 7, 0.6, 30, start=0.472, start_number=0, shared=0.79, shared_number=4)
    assert accuracy_text(accuracy).splitlines()[1:4] == [
        "  the pick              81.0%",
        "  what you came with    47.2%  (trial 0)",
        "  best shared setting   79.0%  (trial 4, the best by its score whose layers have the same settings)",
    ]


def test_a_majority_that_died_early_is_said_before_the_pick() -> None:
    host = open_study(tiny.STUDY)
    reason = {"ww_opt:reason": "KeyError: 'labels'"}
    for _ in range(3):
        host.add_trial(create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=reason))
    look = records.Look(20, 20, 1.0, 1.0, train_loss=1.0)
    attrs = {"ww_opt:look:20": records._to_json(records.asdict(look))}
    host.add_trial(create_trial(value=1.0, params={"x": 1.0}, distributions={"x": X}, user_attrs=attrs))
    text = closing_text(closing(tiny.STUDY, host), {})
    said = "Read this first\n\n- 3 of 4 trials failed: KeyError (3). 3 of them ended before the first look."
    assert text.startswith(said)
    assert text.index("trials failed") < text.index("The pick: trial 3")
