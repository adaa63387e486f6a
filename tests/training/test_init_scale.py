"""The scale of initial weights: what it multiplies, how often, and how it is taken out again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ww_opt.training.init_scale import apply_init_scale, as_built
from ww_opt.training.labels import tied
from ww_opt.training.layerwise import LayerSettings, labelled


class Tied(nn.Module):
    """A norm, a token, a table, a matrix that the model exempts from decay, ends that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.cls_token = nn.Parameter(torch.ones(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.ones(1, 5, 8))
        self.embedding = nn.Embedding(10, 8)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)
        self.head.weight = self.embedding.weight

    def no_weight_decay(self) -> set[str]:
        return {"fc.weight"}


def scales(**factors: float) -> dict[str, LayerSettings]:
    return {name.replace("_", "."): LayerSettings(init_scale=factor) for name, factor in factors.items()}


def ratios(model: nn.Module, before: Mapping[str, Tensor]) -> dict[str, float]:
    """Factor of each parameter that changed."""
    found = {name: float((own / before[name]).nanmean()) for name, own in model.state_dict().items()}
    return {name: pytest.approx(factor) for name, factor in found.items() if abs(factor - 1.0) > 1e-6}


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def test_matrices_are_scaled_shared_ones_once_and_nothing_beside_them() -> None:
    model = Tied()
    assert list(labelled(model)) == ["embedding", "fc"]
    before = state(model)
    apply_init_scale(model, scales(embedding=2.0, fc=0.5))
    assert ratios(model, before) == {"embedding.weight": 2.0, "head.weight": 2.0, "fc.weight": 0.5}
    assert model.head.weight is model.embedding.weight


def test_none_leaves_weights_and_frozen_ones_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].requires_grad_(False)
    before = state(model)
    apply_init_scale(model, {"0": LayerSettings(lr=1.0), "1": LayerSettings(init_scale=4.0)})
    assert ratios(model, before) == {"1.weight": 4.0}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "conv": lambda: nn.Conv1d(4, 4, 1),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "wrapped": lambda: nn.Sequential(nn.DataParallel(nn.Linear(4, 4))),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_what_a_layer_computes_scales_with_it(build: Callable[[], nn.Module]) -> None:
    model = build()
    x = torch.randn(4, 4)
    before, bias = model(x), model(torch.zeros(4, 4))
    apply_init_scale(model, {"all": LayerSettings(init_scale=3.0)}, tied)
    torch.testing.assert_close(model(x) - bias, 3.0 * (before - bias))


def test_attention_and_recurrent_weights_count() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(4, 2), nn.LSTM(4, 4)])
    before = state(model)
    apply_init_scale(model, {"all": LayerSettings(init_scale=2.0)}, tied)
    expected = {"0.in_proj_weight", "0.out_proj.weight", "1.weight_ih_l0", "1.weight_hh_l0"}
    assert set(ratios(model, before)) == expected


class TestTwice:
    """The factor is set, not multiplied, on one model and on copies of it."""

    def test_the_same_settings_twice_change_nothing(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4))
        apply_init_scale(model, {"0": LayerSettings(init_scale=3.0)})
        once = state(model)
        apply_init_scale(model, {"0": LayerSettings(init_scale=3.0)})
        assert all(torch.equal(own, once[name]) for name, own in model.state_dict().items())

    def test_others_take_their_place(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4))
        before = state(model)
        apply_init_scale(model, {"0": LayerSettings(init_scale=3.0)})
        apply_init_scale(model, {"0": LayerSettings(init_scale=0.5)})
        assert ratios(model, before) == {"0.weight": 0.5}
        apply_init_scale(model, {"0": LayerSettings(init_scale=1.0)})
        assert ratios(model, before) == {}

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
    def test_a_copy_of_a_scaled_model_is_not_scaled_again(self, copied: Callable[[nn.Module], nn.Module]) -> None:
        model = nn.Sequential(nn.Linear(4, 4))
        before = state(model)
        apply_init_scale(model, {"0": LayerSettings(init_scale=3.0)})
        twin = copied(model)
        apply_init_scale(twin, {"0": LayerSettings(init_scale=3.0)})
        assert ratios(twin, before) == {"0.weight": 3.0}
        apply_init_scale(twin, {"0": LayerSettings(init_scale=1.0)})
        assert ratios(model, before) == {"0.weight": 3.0}

    def test_a_state_dict_has_no_trace_of_it(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4))
        keys = list(model.state_dict())
        apply_init_scale(model, {"0": LayerSettings(init_scale=3.0)})
        assert list(model.state_dict()) == keys


def test_as_built_is_the_model_before_and_the_scale_comes_back_exactly() -> None:
    model = Tied()
    before = state(model)
    apply_init_scale(model, scales(embedding=3.0, fc=0.7))
    scaled = state(model)
    with as_built(model):
        torch.testing.assert_close(dict(model.state_dict()), dict(before))
    assert all(torch.equal(own, scaled[name]) for name, own in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), as_built(model):
        _ = 1 / 0  # as a user's loss may raise
    assert all(torch.equal(own, scaled[name]) for name, own in model.state_dict().items())


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_are_positive(factor: float) -> None:
    with pytest.raises(ValueError, match=r"`init_scale > 0` must hold, but got init_scale="):
        apply_init_scale(nn.Linear(4, 4), {"all": LayerSettings(init_scale=factor)}, tied)


def test_an_unknown_label_and_weights_of_zero_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    with pytest.raises(ValueError, match=r"but got 'head'; labels: \['0', '1'\]"):
        apply_init_scale(model, scales(head=2.0))
    with pytest.raises(ValueError, match="not 0 throughout, but label '1' has none: leave it out"):
        apply_init_scale(model, {"1": LayerSettings(init_scale=2.0)})
