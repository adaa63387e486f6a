"""Every setting acts on something in the optimizer that is built, or is refused in a sentence."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from ww_opt.training.optimizers import Rates, build_optimizer, momentum_key, needs_closure


class OwnRate(torch.optim.Optimizer):
    """As Adafactor: a rate of None is its own affair."""

    def __init__(self, params: Any, lr: float | None = None, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_((group["lr"] or 0.001) * parameter.grad)


class Lookahead:
    """Wraps another one, and is none by its class."""

    def __init__(self, groups: Any) -> None:
        self.optimizer = torch.optim.AdamW(groups, lr=0.1)
        self.param_groups = self.optimizer.param_groups

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.optimizer.step()


def groups(**settings: Any) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2, 2))], **settings}]


class TestSettings:
    @pytest.mark.parametrize(
        ("build", "settings", "words"),
        [
            (
                OwnRate,
                {"lr": 0.1},
                r"acts on nothing in OwnRate, where `lr` is None.*partial\(OwnRate, lr=",
            ),
            (
                torch.optim.Rprop,
                {"weight_decay": 0.1},
                "acts on nothing in Rprop, where .* none of its options",
            ),
            (torch.optim.Adagrad, {"momentum": 0.5}, "Momentum acts on nothing in Adagrad"),
            (torch.optim.LBFGS, {}, "LBFGS needs one: use SGD or Adam"),
        ],
    )
    def test_what_acts_on_nothing_is_refused(self, build: Any, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            build_optimizer(build, groups(**settings))

    @pytest.mark.parametrize(
        ("build", "settings"),
        [
            (OwnRate, {"weight_decay": 0.1}),
            (partial(OwnRate, lr=0.1), {"lr": 0.2}),
            (torch.optim.Rprop, {"lr": 0.1, "weight_decay": 0.0}),
            (Lookahead, {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.5}),
        ],
    )
    def test_what_acts_is_kept(self, build: Any, settings: dict[str, Any]) -> None:
        (group,) = build_optimizer(build, groups(**settings)).param_groups
        assert {key: group[key] for key in settings if key != "momentum"} == {
            key: value for key, value in settings.items() if key != "momentum"
        }

    def test_momentum_goes_through_a_wrapper(self) -> None:
        (group,) = build_optimizer(Lookahead, groups(momentum=0.5)).param_groups  # type: ignore[arg-type]
        assert group["betas"] == (0.5, 0.999)

    def test_betas_that_are_tensors_stay_tensors(self) -> None:
        betas = (torch.tensor(0.9), torch.tensor(0.999))
        build = partial(torch.optim.AdamW, lr=torch.tensor(0.1), betas=betas, capturable=True, foreach=False)
        (group,) = build_optimizer(build, groups(momentum=0.5)).param_groups
        assert torch.equal(torch.stack(group["betas"]), torch.tensor([0.5, 0.999]))

    @pytest.mark.parametrize("build", [list, lambda groups: [torch.optim.SGD(groups, lr=0.1)] * 2])
    def test_one_optimizer_is_asked_for(self, build: Any) -> None:
        with pytest.raises(TypeError, match=r"must return one optimizer, but got a list: .* `param_groups`"):
            build_optimizer(build, groups())


class TestRates:
    def test_none_is_left_alone(self) -> None:
        optimizer = OwnRate(groups())
        Rates.of(optimizer).scale(0.5)
        assert optimizer.param_groups[0]["lr"] is None

    def test_tensors_are_scaled_from_where_they_started(self) -> None:
        rate = torch.tensor(0.5)
        optimizer = torch.optim.AdamW(groups(), lr=rate, foreach=False)
        rates = Rates.of(optimizer)
        for factor in (0.5, 0.25):
            rates.scale(factor)
            assert float(optimizer.param_groups[0]["lr"]) == 0.5 * factor
        assert float(rate) == 0.5

    def test_the_scale_of_a_group_is_a_further_factor(self) -> None:
        optimizer = torch.optim.SGD([*groups(lr_scale=0.25), *groups()], lr=0.8)
        rates = Rates.of(optimizer)
        for factor in (1.0, 0.5):
            rates.scale(factor)
            assert [group["lr"] for group in optimizer.param_groups] == [0.2 * factor, 0.8 * factor]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (torch.optim.LBFGS, True),
        (partial(partial(torch.optim.LBFGS, lr=1.0), max_iter=3), True),
        (torch.optim.SGD, False),
        (lambda groups: None, False),
        (Lookahead, False),
    ],
)
def test_who_needs_a_closure(build: Any, expected: bool) -> None:
    assert needs_closure(build) is expected


def test_betas_of_none_are_no_place_for_momentum() -> None:
    optimizer = torch.optim.SGD(groups(), lr=0.1)
    optimizer.defaults = {"lr": 0.1, "betas": None}
    assert momentum_key(optimizer) is None
