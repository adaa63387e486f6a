"""Bounds hold what they are laid around, and say what differs between two spaces."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from ww_opt.search.bounds import around, changes, in_words, is_inside, nearest, remember, remembered, rescaled

LR = FloatDistribution(1e-4, 1e-1, log=True)
POSITIVE = st.floats(1e-8, 1e3)


class TestAround:
    @given(value=POSITIVE, decades=st.floats(0.1, 3.0))
    def test_a_rate_lies_between_its_bounds_on_the_logarithm(self, value: float, decades: float) -> None:
        own = around("lr", value, decades=decades)
        assert own.log
        assert own.low < value < own.high
        # two digits are kept of each bound
        assert own.low == pytest.approx(value / 10**decades, rel=0.06)
        assert own.high == pytest.approx(value * 10**decades, rel=0.06)

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_rate_must_be_positive(self, value: float) -> None:
        with pytest.raises(ValueError, match=r"`lr > 0` must hold .* but the optimizer has lr="):
            around("lr", value)

    @given(value=st.floats(0.0, 1.0), decoupled=st.sampled_from([True, False, None]))
    def test_decay_is_that_of_its_family_and_holds_the_present_one(self, value: float, decoupled: bool | None) -> None:
        own = around("weight_decay", value, decoupled=decoupled)
        low, high = {True: (1e-4, 1.0), False: (1e-6, 1e-2), None: (1e-6, 1.0)}[decoupled]
        assert own.log
        assert own.low <= low < high <= own.high
        assert own.low < value < own.high or value <= 1e-12

    @given(kind=st.sampled_from(["dropout", "momentum"]), value=st.floats(0.0, 0.999))
    def test_shares_are_held(self, kind: str, value: float) -> None:
        own = around(kind, value)
        assert own.low <= value <= own.high
        assert not own.log


class TestNearest:
    @given(
        value=st.floats(-1e3, 1e3),
        own=st.sampled_from(
            [
                LR,
                FloatDistribution(0.0, 0.9, step=0.3),
                FloatDistribution(0.0, 0.5),
                IntDistribution(1, 9),
                IntDistribution(1, 9, step=4),
                IntDistribution(1, 90, log=True),
            ]
        ),
    )
    def test_it_is_inside_and_stays_where_it_is(self, value: float, own: BaseDistribution) -> None:
        found = nearest(value, own)
        assert own._contains(own.to_internal_repr(found))
        assert nearest(found, own) == found

    def test_what_is_inside_is_itself(self) -> None:
        assert nearest(0.0123, LR) == 0.0123
        assert nearest(0.4, FloatDistribution(0.0, 0.9, step=0.3)) == pytest.approx(0.3)


class TestChanges:
    def test_only_what_differs_is_said_and_alike_together(self) -> None:
        old = {"lr/a": LR, "lr/b": LR, "lr/c": LR, "dropout/a": FloatDistribution(0.0, 0.5)}
        new = {
            "lr/a": FloatDistribution(1e-3, 1e-1, log=True),
            "lr/b": FloatDistribution(1e-3, 1e-1, log=True),
            "lr/c": LR,
            "lr/d": LR,
        }
        assert changes(old, old) == ""
        assert changes(old, new) == (
            "`lr/a`, `lr/b` was 0.0001 to 0.1 (log) and is 0.001 to 0.1 (log); "
            "`dropout/a` was 0 to 0.5 and is not there; `lr/d` was not there and is 0.0001 to 0.1 (log)"
        )

    def test_many_are_counted(self) -> None:
        said = changes({f"lr/{i}": LR for i in range(150)}, {})
        assert said.startswith("`lr/0`, `lr/1`, `lr/2`, `lr/3` and 146 more was ")

    @pytest.mark.parametrize(
        ("own", "words"),
        [
            (LR, "0.0001 to 0.1 (log)"),
            (FloatDistribution(0.0, 0.9, step=0.3), "0 to 0.9 by 0.3"),
            (IntDistribution(1, 9), "1 to 9 (whole)"),
            (IntDistribution(1, 9, step=2), "1 to 9 by 2 (whole)"),
        ],
    )
    def test_bounds_in_words(self, own: BaseDistribution, words: str) -> None:
        assert in_words(own) == words


def test_a_study_remembers_its_bounds_and_whether_they_were_changed() -> None:
    study = optuna.create_study()
    assert remembered(study) is rescaled(study) is None
    bounds = {"lr/a": LR, "momentum/a": IntDistribution(0, 0)}
    remember(study, bounds)
    assert remembered(study) == bounds
    assert rescaled(study) is None
    remember(study, bounds, is_rescaled=True)
    assert rescaled(study) == bounds


def test_a_point_of_a_space_has_its_names_and_lies_inside() -> None:
    bounds = {"lr/a": LR, "lr/b": LR}
    assert is_inside({"lr/a": 0.01, "lr/b": 1e-4}, bounds)
    assert not is_inside({"lr/a": 0.01, "lr/b": 1e-5}, bounds)
    assert not is_inside({"lr/a": 0.01}, bounds)
    assert not is_inside({"lr/a": 0.01, "lr/b": 0.01, "lr/c": 0.01}, bounds)
