"""LoRA: base weight, products, and their sum, as peft and loralib build them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.spectral.reading.weight_rows import Conv1D, Lora, OldLora, by_name, matrices


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_lora_gives_base_products_and_sum() -> None:
    layer = Lora(nn.Linear(6, 5), (5, 6), ("a", "b"))
    found = by_name(nn.ModuleDict({"fc": layer, "head": nn.Linear(5, 3)}))
    assert list(found) == ["fc", "fc.lora.a", "fc.lora.b", "fc.merged", "head"]
    products = {
        name: layer.scaling[name] * layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double()
        for name in "ab"
    }
    assert found["fc.lora.b"].kind == "lora"
    assert found["fc.lora.b"].parameter == "fc.lora_A.b.weight+fc.lora_B.b.weight"
    torch.testing.assert_close(matrices(found["fc.lora.b"])[0], products["b"])
    assert (found["fc"].parameter, found["fc"].kind, found["fc"].index) == ("fc.base_layer.weight", "linear", 2)
    assert torch.equal(matrices(found["fc"])[0], layer.base_layer.weight)
    expected = layer.base_layer.weight.double() + products["a"] + products["b"]
    torch.testing.assert_close(matrices(found["fc.merged"])[0], expected)


def test_lora_of_a_transposed_square_base() -> None:
    layer = Lora(Conv1D(4, 4), (4, 4))
    layer.fan_in_fan_out = True
    found = by_name(nn.ModuleDict({"fc": layer}))
    delta = 0.5 * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    torch.testing.assert_close(matrices(found["fc.merged"])[0], layer.base_layer.weight.double() + delta.T)
    assert found["fc.merged"].kind == "conv1d_hf"


def test_merged_lora_is_not_added_twice() -> None:
    layer = Lora(nn.Linear(6, 5), (5, 6))
    layer.merged = True
    assert list(by_name(nn.ModuleDict({"fc": layer}))) == ["fc", "fc.lora.default"]


def test_lora_of_a_convolution_and_old_style_lora() -> None:
    layer = Lora(nn.Conv2d(3, 5, 3), (5, 3))
    layer.lora_A["default"] = nn.Conv2d(3, 2, 3, bias=False)
    layer.lora_B["default"] = nn.Conv2d(2, 5, 1, bias=False)
    found = by_name(nn.ModuleDict({"conv": layer, "old": OldLora()}))
    assert list(found) == ["conv", "conv.lora.default", "conv.merged", "old", "old.lora.default", "old.merged"]
    assert matrices(found["conv.merged"]).shape == (9, 5, 3)
    assert torch.linalg.matrix_rank(matrices(found["old.lora.default"])[0]) == 2
