"""State dicts -> named weight matrices: the same as from the model, as far as names and shapes can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.spectral.reading.weight_rows import Net, assert_same, by_name, matrices
from ww_opt.spectral.findings import Role
from ww_opt.spectral.reading.weights import named_weights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_state_dict_reads_as_the_model_does() -> None:
    model = Net()
    found = by_name(model.state_dict())
    assert_same(found, by_name(model))
    assert list(found) == [row.name for row in named_weights(model)]
    assert found["conv1"].index == list(model.state_dict()).index("conv1.weight")
    assert "taken as conv2d" in found["conv1"].note


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "params"])
def test_state_dict_inside_a_checkpoint(key: str) -> None:
    model = Net()
    checkpoint = {"epoch": 3, "rng": torch.zeros(4, dtype=torch.uint8), key: model.state_dict(), "params_seen": {}}
    assert_same(by_name(checkpoint), by_name(model))


def test_wrapper_prefixes_are_left_out_where_every_key_has_them() -> None:
    state = {"module.conv1.weight": torch.randn(16, 3, 3, 3), "module.layer1.0.conv1.weight": torch.randn(16, 16, 3, 3)}
    assert list(by_name(state)) == ["conv1", "layer1.0.conv1"]
    assert by_name(state)["conv1"].parameter == "module.conv1.weight"
    state["head.weight"] = torch.randn(4, 4)
    assert list(by_name(state)) == ["module.conv1", "module.layer1.0.conv1", "head"]


@pytest.mark.parametrize(("name", "kind"), [("wte", "embedding"), ("tok_embeddings", "embedding"), ("fc", "linear")])
def test_kind_from_the_name(name: str, kind: str) -> None:
    assert by_name({f"h.{name}.weight": torch.randn(3, 4)})[f"h.{name}"].kind == kind


def test_effective_weights_from_a_state_dict() -> None:
    normed = parametrizations.weight_norm(nn.Conv1d(3, 4, 5))
    pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    spectral, orthogonal = parametrizations.spectral_norm(nn.Linear(4, 6)), parametrizations.orthogonal(nn.Linear(4, 4))
    old = nn.utils.spectral_norm(nn.ConvTranspose2d(3, 5, 2))
    parts = {"normed": normed, "pruned": pruned, "spectral": spectral, "old": old, "orthogonal": orthogonal}
    model = nn.ModuleDict(parts)
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(3.0)
    found = by_name(model.state_dict())
    expected = by_name(model)
    torch.testing.assert_close(matrices(found["normed"]), matrices(expected["normed"]))
    assert torch.equal(matrices(found["pruned"]), matrices(expected["pruned"]))
    assert found["normed"].note.startswith("effective weight of WeightNorm")
    torch.testing.assert_close(matrices(found["spectral"]), matrices(expected["spectral"]), rtol=0, atol=0)
    torch.testing.assert_close(matrices(found["old"]), matrices(expected["old"]), rtol=0, atol=0)
    assert found["orthogonal"].note == "raw weight: its parametrisation is not in a state dict"
    assert found["orthogonal"].role is Role.UNSURE
    assert [name for name, row in found.items() if row.role is not Role.TABLE] == list(parts)  # `base` is a buffer


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("dim", [0, 1, None])
def test_old_weight_norm_from_a_state_dict(dim: int | None) -> None:
    layer = nn.utils.weight_norm(nn.Linear(5, 4), dim=dim)
    with torch.no_grad():
        layer.weight_g.mul_(2.0)
        layer.weight_v.mul_(5.0)
    (row,) = named_weights(nn.ModuleDict({"fc": layer}).state_dict())
    (expected,) = named_weights(nn.ModuleDict({"fc": layer}))
    torch.testing.assert_close(matrices(row), matrices(expected))
    assert row.name == "fc"


def test_names_that_only_look_like_weight_norm_are_read_as_they_are() -> None:
    state = {"gate.weight_g": torch.randn(4, 4), "gate.weight_v": torch.randn(4, 4)}
    assert list(by_name(state)) == ["gate.weight_g", "gate.weight_v"]


@pytest.mark.parametrize("key", ["fc.lora_{}.weight", "fc.lora_{}.default.weight", "fc.lora_{}"])
def test_lora_product_from_a_state_dict(key: str) -> None:
    a, b = torch.randn(2, 6), torch.randn(5, 2)
    found = by_name({"fc.base_layer.weight": torch.randn(5, 6), key.format("A"): a, key.format("B"): b})
    assert list(found) == ["fc", "fc.lora.default"]
    row = found["fc.lora.default"]
    assert (row.kind, row.parameter) == ("lora", f"{key.format('A')}+{key.format('B')}")
    assert row.note == "scaling unknown: taken as 1"
    torch.testing.assert_close(matrices(row)[0], b.double() @ a.double())


def test_lora_side_without_its_partner_is_read_as_it_is() -> None:
    assert by_name({"fc.lora_A.weight": torch.randn(2, 6)})["fc.lora_A"].kind == "linear"


def test_tied_keys_come_once() -> None:
    weight = torch.randn(4, 3)
    found = by_name({"wte.weight": weight, "fc.weight": torch.randn(4, 3), "lm_head.weight": weight.view(4, 3)})
    assert {name: row.note.partition(";")[0] for name, row in found.items()} == {
        "wte": "tied with lm_head.weight",
        "fc": "",
    }


def test_every_matrix_of_a_state_dict_is_analysed_or_named_with_the_reason() -> None:
    state = {
        "quantised": torch.ones(4, 4, dtype=torch.int8),
        "flags.weight": torch.ones(4, 4, dtype=torch.bool),
        "weight": torch.randn(4, 4),
        "six.weight": torch.randn(2, 2, 2, 2, 2, 2),
        "none.weight": torch.empty(0, 4),
        "meta.weight": torch.empty(4, 4, device="meta"),
        "cell.weight_hh": torch.randn(7, 4),
        "nan.weight": torch.full((4, 4), torch.nan),
        "bias": torch.randn(4),
        "steps": 7,
        "num_batches_tracked": torch.tensor(3),
    }
    found = by_name(state)
    assert {row.parameter: row.status.name for row in found.values()} == {
        "quantised": "NOT_NUMERIC",
        "flags.weight": "NOT_NUMERIC",
        "weight": "SUCCESS",
        "six.weight": "SUCCESS",
        "none.weight": "EMPTY",
        "meta.weight": "META",
        "cell.weight_hh": "SUCCESS",
        "nan.weight": "SUCCESS",
    }


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_packed_weights_of_quantised_layers() -> None:
    layer = torch.ao.nn.quantized.dynamic.Linear(4, 3)
    row = by_name(nn.ModuleDict({"fc": layer}).state_dict())["fc"]
    assert row.note == "dequantised from qint8"
    assert torch.equal(matrices(row)[0], layer.weight().dequantize())


def test_versions_of_a_state_dict_are_its_own_and_files_have_none(tmp_path: Path) -> None:
    state = nn.Linear(4, 4).state_dict()
    before = next(named_weights(state)).version
    assert before is not None
    assert next(named_weights(state)).version == before
    torch.save(state, tmp_path / "model.pt")
    assert next(named_weights(tmp_path / "model.pt")).version is None


@pytest.mark.parametrize("mapping", [{}, {"a": 1}, {"model": nn.Linear(2, 2)}])
def test_mapping_without_tensors(mapping: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pass `model\.state_dict\(\)`"):
        named_weights(mapping)
