"""Balance rules: their published formula, and that a factor acts in the step alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from ww_opt import BalanceSchedule
from ww_opt.spectral import hill_alphas
from ww_opt.training.balancing import FACTORS, balanced
from ww_opt.training.layerwise import LayerSettings, labelled, parameter_groups


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))


def _groups(model: nn.Module, lr: float = 1.0, weight_decay: float = 0.1) -> list[dict]:
    return parameter_groups(model, dict.fromkeys(labelled(model), LayerSettings(lr=lr, weight_decay=weight_decay)))


def test_tempbalance() -> None:
    # arXiv 2312.00359, eq. 3: eta ((a - min) / (max - min) (s2 - s1) + s1) with s1 = 0.5, s2 = 1.5
    assert balanced([2.0, 3.0, 6.0], FACTORS["lr"]) == pytest.approx([0.5, 0.75, 1.5])


def test_alphadecay() -> None:
    # arXiv 2506.14562: the same map with s1 = 0.67, s2 = 3
    assert balanced([2.0, 4.0, 3.0], FACTORS["weight_decay"]) == pytest.approx([0.67, 3.0, 1.835])


def test_what_is_not_known_keeps_its_setting() -> None:
    assert balanced([math.nan, 2.0, 4.0], (0.5, 1.5)) == [1.0, 0.5, 1.5]
    assert balanced([3.0, 3.0], (0.5, 1.5)) == [1.0, 1.0]
    assert balanced([math.nan], (0.5, 1.5)) == [1.0]


def test_hill_alpha_is_the_published_estimate() -> None:
    # the eigenvalues are 64, 63, .. 1: the upper half begins at 33, and is told by its logarithms above 32
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.arange(1.0, 65.0).sqrt()))
    expected = 1 + 32 / sum(math.log(k / 32) for k in range(33, 65))
    assert hill_alphas(model) == pytest.approx({"0": expected})


def test_heads_and_narrow_layers_are_left_out() -> None:
    assert set(hill_alphas(_model())) == {"0", "1", "2"}


def test_weights_that_are_not_finite_are_nan() -> None:
    model = _model()
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    assert math.isnan(hill_alphas(model).get("1", math.nan))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        hill_alphas(_model(), share)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_rates_are_scaled_in_the_step_alone() -> None:
    model = _model()
    optimizer = SGD(_groups(model, weight_decay=0.0))
    schedule = BalanceSchedule(optimizer)
    before = [own.detach().clone() for own in model.parameters()]
    assert schedule.update({"0": 2.0, "1": 3.0, "2": 4.0}) == {"0": 0.5, "1": 1.0, "2": 1.5}
    _step(model, optimizer)
    moved = [float((old - new.detach()).mean()) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 1.0, 1.0], abs=1e-6)  # biases go with their weights
    assert [group["lr"] for group in optimizer.param_groups] == [1.0] * 8


def test_decay_is_scaled() -> None:
    model = _model()
    optimizer = AdamW(_groups(model, lr=1e-3), betas=(0.0, 0.0))
    schedule = BalanceSchedule(optimizer, "weight_decay", (0.5, 2.0))
    schedule.update({"0": 1.0, "1": 2.0})
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append([group["weight_decay"] for group in optimizer.param_groups])
    )
    _step(model, optimizer)
    assert seen == [[pytest.approx(0.05), 0.0, pytest.approx(0.2), 0.0, 0.1, 0.0, 0.1, 0.0]]


def test_a_scheduler_goes_on_as_if_nothing_were_there() -> None:
    rates = []
    for is_balanced in (False, True):
        model = _model()
        optimizer = SGD(_groups(model))
        scheduler = CosineAnnealingLR(optimizer, 10)  # computes each rate from the one before
        if is_balanced:
            BalanceSchedule(optimizer).update({"0": 2.0, "1": 3.0})
        for _ in range(5):
            _step(model, optimizer)
            scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[1]


def test_removed_it_scales_nothing() -> None:
    model = _model()
    optimizer = SGD(_groups(model, weight_decay=0.0))
    schedule = BalanceSchedule(optimizer)
    schedule.update({"0": 2.0, "1": 3.0})
    schedule.remove()
    before = model[0].weight.detach().clone()
    _step(model, optimizer)
    assert float((before - model[0].weight.detach()).mean()) == pytest.approx(1.0)


def test_groups_of_several_layers_count_with_their_mean() -> None:
    model = _model()
    named = dict(model.named_parameters())
    split = [{"params": [(name, named[name]) for name in named if name[0] in own]} for own in ("01", "2", "3")]
    schedule = BalanceSchedule(SGD(split, lr=1.0))
    schedule.update({"0": 2.0, "1": 4.0, "2": 5.0, "3": math.nan})
    assert schedule.factors_now == [0.5, 1.5, 1.0]


def test_what_does_not_fit_is_said() -> None:
    model = _model()
    with pytest.raises(ValueError, match="named_parameters"):
        BalanceSchedule(SGD(model.parameters(), lr=0.1))
    optimizer = SGD(_groups(model))
    with pytest.raises(ValueError, match="'momentum'"):
        BalanceSchedule(optimizer, "momentum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="smallest <= largest"):
        BalanceSchedule(optimizer, "lr", (2.0, 1.0))
    with pytest.raises(ValueError, match=r"layers that are trained.*encoder"):
        BalanceSchedule(optimizer).update({"encoder": 2.0})
