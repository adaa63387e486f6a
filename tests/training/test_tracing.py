"""Dropout belongs to the layer that it follows in the data's path."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ww_opt import add_dropout, trace_dropout
from ww_opt.training.layerwise import layers


class Registered(nn.Module):
    """Names all its layers first and its dropout last, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.drop_first, self.drop_second = nn.Dropout(0.3), nn.Dropout(0.3)
        self.never = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop_first(self.first(x).relu())
        return self.head(self.drop_second(self.second(x).relu()))


def dropouts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return {str(layer.name): layer.dropouts for layer in layers(model)}


BY_DATA = {"first": ("drop_first",), "second": ("drop_second",), "head": ("never",)}


def test_it_follows_the_data() -> None:
    model = Registered()
    assert dropouts(model) == {"first": (), "second": (), "head": ("drop_first", "drop_second", "never")}
    assert trace_dropout(model, lambda own: own(torch.randn(2, 8))) is model
    assert dropouts(model) == BY_DATA
    assert dropouts(copy.deepcopy(model)) == BY_DATA


def test_it_changes_nothing_else() -> None:
    model = Registered()
    model.drop_first.eval()
    state, hooks = (
        torch.get_rng_state(),
        [len(own._forward_hooks) + len(own._forward_pre_hooks) for own in model.modules()],
    )
    trace_dropout(model, lambda own: own(torch.randn(2, 8)))
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks == [len(own._forward_hooks) + len(own._forward_pre_hooks) for own in model.modules()]
    assert [own.training for own in (model, model.drop_first, model.drop_second)] == [True, False, True]
    assert list(model.state_dict()) == list(Registered().state_dict())


def test_dropout_of_several_layers_belongs_to_the_first_and_added_dropout_stays() -> None:
    shared = nn.Dropout(0.2)
    model = nn.Sequential(nn.Linear(8, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 2))
    add_dropout(model, ["2"])
    trace_dropout(model, lambda own: own(torch.randn(2, 8)))
    assert dropouts(model) == {"0": ("1",), "2": ("2",), "4": ()}


def test_names_are_those_inside_wrappers() -> None:
    model = torch.compile(Registered(), backend="eager")
    trace_dropout(model, lambda own: own._orig_mod(torch.randn(2, 8)))
    assert dropouts(model) == BY_DATA
