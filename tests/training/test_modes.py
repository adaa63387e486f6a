"""What a builder puts into eval mode stays there; looks leave no trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny
from ww_opt.training.layerwise import layers
from ww_opt.training.modes import Modes, asleep, evaluating
from ww_opt.training.run import train


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(40, 48), nn.BatchNorm1d(48), nn.Dropout(0.5)), nn.Sequential(nn.Linear(48, 3))
    )


def frozen(net: nn.Sequential) -> nn.Sequential:
    net[0].requires_grad_(False)
    return net


class TestAsleep:
    def test_nothing_in_a_model_in_train_mode(self) -> None:
        assert asleep(frozen(model())) == ()

    def test_a_part_in_eval_mode(self) -> None:
        net = model()
        net[0].eval()
        assert set(asleep(net)) == set(net[0].modules())

    def test_a_model_in_eval_mode_as_a_whole_is_no_choice(self) -> None:
        assert asleep(model().eval()) == ()

    def test_but_its_frozen_parts_are(self) -> None:
        net = frozen(model().eval())
        assert set(asleep(net)) == set(net[0].modules())

    def test_a_new_head_on_a_model_in_eval_mode(self) -> None:
        net = model().eval()
        net[1] = nn.Linear(48, 3)
        assert asleep(net) == ()

    def test_a_shell_around_a_model_in_eval_mode(self) -> None:
        assert asleep(nn.Sequential(model().eval())) == ()

    def test_wrappers_are_no_choice(self) -> None:
        assert asleep(nn.DataParallel(model().eval())) == ()

    def test_a_dropout_alone(self) -> None:
        net = model()
        net[0][2].eval()
        assert asleep(net) == (net[0][2],)
        assert layers(net)[0].dropouts == (), "what stays off is no dimension"

    def test_a_training_method_of_the_models_own_is_heard(self) -> None:
        class Own(nn.Sequential):
            def train(self, mode: bool = True) -> Own:
                super().train(mode)
                self[0][1].eval()
                return self

        net = Own(*model())
        modes = Modes.of(net)
        modes.train()
        assert [net.training, net[0][1].training, net[0][2].training] == [True, False, True]


class TestTraining:
    def test_a_frozen_batch_norm_keeps_its_statistics(self) -> None:
        net = frozen(model())
        net[0].eval()
        net[0][1].running_mean.fill_(0.5)  # type: ignore[union-attr,operator]
        trained(net)
        assert torch.equal(net[0][1].running_mean, torch.full((48,), 0.5))

    @pytest.mark.parametrize("is_eval", [False, True])
    def test_others_move_theirs_whatever_mode_they_came_in(self, is_eval: bool) -> None:
        net = model().train(not is_eval)
        trained(net)
        assert net[0][1].num_batches_tracked == 4

    def test_modes_at_the_loss_are_those_that_were_chosen(self) -> None:
        seen: set[tuple[bool, bool]] = set()
        net = model()
        net[0].eval()

        def loss(own: nn.Module, batch: Any) -> torch.Tensor:
            if own.training:
                seen.add((net[0][2].training, net[1].training))
            return tiny.loss(own, batch)

        trained(net, loss=loss)
        assert seen == {(False, True)}


def trained(net: nn.Module, **changes: Any) -> None:
    groups = [{"params": [own for own in net.parameters() if own.requires_grad], "lr": 0.01}]
    for checkpoint in train(net, replace(tiny.TASK, **changes), groups, n_steps=4, interval_steps=2):
        assert not any(module.training for module in checkpoint.model.modules())


class Averaging(torch.optim.SGD):
    """As schedule-free ones: in eval mode weights are others, and only train mode steps."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        self.log: list[str] = []
        for group in self.param_groups:
            group["train_mode"] = False

    def _switch(self, mode: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not mode:
                group["train_mode"] = mode
                for parameter in group["params"]:
                    parameter.data.add_(1.0 if mode else -1.0)

    def train(self) -> None:
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)

    def step(self, closure: Any = None) -> Any:
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError("not in train mode")
        return super().step(closure)


class TestOptimizersWithModes:
    def test_steps_and_looks_find_theirs(self) -> None:
        built: list[Averaging] = []

        def build(groups: Any) -> torch.optim.Optimizer:
            built.append(Averaging(groups))
            return built[-1]

        net = model()
        groups = [{"params": list(net.parameters()), "lr": 0.01}]
        modes = [
            built[0].param_groups[0]["train_mode"]
            for _ in train(net, replace(tiny.TASK, optimizer=build), groups, n_steps=4, interval_steps=2)
        ]
        assert modes == [False, False]

    def test_a_look_puts_back_what_it_found(self) -> None:
        net = model()
        net[0].eval()
        optimizer = Averaging(net.parameters())
        before = [parameter.clone() for parameter in net.parameters()]
        for start in (optimizer.train, optimizer.eval):
            start()
            mode = optimizer.param_groups[0]["train_mode"]
            with evaluating(net, optimizer):
                assert not any(module.training for module in net.modules())
                for own, expected in zip(net.parameters(), before, strict=True):
                    torch.testing.assert_close(own, expected)
            assert optimizer.param_groups[0]["train_mode"] is mode
            assert [net[0].training, net[1].training] == [False, True]
