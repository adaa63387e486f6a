"""Models -> named weight matrices: nothing is left out in silence, and reading changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.spectral.reading.weight_rows import Conv1D, Lora, OldLora, Tokens, by_name, matrices
from ww_opt.spectral.findings import Status
from ww_opt.spectral.reading.weights import named_weights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Broken(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")


def orthogonal(layer: nn.Module) -> nn.Module:
    return parametrizations.orthogonal(layer)


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (parametrizations.weight_norm, "effective weight of WeightNorm"),
        (parametrizations.spectral_norm, "effective weight of SpectralNorm"),
        (orthogonal, "effective weight of Orthogonal"),
        (nn.utils.weight_norm, "effective weight of WeightNorm"),
        (nn.utils.spectral_norm, "effective weight of SpectralNorm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "effective weight of L1Unstructured"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_effective_weight_once_and_reading_changes_nothing(wrap: Callable[[nn.Module], nn.Module], note: str) -> None:
    model = nn.Sequential(nn.Linear(3, 6), wrap(nn.Linear(6, 5)))
    for parameter in model.parameters():  # an optimizer step: a stale copy of the weight would show
        parameter.data.mul_(3.0).add_(0.1 * torch.randn_like(parameter))
    before = copy.deepcopy(model.state_dict())
    first, second = named_weights(model)
    assert (second.name, second.kind, second.note, second.version) == ("1", "linear", note, None)
    assert set(second.parameter.split("+")) == {n for n, p in model.named_parameters() if n[0] == "1" and p.ndim > 1}
    assert first.note == ""
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    model.eval()
    model(torch.zeros(1, 3))  # recomputes the weight of the hooks; parametrised ones do so on access
    torch.testing.assert_close(matrices(second)[0], model[1].weight)


def test_parametrised_recurrent_weight_is_cut_into_gates() -> None:
    found = by_name(nn.ModuleDict({"net": parametrizations.weight_norm(nn.LSTM(3, 5), "weight_hh_l0")}))
    assert matrices(found["net.weight_hh_l0.f"]).shape == (1, 5, 5)
    assert len(found) == 8


def test_parametrisation_that_fails_costs_its_own_layer_alone() -> None:
    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    layer.parametrizations.weight[0] = Broken()
    bad, good = named_weights(nn.Sequential(layer, nn.Linear(4, 4)))
    assert bad.matrices is None
    assert bad.status is Status.UNREADABLE
    assert "no such kernel" in bad.note
    assert good.status is Status.SUCCESS


def test_tied_weights_come_once_and_name_each_other() -> None:
    encoder, decoder, transposed = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
    decoder.weight = encoder.weight
    transposed.weight = nn.Parameter(encoder.weight.detach().T)
    shared = nn.Linear(6, 6)
    found = by_name(nn.ModuleDict({"e": encoder, "d": decoder, "t": transposed, "x": shared, "y": shared}))
    assert {name: row.note for name, row in found.items()} == {
        "e": "tied with d.weight, t.weight",
        "x": "tied with y.weight",
    }


def test_two_views_of_one_buffer_are_not_tied() -> None:
    whole = torch.randn(8, 4)
    parts = nn.ParameterDict({"top": whole[:4], "bottom": whole[4:], "even": whole[::2]})
    assert set(by_name(parts)) == {"top", "bottom", "even"}


def test_wrappers_are_left_out_of_names_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    (first, _) = named_weights(torch.compile(nn.DataParallel(model), backend="eager"))
    assert (first.name, first.parameter) == ("0", "_orig_mod.module.0.weight")
    partly = nn.ModuleDict({"module": nn.Linear(3, 4), "encoder": torch.compile(nn.Linear(3, 4), backend="eager")})
    assert list(by_name(partly)) == ["module", "encoder"]


def test_index_is_the_place_in_modules() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 3)))
    assert [row.index for row in named_weights(model)] == [1, 4]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_meta_empty_lazy_and_non_finite_weights_cost_no_other_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4, device="meta"), nn.Linear(0, 4), nn.LazyLinear(5), nn.Linear(4, 5))
    nn.init.constant_(model[3].weight, torch.nan)
    with torch.no_grad():
        rows = list(named_weights(model))
    assert [row.status for row in rows] == [Status.META, Status.EMPTY, Status.EMPTY, Status.SUCCESS]
    assert "pass one batch" in rows[2].note
    assert matrices(rows[3]).isnan().all()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_modules_are_dequantised_with_a_note() -> None:
    quantised = torch.ao.nn.quantized
    model = nn.ModuleDict(
        {
            "fc": quantised.dynamic.Linear(4, 3),
            "conv": quantised.Conv2d(4, 8, 3, groups=2),
            "emb": quantised.Embedding(10, 8),
            "lstm": quantised.dynamic.LSTM(3, 4),
        }
    )
    found = by_name(model)
    assert [found[name].kind for name in ("fc", "conv", "emb")] == ["linear", "grouped_conv2d", "embedding"]
    assert torch.equal(matrices(found["fc"])[0], model["fc"].weight().dequantize())
    assert found["fc"].note == "dequantised from qint8"
    assert matrices(found["lstm.weight_hh_l0.o"]).shape == (1, 4, 4)


def zoo() -> Iterator[nn.Module]:
    yield nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    yield nn.Sequential(nn.Bilinear(3, 4, 5), nn.Conv3d(2, 2, 2), nn.PReLU(), nn.LayerNorm((4, 4)), nn.LSTM(2, 3, 2))
    yield nn.Sequential(Tokens(), Lora(nn.Linear(6, 5), (5, 6)), OldLora(), Conv1D(3, 4))
    yield nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), orthogonal(nn.Linear(3, 3)))
    yield Lora(parametrizations.weight_norm(nn.Linear(6, 5)), (5, 6))
    yield nn.ParameterList([torch.randn(2, 3), torch.randn(3), torch.randn(2, 3, 4)])
    yield nn.DataParallel(nn.Sequential(nn.Embedding(4, 4), nn.ModuleDict({"deep": nn.GRUCell(2, 3)})))


@pytest.mark.parametrize("model", list(zoo()), ids=lambda model: type(model).__name__)
def test_every_matrix_is_analysed_or_named_with_the_reason(model: nn.Module) -> None:
    expected = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    rows = list(named_weights(model))
    assert {name for row in rows for name in row.parameter.split("+")} == expected
    assert all((row.matrices is None) == (row.status is not Status.SUCCESS) for row in rows)
    assert all(row.matrices is None or (row.matrices.ndim == 3 and not row.matrices.requires_grad) for row in rows)
    assert len({row.name for row in rows}) == len(rows)


def test_listing_is_lazy() -> None:
    read: list[str] = []

    class Watched(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            read.append("read")
            return weight

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for layer in model:
        nn.utils.parametrize.register_parametrization(layer, "weight", Watched())
    read.clear()
    rows = named_weights(model)
    next(rows)
    assert len(read) == 1


@pytest.mark.parametrize("source", [3, None, [nn.Linear(2, 2)], torch.zeros(3, 3)])
def test_other_sources_are_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="torch module, a state dict or a path"):
        named_weights(source)


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), nn.LayerNorm(4)])
def test_model_without_weights_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"at least one weight of 2 or more dimensions, but the model"):
        list(named_weights(model))
