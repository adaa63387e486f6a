"""What is read, and what is scored: roles of rows, by what they are used for and not by how they are kept."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from objectives._mlp import mlp
from objectives.characters import _Transformer
from objectives.mnist1d_cnn import _cnn
from tests.spectral.reading.weight_rows import Lora
from tests.spectral.reading.zoo import tree
from ww_opt.spectral import diagnose, score
from ww_opt.spectral.scores import judged


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def roles(source: Any) -> dict[str, str]:
    return {row.name: row.role.name for row in diagnose(source)}


def names(source: Any) -> list[str]:
    return [row.name for row in judged(diagnose(source))]


class TestFiles:
    def test_what_is_no_weight_of_a_layer_is_a_row_beside_the_score(self) -> None:
        state = {
            "fc1.weight": torch.randn(64, 64), "fc1.bias": torch.zeros(64), "fc2.weight": torch.randn(64, 64),
            "fc2.bias": torch.zeros(64), "head.weight": torch.randn(40, 64), "head.bias": torch.zeros(40),
            "attn.bias": torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64), "pe": torch.randn(64, 64),
            "confmat": torch.rand(64, 64), "attn.relative_coords_table": torch.randn(1, 64, 64, 2),
            "codes.weight": torch.ones(64, 64), "causal.weight": torch.tril(torch.ones(64, 64)),
            "norm.weight": torch.randn(64, 64), "layer.weight": torch.randn(64, 64), "layer.bias": torch.randn(64, 64),
            "mask": torch.full((64, 64), -torch.inf).triu(1), "w": torch.randn(64, 64),
        }  # fmt: skip
        found = roles(state)
        assert [name for name, role in found.items() if role == "HIDDEN"] == ["fc1", "fc2"]
        assert found["head"] == "HEAD"
        assert found["w"] == "UNSURE"
        others = [name for name, role in found.items() if role == "TABLE"]
        assert set(others) == set(found) - {"fc1", "fc2", "head", "w"}
        assert names(state) == ["fc1", "fc2"]
        assert torch.isfinite(torch.tensor(score(state)))  # though the mask is not
        texts = {row.name: row.in_score for row in diagnose(state)}
        assert texts["fc1"] == "yes"
        assert texts["pe"].startswith("no: a table")
        assert diagnose(state).records()[0]["role"] == "HIDDEN"

    @pytest.mark.parametrize(
        ("key", "shape", "kind", "role"),
        [
            ("moe.input_linear.weight", (6, 96, 64), "parameter", "HIDDEN"),
            ("moe.conv.weight", (64, 48, 128), "conv1d", "HIDDEN"),
            ("net.0.weight", (64, 1, 80), "conv1d", "HIDDEN"),
            ("net.0.weight", (64, 48, 7), "conv1d", "HIDDEN"),
            ("patch.proj.weight", (64, 3, 32, 32), "conv2d", "HIDDEN"),
            ("attn.weight", (1, 1, 128, 128), "parameter", "UNSURE"),
            ("experts.gate_up_proj", (6, 64, 96), "parameter", "HIDDEN"),
            ("experts.gate_up_proj_bias", (6, 96), "parameter", "TABLE"),
            ("prototypes", (6, 64, 96), "parameter", "TABLE"),
            ("something", (6, 64, 96), "parameter", "UNSURE"),
        ],
    )
    def test_kinds_of_three_and_more_dimensions(self, key: str, shape: tuple[int, ...], kind: str, role: str) -> None:
        rows = {row.parameter: row for row in diagnose({key: torch.randn(shape), "fc.weight": torch.randn(64, 64)})}
        assert (rows[key].kind, rows[key].role.name) == (kind, role)

    def test_a_layer_that_starts_from_zeros_is_no_mask(self) -> None:
        state = {"fc1.weight": torch.zeros(64, 64), "fc1.bias": torch.zeros(64), "fc2.weight": torch.randn(64, 64)}
        assert roles(state)["fc1"] == "HIDDEN"
        state["fc1.weight"] = torch.full((64, 64), torch.nan)  # a training that diverged: broken, and no table
        assert math.isnan(score(state))

    def test_a_stack_is_read_as_its_matrices(self) -> None:
        weight = torch.randn(6, 96, 64)
        row = diagnose({"moe.input_linear.weight": weight}).rows[0]
        assert (row.n_matrices, row.N, row.M) == (6, 96, 64)
        assert row.spectral_norm == pytest.approx(max(torch.linalg.matrix_norm(w, 2).item() for w in weight))

    def test_where_the_output_layer_cannot_be_told_a_note_says_so(self) -> None:
        model = tree(a=nn.Linear(64, 64), b=nn.Linear(64, 64))
        for source in (model, model.state_dict()):
            diagnosis = diagnose(source)
            assert "cannot be told" in diagnosis.note
            assert all("cannot be told" in row.note for row in diagnosis)
            assert len(judged(diagnosis)) == 2
        assert diagnose(tree(a=nn.Linear(64, 64), head=nn.Linear(64, 64))).note == ""


class TestAdapters:
    def net(self, **options: Any) -> nn.Module:
        adapted = {name: Lora(nn.Linear(64, 64).requires_grad_(False), (64, 64), ("a", "b")) for name in ("fc1", "fc2")}
        for layer in adapted.values():
            for key, value in options.items():
                setattr(layer, key, value)
        return nn.ModuleDict({**adapted, "head": nn.Linear(64, 10)})

    def weight(self, model: nn.Module, *active: str) -> torch.Tensor:
        layer = model["fc1"]  # type: ignore[index]
        sides = [(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]) for name in active]
        return layer.base_layer.weight + sum(scaling * b @ a for a, b, scaling in sides)

    @pytest.mark.parametrize(
        ("options", "active", "name"),
        [
            ({}, ("a", "b"), "fc1.merged"),
            ({"active_adapters": ["b"]}, ("b",), "fc1.merged"),
            ({"active_adapters": []}, (), "fc1"),
            ({"disable_adapters": True}, (), "fc1"),
            ({"merged": True}, (), "fc1"),
        ],
    )
    def test_what_the_network_multiplies_with_is_judged_once(
        self, options: dict[str, Any], active: tuple[str, ...], name: str
    ) -> None:
        model = self.net(**options)
        assert names(model) == [name, name.replace("1", "2")]
        [row] = [row for row in diagnose(model) if row.name == name]
        assert row.frobenius_norm == pytest.approx(self.weight(model, *active).norm().item())
        assert set(roles(model).values()) <= {"HIDDEN", "HEAD", "ADAPTER", "BASE"}

    def test_what_cannot_be_merged_is_unsure(self) -> None:
        model = self.net(lora_magnitude_vector=nn.ModuleDict({"a": nn.Linear(1, 1)}))
        assert roles(model)["fc1"] == "UNSURE"
        assert names(model) == []
        with pytest.raises(ValueError, match="merge_and_unload"):
            score(model)

    def test_an_adapter_of_another_kind(self) -> None:
        layer = tree(base_layer=nn.Linear(64, 64), hada_w1_a__default=nn.Linear(64, 64))
        layer.active_adapter = "default"  # type: ignore[assignment]
        model = tree(fc1=layer, fc2=nn.Linear(64, 64), head=nn.Linear(64, 10))
        assert names(model) == ["fc2"]
        assert roles(model)["fc1.hada_w1_a.default"] == "ADAPTER"
        assert roles(model)["fc1"] == "UNSURE"
        layer.merged = True  # type: ignore[assignment]
        assert names(model) == ["fc1", "fc2"]

    def test_a_switch_is_seen_though_no_number_changes(self) -> None:
        model = self.net()
        before = score(model)
        model["fc1"].scaling["a"] = 7.0  # type: ignore[index]
        assert score(model) != before
        model["fc1"].disable_adapters = True  # type: ignore[index]
        assert names(model) == ["fc1", "fc2.merged"]

    def test_of_a_layer_that_is_trained_as_a_whole_the_copy_in_use_counts(self) -> None:
        wrapper = tree(original_module=nn.Linear(64, 64).requires_grad_(False), modules_to_save__a=nn.Linear(64, 64))
        wrapper.modules_to_save = nn.ModuleDict({"a": nn.Linear(64, 64)})
        model = tree(fc1=nn.Linear(64, 64), fc2=wrapper, head=nn.Linear(64, 10))
        for source in (model, model.state_dict()):
            assert names(source) == ["fc1", "fc2.modules_to_save.a"]
            assert roles(source)["fc2.original_module"] == "BASE"

    def test_from_a_state_dict_the_base_is_unsure(self) -> None:
        found = diagnose(self.net().state_dict())
        assert {row.name: row.role.name for row in found}["fc1"] == "UNSURE"
        assert "scaling" in found.rows[0].note
        assert {row.name: row.role.name for row in found}["head"] == "HEAD"
        with pytest.raises(ValueError, match=r"fc1, is not sure.*pass the model itself, adapters merged"):
            score(self.net().state_dict())

    @pytest.mark.parametrize(
        "name", ["adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors"]
    )
    def test_adapters_alone_are_refused(self, name: str, tmp_path: Path) -> None:
        state = {f"base_model.model.q.lora_{side}.weight": torch.randn(64, 64) for side in "AB"}
        (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)  # type: ignore[operator]
        (tmp_path / "adapter_config.json").write_text("{}")
        for source in (tmp_path, tmp_path / name, state):
            with pytest.raises(ValueError, match=r"Adapters alone cannot be scored.*merge_and_unload") as caught:
                score(source)
            assert "wide" not in str(caught.value)

    def test_adapters_beside_a_whole_model_are_not_read(self, tmp_path: Path) -> None:
        save_file(
            {"q.lora_A.weight": torch.randn(4, 64), "q.lora_B.weight": torch.randn(64, 4)},
            tmp_path / "adapter_model.safetensors",
        )
        save_file({"fc.weight": torch.randn(64, 64), "fc.bias": torch.zeros(64)}, tmp_path / "model.safetensors")
        save_file({"fc.weight": torch.randn(64, 64).half()}, tmp_path / "model.fp16.safetensors")
        assert list(roles(tmp_path)) == ["fc"]


class TestFrozen:
    def net(self) -> nn.Module:
        return tree(body=nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), head=nn.Linear(64, 40))

    def test_a_layer_that_no_step_changes_is_not_judged(self) -> None:
        model = self.net()
        model.body[0].requires_grad_(False)  # type: ignore[index,operator]
        assert names(model) == ["body.2"]
        before = score(model)
        with torch.no_grad():
            model.body[0].weight.mul_(100.0)  # type: ignore[index,operator,union-attr]
        assert score(model) == before
        [row] = [row for row in diagnose(model) if row.name == "body.0"]
        assert row.role.name == "FROZEN"
        assert "file" in row.note
        assert "frozen" in row.in_score

    def test_freezing_is_seen_though_no_number_changes(self) -> None:
        model = self.net()
        assert names(model) == ["body.0", "body.2"]
        model.body[0].requires_grad_(False)  # type: ignore[index,operator]
        assert names(model) == ["body.2"]
        model.body[0].requires_grad_(True)  # type: ignore[index,operator]
        assert names(model) == ["body.0", "body.2"]

    @pytest.mark.parametrize("is_head_trained", [False, True])
    def test_where_all_are_frozen_they_are_judged_as_in_a_file(self, is_head_trained: bool) -> None:
        model = self.net()
        expected = score(model.state_dict())
        model.requires_grad_(False)
        model.head.requires_grad_(is_head_trained)  # type: ignore[operator,union-attr]
        assert names(model) == ["body.0", "body.2"]
        assert score(model) == pytest.approx(expected, rel=1e-12)
        assert "training cannot change it" in diagnose(model).rows[0].note

    def test_a_trained_layer_too_narrow_to_be_judged_leaves_the_frozen_ones_judged(self) -> None:
        model = self.net()
        model.requires_grad_(False)
        model.head = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 40))
        assert names(model) == ["body.0", "body.2"]
        assert score(model) == pytest.approx(score(model.state_dict()), rel=1e-12)


class TestRefusals:
    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ({"fc.weight": torch.randn(20, 20), "fc.bias": torch.zeros(20)}, "widest of 1 hidden layers has 20"),
            (
                {"pos_embed": torch.randn(1, 64, 64), "fc.weight": torch.randn(1, 20)},
                "none of 1 hidden layers could be",
            ),
            ({"pos_embed": torch.randn(1, 64, 64)}, "none of 1 weights is sure to be one.*pos_embed"),
            ({"theta": torch.randn(64, 64)}, "nn.Linear"),
            ({"w1": torch.randn(64, 64)}, "bare parameter"),
        ],
    )
    def test_the_reason_is_true(self, source: dict[str, torch.Tensor], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            score(source)


def test_judged_rows_of_the_models_that_the_evidence_was_measured_with() -> None:
    hidden = ["hidden1", "hidden2", "hidden3"]
    assert names(mlp(40, 64, 10)) == hidden
    assert names(_cnn(True)) == names(_cnn(False)) == ["conv2", "conv3"]
    layers = ("query", "key", "value", "project", "expand", "contract")
    assert names(_Transformer(50, 64)) == [f"blocks.{block}.{layer}" for block in range(2) for layer in layers]
    # names as in akamaster/pytorch_resnet_cifar10's files
    state = {f"module.layer{i}.0.conv{j}.weight": torch.randn(32, 32, 3, 3) for i in (1, 2) for j in (1, 2)}
    state |= {"module.linear.weight": torch.randn(33, 32), "module.linear.bias": torch.zeros(33)}
    assert names(state) == [key.removeprefix("module.").removesuffix(".weight") for key in list(state)[:4]]


def test_a_copy_and_a_pickled_row_keep_their_roles() -> None:
    model = mlp(40, 64, 10)
    assert roles(copy.deepcopy(model)) == roles(model)
    json.dumps(diagnose(model).records())
