"""Guards: what was measured for cross-entropy stays; for other losses the unit does not matter, and no loss is flat."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ww_opt.spectral import SCORES, diagnose, score
from ww_opt.spectral.guards import CHANCE, guard, late_guard, relative_loss

LOSSES = st.floats(-50.0, 50.0)
FIRST = st.floats(-10.0, 10.0).filter(lambda value: value == 0.0 or abs(value) > 1e-9)


def model_of(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(n, m) for n, m in itertools.pairwise(widths)))


@given(LOSSES, FIRST.filter(lambda value: abs(value) > 1e-3), st.floats(1e-6, 1e6))
def test_the_unit_does_not_matter(loss: float, first: float, unit: float) -> None:
    found = relative_loss(unit * loss, unit * first)
    assert found == pytest.approx(relative_loss(loss, first), rel=1e-6, abs=1e-6)


@given(LOSSES, LOSSES, FIRST, st.booleans())
def test_less_is_better_everywhere(one: float, other: float, first: float, in_nats: bool) -> None:
    low, high = sorted((one, other))
    assert relative_loss(low, first) <= relative_loss(high, first)
    assert guard(low, first, in_nats=in_nats) <= guard(high, first, in_nats=in_nats)
    if high - low > 1e-3:
        assert relative_loss(low, first) < relative_loss(high, first)
        assert guard(low, first, in_nats=False) < guard(high, first, in_nats=False)


def test_the_relative_loss_is_smooth_and_0_before_training() -> None:
    for first in (-2.0, 0.0, 3.0):
        assert relative_loss(first, first) == 0.0
    assert relative_loss(0.6, 3.0) == pytest.approx(math.log(0.2))
    assert relative_loss(0.03 - 1e-9, 3.0) == pytest.approx(relative_loss(0.03 + 1e-9, 3.0), abs=1e-6)
    assert relative_loss(math.inf, 3.0) == relative_loss(math.inf, -3.0) == math.inf


def test_a_useful_fit_earns_more_the_better_it_is() -> None:
    assert guard(0.1, 1.0) == guard(0.01, 1.0) == pytest.approx(math.log(0.5))  # cross-entropy: labels learnt by heart
    assert guard(0.1, 1.0, in_nats=False) == pytest.approx(math.log(0.1))
    values = [guard(loss, first) for first in (1.4, -0.1) for loss in (-0.2, -1.0, -3.2)]
    assert values == sorted(values[:3], reverse=True) + sorted(values[3:], reverse=True)
    assert len(set(values)) == 6


def test_without_a_first_loss_there_is_no_floor() -> None:
    assert guard(0.3) == pytest.approx(math.log(0.3 / CHANCE))
    assert guard(0.2) < guard(0.3)  # among two classes both are below half of ln 10
    assert guard(math.nan) == math.inf


def test_the_late_guard() -> None:
    assert late_guard(1.5, 2.0) == -0.5
    assert late_guard(1.5) == 1.5 - CHANCE
    assert late_guard(1.5, -1.0) == 1.5 - CHANCE  # a shift, whatever the training loss is
    assert late_guard(1.5, 2.0, in_nats=False) == pytest.approx(math.log(0.75))
    with pytest.raises(ValueError, match=r"pass `first_loss=`"):
        late_guard(1.5, in_nats=False)


class TestNetworksTooNarrowForSpectra:
    model = model_of(8, 16, 16, 4)

    def test_the_late_loss_alone_judges(self) -> None:
        assert score(self.model, train_loss=1.0, first_loss=2.0, late_loss=1.5) == -0.5
        found = score(self.model, "spike_share", train_loss=1.0, first_loss=2.0, late_loss=1.5)
        assert found == 0.5
        guarded = SCORES["default"].guarded()
        assert guarded(diagnose(self.model), train_loss=1.0, first_loss=2.0, late_loss=1.5) == -0.5
        assert guarded(diagnose(self.model), train_loss=1.0, first_loss=2.0) == guard(1.0, 2.0)

    def test_the_training_loss_alone_does_not(self) -> None:
        with pytest.raises(ValueError, match="at least 32 wide"):
            score(self.model, train_loss=1.0, first_loss=2.0)
        assert math.isnan(SCORES["default"](diagnose(self.model)))

    def test_broken_weights_are_nan_still(self) -> None:
        broken = model_of(8, 16, 16, 4)
        with torch.no_grad():
            next(broken.parameters())[0, 0] = math.nan
        assert math.isnan(score(broken, train_loss=1.0, first_loss=2.0, late_loss=1.5))

    def test_a_layer_that_is_judged_and_not_known_is_nan_still(self) -> None:
        """Else the form of the value would change from trial to trial."""
        wide = model_of(40, 40, 4)
        nn.init.zeros_(wide[0].weight)
        found = score(wide, "mean_alpha", train_loss=1.0, first_loss=2.0, late_loss=1.5)
        assert math.isnan(found)
