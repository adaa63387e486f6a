"""What the model exempts is not decayed, and what stands beside layers is none."""

from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import nn
from torch.nn.utils import parametrizations

from ww_opt import LayerwiseSpace
from ww_opt.training.decay import is_table
from ww_opt.training.layerwise import LayerSettings, layers, parameter_groups


class ViT(nn.Module):
    """By timm's names."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.patch_embed = nn.Sequential(nn.Conv2d(1, 8, 4, 4))
        self.blocks = nn.Sequential(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)))
        self.head = nn.Linear(8, 3)


class Listed(ViT):
    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "head.*"}


class Mixer(nn.Module):
    """By Mamba's names."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(8, 8)
        self.conv1d = nn.Conv1d(8, 8, 3)
        self.A_log = nn.Parameter(torch.zeros(8, 4))
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D = nn.Parameter(torch.ones(8))
        self.out_proj = nn.Linear(8, 8)


def decayed(model: nn.Module) -> set[str]:
    settings = {layer.name: LayerSettings(weight_decay=0.1) for layer in layers(model)}
    groups = parameter_groups(model, settings)
    held = [name for group in groups for name, _ in group["params"]]
    assert sorted(held) == sorted(name for name, own in model.named_parameters() if own.requires_grad)
    return {name for group in groups if group["weight_decay"] > 0 for name, _ in group["params"]}


class TestExempt:
    def test_by_the_models_own_list(self) -> None:
        assert decayed(Listed()) == {"patch_embed.0.weight", "blocks.0.1.weight"}

    def test_by_the_list_of_a_part(self) -> None:
        assert decayed(nn.ModuleDict({"trunk": Listed()})) == {"trunk.patch_embed.0.weight", "trunk.blocks.0.1.weight"}

    def test_by_keywords(self) -> None:
        class Swin(ViT):
            def no_weight_decay_keywords(self) -> set[str]:
                return {"blocks"}

        assert decayed(Swin()) == {"patch_embed.0.weight", "head.weight"}

    @pytest.mark.parametrize(
        ("name", "mark"), [("_no_weight_decay", True), ("_optim", {"weight_decay": 0.0}), ("_optim", {"lr": 0.1})]
    )
    def test_by_a_mark(self, name: str, mark: Any) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        setattr(model[0].weight, name, mark)
        expected = {"1.weight"} if "lr" not in str(mark) else {"0.weight", "1.weight"}
        assert decayed(model) == expected

    def test_a_parametrised_weight_goes_by_its_own_name(self) -> None:
        class Own(nn.Sequential):
            no_weight_decay = ("0.weight",)

        assert decayed(Own(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))) == {"1.weight"}

    def test_a_wrapper_hides_nothing(self) -> None:
        wrapped: Any = torch.compile(Listed(), backend="eager")
        settings = {layer.name: LayerSettings(weight_decay=0.1) for layer in layers(wrapped)}
        groups = parameter_groups(wrapped, settings)
        found = {name for group in groups if group["weight_decay"] > 0 for name, _ in group["params"]}
        assert found == {"patch_embed.0.weight", "blocks.0.1.weight"}

    def test_there_is_no_dimension_for_it(self) -> None:
        space = LayerwiseSpace(lr=FloatDistribution(0.1, 0.2), weight_decay=FloatDistribution(0.1, 0.2))
        names = set(space.parameters(Listed()))
        assert "lr/head" in names
        assert "weight_decay/head" not in names
        with pytest.raises(ValueError, match=r"but got \['head'\]; labels with one: \['blocks.0.1'"):
            LayerwiseSpace(weight_decay={"head": 0.1}).parameters(Listed())


class TestBeside:
    def test_tokens_and_tables_join_the_first_layer_inside(self) -> None:
        assert [layer.name for layer in layers(ViT())] == ["patch_embed.0", "blocks.0.1", "head"]
        assert layers(ViT())[0].followers[:2] == ("cls_token", "pos_embed")

    def test_those_of_a_block_join_that_block(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), Mixer())
        found = {str(layer.name): layer.followers for layer in layers(model)}
        assert list(found) == ["0", "1.in_proj", "1.conv1d", "1.out_proj"]
        assert found["1.in_proj"] == ("1.A_log", "1.D", "1.in_proj.bias")

    def test_experts_are_a_layer(self) -> None:
        model = nn.Module()
        model.router, model.w1 = nn.Linear(8, 3), nn.Parameter(torch.zeros(3, 8, 8))
        assert [layer.name for layer in layers(model)] == ["w1", "router"]

    def test_prompts_alone_are_layers(self) -> None:
        model = ViT().requires_grad_(False)
        model.pos_embed.requires_grad_(True)
        assert [layer.name for layer in layers(model)] == ["pos_embed"]

    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("cls_token", (1, 1, 8), True),
            ("layer_scale", (8, 1, 1), True),
            ("registers", (1, 4, 8), True),
            ("positional_embedding", (4, 8), True),
            ("rel_pos_h", (4, 8), True),
            ("posEmbed", (4, 8), True),
            ("relative_position_bias_table", (4, 8), True),
            ("A_log", (4, 8), True),
            ("proj", (4, 8), False),
            ("composed", (4, 8), False),
            ("fc.weight", (1, 8), False),
            ("in_proj_weight", (24, 8), False),
            ("weight_hh_l0", (32, 8), False),
            ("experts.w1", (3, 8, 8), False),
            ("fc.parametrizations.weight.original0", (8, 1), False),
        ],
    )
    def test_what_a_table_is(self, name: str, shape: tuple[int, ...], expected: bool) -> None:
        assert is_table(name, torch.zeros(shape)) is expected
