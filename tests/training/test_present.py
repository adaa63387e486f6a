"""What is trained today is read off the optimizer that the user builds, and off the model."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ww_opt.training.dropout import add_dropout
from ww_opt.training.labels import by_block, by_layer, tied
from ww_opt.training.layerwise import LayerSettings
from ww_opt.training.optimizers import Rates
from ww_opt.training.present import is_decoupled, present


class Tied(nn.Module):
    """As a language model of Hugging Face: an embedding that is the head as well, norms, attention with a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(16, 8)
        self.attn = nn.MultiheadAttention(8, 2, dropout=0.2)
        self.drop = nn.Dropout(0.4)
        self.ln = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 16, bias=False)
        self.lm_head.weight = self.wte.weight


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.1)), nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    )


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (partial(AdamW, lr=3e-4), {"lr": 3e-4, "weight_decay": 0.01, "momentum": 0.9}),
        (partial(SGD, lr=0.05, momentum=0.8), {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.8}),
        (partial(SGD, lr=torch.tensor(0.5)), {"lr": 0.5, "weight_decay": 0.0, "momentum": 0.0}),
        (torch.optim.Adagrad, {"lr": 0.01, "weight_decay": 0.0, "momentum": None}),
        (torch.optim.Rprop, {"lr": 0.01, "weight_decay": None, "momentum": None}),
    ],
)
def test_settings_of_a_factory(build: Any, expected: dict[str, float]) -> None:
    found = present(net(), build).settings
    shared = {**expected, "init_scale": 1.0}
    assert found == {"0.0": LayerSettings(**shared, dropout=0.1), "1.0": LayerSettings(**shared, dropout=0.5)}


def test_neither_model_nor_optimizer_is_touched() -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    before = {name: own.clone() for name, own in model.state_dict().items()}
    assert present(model, optimizer).optimizer is optimizer
    present(model, SGD)
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())
    assert model[0][2].p == 0.1
    assert len(optimizer.param_groups) == 1


def test_shared_weights_count_once_and_rates_of_one_label_are_averaged() -> None:
    found = present(Tied(), AdamW).settings
    assert list(found) == ["wte", "attn.in_proj_weight", "attn.out_proj"]
    assert math.isclose(sum(own.dropout or 0.0 for own in found.values()), 0.6)
    (one,) = present(Tied(), AdamW, tied).settings.values()
    assert one.dropout == pytest.approx(0.3)


def test_added_and_recurrent_dropout_is_read_as_well() -> None:
    model = nn.ModuleDict({"a": add_dropout(nn.Linear(4, 4), [""], 0.3), "b": nn.LSTM(4, 4, 2, dropout=0.2)})
    assert [own.dropout for own in present(model, SGD).settings.values()] == [0.3, 0.2]


def test_the_decay_of_a_label_is_its_largest() -> None:
    model = net()
    weights = [own for own in model.parameters() if own.ndim == 2]
    optimizer = AdamW([{"params": weights[:1], "weight_decay": 0.0}, {"params": weights[1:], "weight_decay": 0.3}])
    assert present(model, optimizer, tied).settings["all"].weight_decay == 0.3
    assert [own.weight_decay for own in present(model, optimizer).settings.values()] == [0.0, 0.3]


class TestLayerDecay:
    """Groups with `lr_scale`, as timm makes them."""

    @staticmethod
    def factory(groups: list[dict[str, Any]]) -> Optimizer:
        return SGD([{**group, "lr_scale": 0.5 if group["name"].startswith("0") else 1.0} for group in groups], lr=0.1)

    def test_the_scale_of_a_factory_stays_beside_the_rate_and_acts(self) -> None:
        model = net()
        found = present(model, self.factory)
        assert [own.lr for own in found.settings.values()] == [0.1, 0.1]
        Rates.of(found.optimizer).scale(0.5)
        rates = {group["name"]: group["lr"] for group in found.optimizer.param_groups}
        assert rates == pytest.approx({"0.0": 0.025, "0.0:no_decay": 0.025, "1.0": 0.05, "1.0:no_decay": 0.05})

    def test_the_scale_of_a_built_optimizer_is_part_of_its_rates(self) -> None:
        model = net()
        optimizer = SGD([{"params": model[0].parameters(), "lr_scale": 0.5}, {"params": model[1].parameters()}], lr=0.1)
        assert [own.lr for own in present(model, optimizer).settings.values()] == [0.05, 0.1]
        with pytest.raises(ValueError, match=r"must share `lr`, but those of label 'all' have 0\.05 to 0\.1.*by_layer"):
            present(model, optimizer, tied)


def test_what_is_not_trained_by_the_optimizer_has_no_settings() -> None:
    model = net()
    found = present(model, SGD(model[0].parameters(), lr=0.1), by_block()).settings
    assert found == {
        "0": LayerSettings(lr=0.1, weight_decay=0.0, momentum=0.0, dropout=0.1, init_scale=1.0),
        "1": LayerSettings(dropout=0.5),
    }


def test_weights_that_are_all_zero_have_no_scale() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    assert [own.init_scale for own in present(model, SGD).settings.values()] == [1.0, None]


def test_an_optimizer_of_another_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"must train weights of this model, but the SGD has none of them"):
        present(net(), SGD(net().parameters(), lr=0.1))


@pytest.mark.parametrize("optimizer", [None, "AdamW", 3])
def test_what_is_no_optimizer_is_named(optimizer: Any) -> None:
    with pytest.raises(TypeError, match=r"`optimizer` must be what `Task\.optimizer` is, .* but got "):
        present(net(), optimizer, by_layer)


class Lion(SGD):
    pass


class MyAdam(Adam):
    pass


class Unknown(Optimizer):
    pass


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (AdamW, True),
        (Adam, False),
        (MyAdam, False),
        (partial(Adam, decoupled_weight_decay=True), True),
        (partial(torch.optim.NAdam, decoupled_weight_decay=True), True),
        (torch.optim.Adafactor, True),
        (Lion, True),
        (SGD, False),
        (torch.optim.RMSprop, False),
        (partial(Unknown, defaults={}), None),
    ],
)
def test_the_family_of_decay(build: Any, expected: bool | None) -> None:
    assert is_decoupled(build(net().parameters())) is expected
