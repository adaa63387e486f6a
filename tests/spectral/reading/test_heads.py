"""Output layers by names, shapes and ties; never by the order of rows."""

from __future__ import annotations

import random

import pytest

from ww_opt.spectral.reading.heads import Layer, find_heads
from ww_opt.spectral.reading.names import is_embedding, is_stack, is_table, named_output


def layers(text: str) -> list[Layer]:
    """``name out in, name out in, ...``"""
    found = []
    for line in text.split(","):
        path, *sides = line.split()
        shape = tuple(map(int, sides))
        found.append(Layer(path, "linear" if len(shape) == 2 else f"conv{len(shape) - 2}d", shape, True, True))
    return found


CASES = [
    # names, wherever they stand
    ("stem 64 50, trunk 64 64, classifier 100 64", {"classifier"}),
    ("body 64 64, head 40 64, head_dist 40 64", {"head", "head_dist"}),
    ("trunk 64 64, heads.0 40 64, heads.1 40 64", {"heads.0", "heads.1"}),
    ("trunk 64 64, heads.a.0 64 64, heads.a.2 40 64, heads.b 33 64", {"heads.a.2", "heads.b"}),
    ("fc1 64 50, fc2 64 64, out 64 64", {"out"}),
    ("a 64 64, b 64 64, final 64 64", {"final"}),
    ("a 64 64, b 64 64, prediction 64 64", {"prediction"}),
    ("conv1 64 3 3 3, layer1.0.conv1 64 64 3 3, layer1.1.conv1 64 64 3 3, fc 100 64", {"fc"}),
    ("conv_stem 64 3 3 3, conv_head 96 64 1 1, classifier 40 96", {"classifier"}),
    ("features.0 64 3 3 3, classifier.0 96 256, classifier.3 96 96, classifier.6 40 96", {"classifier.6"}),
    ("bert.pooler.dense 64 64, cls.predictions.transform.dense 64 64, cls.seq_rel 2 64", {"cls.seq_rel"}),
    ("classifier.dense 64 64, classifier.out_proj 64 64, body 64 64", {"classifier.out_proj"}),
    ("conv1 64 3 3 3, decode_head.fuse 64 64 1 1, decode_head.classifier 40 64 1 1", {"decode_head.classifier"}),
    # nothing inside blocks, however it is called
    ("bert.layer.0.attention.output.dense 64 64, bert.layer.0.output.dense 64 96, bert.layer.0.mid.dense 96 64", set()),
    ("layers.0.out 40 64, layers.1.out 40 64, layers.0.fc 64 64, layers.1.fc 64 64", set()),
    ("blocks.0.sa.heads.0.key 32 64, blocks.0.sa.heads.1.key 32 64, blocks.0.proj 64 64, lm_head 65 64", {"lm_head"}),
    ("sa.heads.0.key 32 64, sa.heads.0.query 32 64, tok 64 64, lm_head 65 64", {"lm_head"}),
    # shapes
    ("trunk.0 64 50, trunk.2 64 64, age 40 64, gender 33 64", {"age", "gender"}),
    ("actor.0 64 50, actor.2 36 64, critic.0 64 50, critic.2 1 64", {"actor.2", "critic.2"}),
    ("qkv 192 64, proj 64 64, w1 128 64, w2 64 128, y 40 64", {"y"}),
    ("encoder.fc 64 64, projector.0 64 64, projector.2 48 64", {"projector.2"}),
    ("generate.0 3136 100, net.0 64 64 3 3, net.2 3 64 3 3", set()),
    ("layers.0.linear 96 64, layers.1.linear 96 96, layers.2.linear 40 96", {"layers.2.linear"}),
    # numbers, in the order of numbers
    ("net.0 64 64, net.2 64 64, net.10 64 64", {"net.10"}),
    ("fc1 64 64, fc2 64 64, fc3 64 64", {"fc3"}),
    ("net.0 64 1, net.2 64 64, net.4 1 64", {"net.4"}),
    ("0.fc1 96 64, 0.fc2 64 96, 1.fc1 96 64, 1.fc2 64 96, 2 64 64", {"2"}),
    ("0 64 64, 1.fc1 96 64, 1.fc2 64 96, 2.fc1 96 64, 2.fc2 64 96", set()),
    ("encoder.0 64 96, encoder.2 32 64, decoder.0 64 32, decoder.2 96 64", {"decoder.2"}),
    ("fc1 400 784, fc21 40 400, fc22 40 400, fc3 400 40, fc4 784 400", set()),
    # nothing would be left
    ("head 40 64", set()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES)
@pytest.mark.parametrize("prefix", ["", "module.", "base_model.model.", "1."])
def test_output_layers(text: str, expected: set[str], prefix: str) -> None:
    known = [Layer(f"{prefix}{own.path}", own.kind, own.shape, True, True) for own in layers(text)]
    for seed in range(3):
        random.Random(seed).shuffle(known)
        found = find_heads(known, False)
        assert {known[place].path.removeprefix(prefix) for place in found.places} == expected
        assert not found.doubtful
        assert not (found.candidates and found.places)


def test_where_it_cannot_be_told_all_that_may_be_it_are_named() -> None:
    known = layers("a 64 64, b 64 64, c 64 64")
    assert find_heads(known, False).candidates == {0, 1, 2}
    assert find_heads(known, True).candidates == frozenset()
    assert find_heads([known[0]], False).candidates == frozenset()


def test_a_matrix_without_a_bias_at_the_end_may_be_an_embedding() -> None:
    known = [
        *layers("fc1 64 64, fc2 64 64"),
        Layer("table_of_items", "linear", (90, 64), True, True, is_ambiguous=True),
    ]
    found = find_heads(known, False)
    assert (found.places, found.doubtful) == (frozenset(), frozenset({2}))
    last = [*layers("0 64 64, 1 64 64"), Layer("2", "linear", (90, 64), True, True, is_ambiguous=True)]
    assert find_heads(last, False).places == {2}
    first = [Layer("0", "linear", (90, 64), True, True, is_ambiguous=True), *layers("1 64 64, 2 50 64")]
    found = find_heads(first, False)
    assert (found.places, found.doubtful) == (frozenset({2}), frozenset({0}))


@pytest.mark.parametrize(
    "name",
    [
        "wte",
        "model.embed_tokens",
        "bert.embeddings.word_embeddings",
        "shared",
        "h.wpe",
        "positional_encoding",
        "pos",
        "rel.relative_attention_bias",
    ],
)
def test_embeddings(name: str) -> None:
    assert is_embedding(name)


@pytest.mark.parametrize("name", ["embed_out", "embeddings_project", "time_embedding.linear_1", "fc", "0", "emb.mlp.0"])
def test_no_embeddings(name: str) -> None:
    assert not is_embedding(name)


def test_names_of_bare_parameters() -> None:
    for leaf in (
        "pos_embed",
        "cls_token",
        "relative_position_bias_table",
        "attn_mask",
        "pe",
        "running_mean",
        "confmat",
    ):
        assert is_table(leaf), leaf
    for owner, leaf in (("mlp.experts", "gate_up_proj"), ("mlp.experts", "down_proj"), ("moe", "w1"), ("", "experts")):
        assert is_stack(owner, leaf), leaf
    for owner, leaf in (("mlp.experts", "gate_up_proj_bias"), ("", "pos_embed"), ("", "prototypes"), ("attn", "bias")):
        assert not is_stack(owner, leaf), leaf


def test_parts_that_only_sound_like_an_output_layer() -> None:
    for name in ("conv_head", "multi_head.q", "pre_classifier", "attn.talking_heads", "attention.out", "pre_logits.fc"):
        assert named_output(name.split(".")) is None, name
