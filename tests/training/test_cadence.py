"""When a run is looked at: four cadences, half of the run in all of them, and what a look costs chooses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests import tiny
from ww_opt.training.cadence import CADENCES, Cadence, affordable, look_steps
from ww_opt.training.run import train


@pytest.mark.parametrize(
    ("n_steps", "n_looks", "joining", "steps"),
    [
        (120, 12, (), tuple(range(10, 121, 10))),
        (120, 8, (), tuple(range(15, 121, 15))),
        (120, 4, (), (30, 60, 90, 120)),
        (120, 4, (60, 90, 108), (30, 60, 90, 120)),
        (120, 2, (60, 90, 108), (60, 90, 120)),
        (120, 4, (40, 95, 96), (30, 40, 60, 90, 95, 120)),
        (10, 4, (), (3, 5, 8, 10)),
        (2, 12, (), (1, 2)),
        (1, 4, (0,), (1,)),
    ],
)
def test_half_of_the_run_and_early_cohorts_are_always_looked_at(
    n_steps: int, n_looks: int, joining: Sequence[int], steps: tuple[int, ...]
) -> None:
    assert look_steps(n_steps, n_looks, joining) == steps


@pytest.mark.parametrize(
    ("cost", "n_looks"),
    [(0.0, 12), (0.04 / 12.1, 12), (0.04 / 11.9, 8), (0.04 / 8.1, 8), (0.04 / 4.1, 4), (0.04 / 3.9, 2), (9.0, 2)],
)
def test_the_finest_cadence_within_the_budget_is_taken(cost: float, n_looks: int) -> None:
    assert affordable(cost, 1.0, 120, budget=0.05) == n_looks


def looked(cadence: Cadence, cost: float) -> list[int]:
    """Walk through a run of a second a step in which a look takes ``cost`` seconds."""
    found = []
    for step in cadence.steps:
        if cadence.is_due(step):
            found.append(step)
            cadence.spent(cost, float(step), step)
    return found


@pytest.mark.parametrize("n_looks", CADENCES)
def test_a_settled_cadence_is_kept_whatever_it_costs(n_looks: int) -> None:
    cadence = Cadence(120, n_looks=n_looks)
    assert looked(cadence, 100.0) == list(look_steps(120, n_looks))
    assert cadence.n_looks == n_looks


def test_an_interval_of_the_users_is_kept_whatever_it_costs() -> None:
    cadence = Cadence(10, interval_steps=3)
    assert looked(cadence, 100.0) == [3, 6, 9, 10]
    assert cadence.n_looks is None


@pytest.mark.parametrize(
    ("cost", "n_looks", "steps"),
    [
        (0.0, 12, [30, *range(40, 121, 10)]),
        (0.5, 8, [30, *range(45, 121, 15)]),
        (1.1, 4, [30, 60, 90, 120]),
        (5.0, 2, [30, 60, 120]),
    ],
)
def test_the_first_run_begins_with_the_quarters_and_goes_on_as_they_cost(
    cost: float, n_looks: int, steps: list[int]
) -> None:
    cadence = Cadence(120)
    assert looked(cadence, cost) == steps
    assert cadence.n_looks == n_looks
    assert cadence.looking == pytest.approx(cost * len(steps))
    assert cadence.training == 120.0


def test_what_is_loaded_once_does_not_decide() -> None:
    cadence = Cadence(120)
    for step, cost in ((30, 50.0), (60, 0.0)):
        assert cadence.is_due(step)
        cadence.spent(cost, float(step), step)
    assert cadence.n_looks == 12


@pytest.mark.parametrize("n_looks", CADENCES)
def test_a_run_is_the_same_whatever_its_cadence(n_looks: int) -> None:
    found = []
    for cadence in (Cadence(24, n_looks=n_looks), 24):
        torch.manual_seed(0)
        model = tiny.build_model()
        groups = [{"params": list(model.parameters()), "lr": 0.01}]
        found.append(list(train(model, tiny.TASK, groups, n_steps=24, interval_steps=cadence)))
    thin, once = found
    assert tuple(own.step for own in thin) == look_steps(24, n_looks)
    assert (thin[-1].train_loss, thin[-1].first_loss) == (once[-1].train_loss, once[-1].first_loss)
    shares = torch.tensor([own.step for own in thin]).diff(prepend=torch.tensor([0])) / 24
    assert sum(own.running_loss * float(s) for own, s in zip(thin, shares, strict=True)) == pytest.approx(
        once[-1].running_loss
    ), "steps between looks that were left out are not lost to the mean"


def test_divergence_is_told_between_looks() -> None:
    model = tiny.build_model()
    groups = [{"params": list(model.parameters()), "lr": 1e30}]
    *_, last = train(model, tiny.TASK, groups, n_steps=240, interval_steps=Cadence(240, n_looks=4))
    assert (last.step, last.is_finite) == (20, False)


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5, float("nan")])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(ValueError, match=r"0 < look_budget <= 1.*share of training time"):
        Cadence(10, budget=budget)
