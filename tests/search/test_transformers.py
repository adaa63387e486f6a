"""Spaces for Hugging Face's models and the groups of its Trainer, as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn

from tests.frameworks import framework
from ww_opt import LayerwiseSpace, SpectralObjective, Task, by_block, by_depth, by_kind
from ww_opt.training.layerwise import labelled, layers
from ww_opt.training.present import present

hf = framework("transformers", "BertModel", "ViTModel", "Trainer")
framework("accelerate")

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_TEXT = {**_SIZES, "vocab_size": 50}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
_T5 = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8, "decoder_start_token_id": 0}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_TEXT)),
    "bert-mlm": lambda: hf.BertForMaskedLM(hf.BertConfig(**_TEXT)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, **_GPT2)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT)),
    "llama-tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT, tie_word_embeddings=True)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**_SIZES, image_size=32, patch_size=16)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=50, **_T5)),
}
TABLES = {"vit": {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}}
"""Tokens and position tables that are parameters of their own: the Trainer decays them, papers and timm do not."""


@functools.cache
def built(name: str) -> nn.Module:
    return MODELS[name]()


def trainers_optimizer(name: str, directory: Path) -> torch.optim.Optimizer:
    options = hf.TrainingArguments(
        output_dir=str(directory), learning_rate=3e-4, weight_decay=0.01, report_to=[], use_cpu=True
    )
    return hf.Trainer(model=built(name), args=options).create_optimizer()


@pytest.mark.parametrize("name", MODELS)
class TestEveryModel:
    def test_the_trainers_groups_are_read_and_agree_in_what_is_decayed(self, name: str, tmp_path: Path) -> None:
        model, optimizer = built(name), trainers_optimizer(name, tmp_path)
        for label in (by_depth, by_kind, by_block()):
            found = present(model, optimizer, label).settings
            assert {(own.lr, own.weight_decay, own.momentum) for own in found.values()} == {(3e-4, 0.01, 0.9)}
        names = {id(own): key for key, own in model.named_parameters()}
        decayed = {
            names[id(own)] for group in optimizer.param_groups if group["weight_decay"] for own in group["params"]
        }
        found_decayed = {key for layer in layers(model) for key in layer.weights}
        assert found_decayed <= decayed
        assert decayed - found_decayed == TABLES.get(name, set())

    def test_every_parameter_has_one_place_tied_ones_too(self, name: str) -> None:
        found = [key for layer in layers(built(name)) for key in (*layer.weights, *layer.followers)]
        assert sorted(found) == sorted(key for key, _ in built(name).named_parameters())

    def test_biases_and_norms_stay_in_their_block(self, name: str) -> None:
        def block(key: str) -> str:
            steps = key.split(".")
            first = next((n for n, step in enumerate(steps) if step.isdigit()), None)
            return "" if first is None else ".".join(steps[: first + 1])

        for layer in layers(built(name)):
            assert {block(key) for key in layer.followers} <= {block(layer.name), ""}

    def test_around_lays_a_space_that_holds_the_present_and_trains(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        factory = functools.partial(torch.optim.AdamW, lr=3e-4)
        model = built(name)
        space = LayerwiseSpace.around(model, factory, label=by_depth, init_scale=True)
        start = space.present(model, factory)
        assert list(start) == list(space.parameters(model))
        assert not caplog.messages
        assert {own.partition("/")[2] for own in start} == set(labelled(model, by_depth))
        tokens = torch.arange(8).reshape(2, 4)
        labels = torch.tensor([0, 1]) if name in ("bert", "vit") else tokens
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32)} if name == "vit" else {"input_ids": tokens}
        task = Task(
            MODELS[name],
            lambda: [{**inputs, "labels": labels}],
            lambda own, batch: own(**batch).loss,
            optimizer=factory,
        )
        scaled = start | {own: 2.0 for own in start if own.startswith("init_scale/")}
        values = [SpectralObjective(task, space, n_steps=1, guard=True)(FixedTrial(own)) for own in (start, scaled)]
        assert values[0] != values[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", "stem bert.encoder.layer.0 bert.encoder.layer.1 head"),
        ("gpt2", "stem transformer.h.0 transformer.h.1"),
        ("llama", "stem model.layers.0 model.layers.1 head"),
        ("llama-tied", "stem model.layers.0 model.layers.1"),
        ("vit", "stem vit.layers.0 vit.layers.1 head"),
        ("t5", "stem encoder.block.0 encoder.block.1 decoder.block.0 decoder.block.1"),
    ],
)
def test_blocks(name: str, expected: str) -> None:
    assert list(labelled(built(name), by_depth)) == expected.split()


@pytest.mark.parametrize("name", MODELS)
def test_kinds(name: str) -> None:
    first = "conv" if name == "vit" else "embedding"
    assert list(labelled(built(name), by_kind)) == [first, "attention", "linear"]


def test_weights_that_are_tied_are_scaled_once() -> None:
    for name in ("gpt2", "t5", "bert-mlm"):
        model = MODELS[name]()
        embedding: Any = model.get_input_embeddings()
        before = embedding.weight.detach().clone()
        LayerwiseSpace(init_scale=2.0).configure(FixedTrial({}), model)
        torch.testing.assert_close(embedding.weight, 2.0 * before)
        assert model.get_output_embeddings().weight is embedding.weight


def test_dropout_is_read_and_set() -> None:
    model = MODELS["bert"]()
    space = LayerwiseSpace(dropout=0.3)
    space.configure(FixedTrial({}), model)
    assert {own.p for own in model.modules() if isinstance(own, nn.Dropout)} == {0.3}
    assert {own.dropout for own in present(model, torch.optim.AdamW, by_depth).settings.values()} == {0.3}
