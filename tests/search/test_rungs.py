"""When a rung is due, who is compared there, and how many go on."""

from __future__ import annotations

import math
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from ww_opt.search.rungs import LATE, WEIGHTS, Ranks, Standing, compare, due, standing

RULES = (LATE, WEIGHTS)
JUDGE = (LATE, 60)


@pytest.mark.parametrize(
    ("before", "now", "rung"),
    [
        (-1.0, 0.1, None),
        (0.1, 0.2, 0.2),
        (0.2, 0.3, None),
        (0.1, 0.3, 0.2),  # the first look behind it
        (0.1, 0.6, 0.5),  # two at once: the last one
        (0.4, 0.5, 0.5),
        (-1.0, 0.9, 0.5),
        (0.4, 1.0, None),  # nothing is left to save
        (1 / 3 - 1e-12, 0.2 + 1e-12, None),
    ],
)
def test_a_rung_is_due_once(before: float, now: float, rung: float | None) -> None:
    assert due((0.2, 0.5), before, now) == rung


def at(number: int, value: float, fraction: float = 0.2, kind: Any = "cnn", judge: Any = JUDGE) -> Standing:
    return Standing(number, round(100 * fraction), fraction, kind, {judge: value})


@pytest.mark.parametrize(
    ("value", "others", "share", "is_worse"),
    [
        (3.0, [1.0, 2.0, 4.0], 0.5, True),  # two of four go on, it is third
        (2.0, [1.0, 3.0, 4.0], 0.5, False),
        (2.0, [1.0, 2.0, 4.0], 0.5, False),  # a tie goes on
        (9.0, [1.0, 2.0, 3.0], 1.0, False),
        (1.5, [1.0, 2.0, 3.0], 0.01, True),  # one at least goes on
        (0.5, [1.0, 2.0, 3.0], 0.01, False),
        (math.inf, [1.0, 2.0, 3.0], 0.5, True),
        (math.inf, [math.inf] * 3, 0.5, False),  # all are lost: no reason to prefer one
        (9.0, [1.0, 2.0], 0.5, False),  # too few
        (9.0, [], 0.5, False),
    ],
)
def test_the_better_share_goes_on(value: float, others: list[float], share: float, is_worse: bool) -> None:
    ranks = Ranks(share=share, n_startup_trials=3)
    found = compare(at(9, value), [at(number, own) for number, own in enumerate(others)], ranks, RULES)
    assert found is not None
    assert found.is_worse is is_worse
    assert found.others == tuple(range(len(others)))


@pytest.mark.parametrize(
    "other",
    [at(2, 1.0, 0.31), at(2, 1.0, kind="mlp"), at(2, 1.0, judge=(LATE, 59)), at(2, 1.0, judge=(WEIGHTS, "minimize"))],
    ids=["at another fraction", "another network", "other examples", "another judge"],
)
def test_only_what_compares_is_compared(other: Standing) -> None:
    found = compare(at(9, 5.0), [at(0, 1.0), at(1, 2.0, 0.3), other], Ranks(n_startup_trials=1), RULES)
    assert found is not None
    assert found.others == (0, 1)


def test_without_enough_for_the_first_judge_the_next_one_is_asked() -> None:
    own = Standing(9, 20, 0.2, "cnn", {JUDGE: 5.0, (WEIGHTS, "minimize"): 0.5})
    others = [at(number, 1.0 + number, judge=(WEIGHTS, "minimize")) for number in range(3)]
    found = compare(own, [*others, at(7, 1.0)], Ranks(n_startup_trials=3), RULES)
    assert found is not None
    assert (found.rule, found.is_worse, found.others) == (WEIGHTS, False, (0, 1, 2))
    assert compare(own, others, Ranks(), ()) is None


def shown(**looks: dict[str, Any]) -> FrozenTrial:
    attributes = {f"ww_opt:look:{step[1:]}": {"layers": [], **look} for step, look in looks.items()}
    return create_trial(state=TrialState.PRUNED, user_attrs=attributes)


@pytest.mark.parametrize(
    ("look", "values"),
    [
        ({"ahead_loss": 1.5, "n_ahead": 60, "score": 0.5}, {JUDGE: 1.5, (WEIGHTS, "minimize"): 0.5}),
        ({"ahead_loss": None, "n_ahead": 60, "score": None}, {JUDGE: math.inf}),
        ({"ahead_loss": 1.5, "n_ahead": 19, "score": 0.5}, {(WEIGHTS, "minimize"): 0.5}),
        ({"late_loss": 1.2, "n_late": 40}, {(LATE, 40): 1.2}),  # nobody waits: those who joined
        ({"ahead_loss": 1.5, "n_ahead": 20, "late_loss": 1.2, "n_late": 40}, {(LATE, 20): 1.5}),
        ({"score": 2.0, "direction": "maximize"}, {(WEIGHTS, "maximize"): -2.0}),
        ({}, {}),
    ],
)
def test_what_a_look_says(look: dict[str, Any], values: dict[Any, float]) -> None:
    trial = shown(s10={"n_steps": 100, "score": 9.0}, s30={"n_steps": 100, **look}, s50={"n_steps": 100, "score": 9.0})
    own = standing(trial, 0.2, Ranks(n_examples=20))
    assert own is not None
    assert (own.step, own.fraction, own.values) == (30, 0.3, values)
    assert standing(trial, 0.6, Ranks()) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fractions": ()}, "fractions"),
        ({"fractions": (0.5, 0.2)}, "rise"),
        ({"fractions": (0.5, 1.0)}, "in \\(0, 1\\)"),
        ({"share": 0.0}, "share=0.0"),
        ({"weights_share": 1.1}, "weights_share=1.1"),
        ({"n_startup_trials": 0}, "n_startup_trials=0"),
        ({"n_examples": 0}, "n_examples=0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ranks(**options)
