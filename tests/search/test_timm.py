"""Spaces for timm's models and timm's optimizers, as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn

from tests.frameworks import framework
from ww_opt import LayerwiseSpace, SpectralObjective, Task, by_block, by_depth, by_kind
from ww_opt.training.layerwise import labelled, layers
from ww_opt.training.present import is_decoupled, present

timm = framework("timm")
optim = framework("timm.optim")

_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, **_VIT),
    "beit": lambda: timm.create_model("beit_base_patch16_224", num_classes=10, **_VIT),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=10, depths=(1, 1), embed_dim=24, num_heads=(1, 2)
    ),
    "resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=10),
    "mixer": lambda: timm.models.mlp_mixer.MlpMixer(10, img_size=32, patch_size=16, num_blocks=2, embed_dim=32),
}
LATE_NORM = {"beit": {"fc_norm.weight", "fc_norm.bias"}}
"""Norms that timm counts to the head, and that follow the last block here."""


@functools.cache
def built(name: str) -> nn.Module:
    return MODELS[name]()


@functools.cache
def optimizer(name: str) -> torch.optim.Optimizer:
    """What timm recommends for fine-tuning: rates that fall with depth, and its own grouping of what is decayed."""
    return optim.create_optimizer_v2(built(name), opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)


def group_of(name: str) -> dict[str, dict[str, Any]]:
    names = {id(own): key for key, own in built(name).named_parameters()}
    return {names[id(own)]: group for group in optimizer(name).param_groups for own in group["params"]}


@pytest.mark.parametrize("name", MODELS)
class TestEveryModel:
    def test_what_timm_decays_is_what_is_decayed(self, name: str) -> None:
        decayed = {key for key, group in group_of(name).items() if group["weight_decay"]}
        found = layers(built(name))
        assert {key for layer in found for key in layer.weights} == decayed
        assert {key for layer in found for key in layer.followers} == set(group_of(name)) - decayed

    def test_biases_norms_and_tokens_belong_to_a_layer_of_their_depth(self, name: str) -> None:
        scale = {key: group["lr_scale"] for key, group in group_of(name).items()}
        apart = {
            key
            for layer in layers(built(name))
            for key in layer.followers
            if {scale[key]} != {scale[own] for own in layer.weights}
        }
        assert apart == LATE_NORM.get(name, set())

    def test_the_rate_of_a_layer_is_that_of_its_group_times_its_scale(self, name: str) -> None:
        model, groups = built(name), group_of(name)
        found = present(model, optimizer(name)).settings
        for label, (layer,) in labelled(model).items():
            own = groups[layer.weights[0]]
            assert found[label].lr == pytest.approx(1e-3 * own["lr_scale"])
            assert found[label].weight_decay == 0.05
        assert len({own.lr for own in found.values()}) > 3, "rates fall with depth"

    def test_around_lays_a_space_that_holds_the_present_and_describes_it(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = built(name)
        space = LayerwiseSpace.around(model, optimizer(name), init_scale=True)
        start = space.present(model, optimizer(name))
        assert list(start) == list(space.parameters(model))
        assert not caplog.messages
        assert len(space.describe(model).splitlines()) == 2 + len(layers(model))

    def test_kinds(self, name: str) -> None:
        expected = {"vit": 3, "beit": 3, "swin": 3, "resnet18": 2, "convnext": 2, "mixer": 2}[name]
        found = labelled(built(name), by_kind)
        assert set(found) <= {"conv", "attention", "linear"}
        assert len(found) == expected
        space = LayerwiseSpace.around(built(name), torch.optim.AdamW, label=by_kind)
        assert [own for own in space.parameters(built(name)) if own.startswith("lr/")] == [f"lr/{own}" for own in found]


@pytest.mark.parametrize(
    ("name", "depth", "block"),
    [
        ("vit", "stem blocks.0 blocks.1 head", "patch_embed blocks.0.attn blocks.0.mlp blocks.1.attn"),
        ("mixer", "stem blocks.0 blocks.1 head", "stem blocks.0.mlp_tokens blocks.0.mlp_channels"),
        ("swin", "stem layers.0 layers.1 head", "patch_embed layers.0.blocks.0.attn"),
        ("resnet18", "stem layer1.0 layer1.1 layer2.0", "conv1 layer1.0 layer1.1 layer2.0 layer2.0.downsample"),
        ("convnext", "stem.0 stages.0 stages.1 stages.2 stages.3 head", "stem stages.0.blocks.0 stages.0.blocks.0.mlp"),
    ],
)
def test_blocks(name: str, depth: str, block: str) -> None:
    for label, expected in ((by_depth, depth.split()), (by_block(), block.split())):
        assert list(labelled(built(name), label))[: len(expected)] == expected


@pytest.mark.parametrize("name", ["vit", "mixer", "swin", "beit", "resnet18"])
def test_blocks_share_a_rate_that_falls_with_depth(name: str) -> None:
    rates = [own.lr for own in present(built(name), optimizer(name), by_depth).settings.values()]
    assert rates == pytest.approx([1e-3 * 0.75**n for n in reversed(range(len(rates)))])


def test_what_has_several_rates_cannot_share_a_label_and_the_remedy_works() -> None:
    with pytest.raises(ValueError, match=r"must share `lr`, but those of label 'attention'.*label=by_layer"):
        LayerwiseSpace.around(built("vit"), optimizer("vit"), label=by_kind)
    assert LayerwiseSpace.around(built("vit"), optimizer("vit")).lr


@pytest.mark.parametrize(
    ("opt", "decoupled"), [("adamw", True), ("sgd", False), ("lamb", True), ("lion", True), ("lookahead_adamw", True)]
)
def test_a_trial_trains_with_timms_optimizers(opt: str, decoupled: bool) -> None:
    def factory(groups: Any) -> torch.optim.Optimizer:
        return optim.create_optimizer_v2(groups, opt=opt, lr=1e-3, weight_decay=0.05)

    def batches() -> list[Any]:
        return [(torch.randn(4, 3, 32, 32), torch.arange(4))]

    task = Task(
        MODELS["mixer"],
        batches,
        lambda own, batch: nn.functional.cross_entropy(own(batch[0]), batch[1]),
        optimizer=factory,
    )
    space = LayerwiseSpace.around(built("mixer"), factory, label=by_depth, init_scale=True)
    assert is_decoupled(present(built("mixer"), factory).optimizer) is decoupled
    start = space.present(built("mixer"), factory)
    assert {value for key, value in start.items() if key.startswith("lr/")} == {1e-3}
    assert SpectralObjective(task, space, n_steps=1, guard=True)(FixedTrial(start)) > 0
