"""Which layers share their settings, for names as libraries give them; and the table that shows it."""

import copy
import pickle

import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import nn

from ww_opt import LayerwiseSpace
from ww_opt.training.description import description
from ww_opt.training.labels import LayerName, by_block, by_depth, by_kind, by_layer, by_prefix, parts, tied
from ww_opt.training.layerwise import labelled


class BertSelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(0.1)


class BertOutput(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, n_out)
        self.LayerNorm = nn.LayerNorm(n_out)
        self.dropout = nn.Dropout(0.1)


def bert_layer(width: int) -> nn.Module:
    layer = nn.Module()
    layer.attention = nn.Module()
    layer.attention.self = BertSelfAttention(width)
    layer.attention.output = BertOutput(width, width)
    layer.intermediate = nn.Module()
    layer.intermediate.dense = nn.Linear(width, 4 * width)
    layer.output = BertOutput(4 * width, width)
    return layer


def bert(n_layers: int = 2, width: int = 8) -> nn.Module:
    """A BertForSequenceClassification by its names."""
    model, body = nn.Module(), nn.Module()
    body.embeddings = nn.Module()
    body.embeddings.word_embeddings = nn.Embedding(10, width)
    body.embeddings.position_embeddings = nn.Embedding(10, width)
    body.embeddings.token_type_embeddings = nn.Embedding(2, width)
    body.embeddings.LayerNorm = nn.LayerNorm(width)
    body.embeddings.dropout = nn.Dropout(0.1)
    body.encoder = nn.Module()
    body.encoder.layer = nn.ModuleList([bert_layer(width) for _ in range(n_layers)])
    body.pooler = nn.Module()
    body.pooler.dense = nn.Linear(width, width)
    model.bert = body
    model.dropout = nn.Dropout(0.1)
    model.classifier = nn.Linear(width, 3)
    return model


SPACE = {
    "lr": FloatDistribution(1e-5, 1e-3, log=True),
    "weight_decay": FloatDistribution(1e-4, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.3),
}


class TestDepth:
    def test_a_two_layer_bert_gives_a_label_a_block_the_embeddings_and_the_head(self) -> None:
        groups = labelled(bert(), by_depth)
        assert list(groups) == ["stem", "bert.encoder.layer.0", "bert.encoder.layer.1", "head"]
        assert [layer.name for layer in groups["head"]] == ["bert.pooler.dense", "classifier"]
        assert {layer.name.split(".")[1] for layer in groups["stem"]} == {"embeddings"}

    def test_that_is_twelve_parameters(self) -> None:
        assert len(LayerwiseSpace(**SPACE, label=by_depth).parameters(bert())) == 12  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["0", "2", "4"], ["0", "2", "4"]),
            (["stem", "body"], ["stem", "body"]),
            (["conv1", "layer1.0.conv1", "layer1.0.conv2", "fc"], ["stem", "layer1.0", "layer1.0", "head"]),
            (["e.b.0.l.1.q", "bridge", "d.b.0.l.1.q", "lm"], ["e.b.0", "bridge", "d.b.0", "head"]),
            ([], []),
        ],
    )
    def test_a_block_ends_at_the_first_number(self, names: list[str], expected: list[str]) -> None:
        assert parts(names) == expected


class TestKind:
    def test_of_bert(self) -> None:
        groups = labelled(bert(1), by_kind)
        assert {label: len(members) for label, members in groups.items()} == {
            "embedding": 3,
            "attention": 4,
            "linear": 4,
        }

    def test_of_others(self) -> None:
        class Experts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w1 = nn.Parameter(torch.zeros(3, 4, 4))

        model = nn.ModuleDict(
            {
                "conv": nn.Conv1d(1, 4, 3),
                "cell": nn.GRUCell(4, 4),
                "lstm": nn.LSTM(4, 4),
                "mha": nn.MultiheadAttention(4, 2),
                "self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4)}),
                "experts": Experts(),
                "fc": nn.Linear(4, 4),
            }
        )
        found = {str(layer.name): label for label, own in labelled(model, by_kind).items() for layer in own}
        assert found == {
            "conv": "conv",
            "cell": "recurrent",
            "lstm": "recurrent",
            "mha.in_proj_weight": "attention",
            "mha.out_proj": "attention",
            "self_attn.q_proj": "attention",
            "experts": "other",
            "fc": "linear",
        }

    @pytest.mark.parametrize("label", [by_kind, by_depth])
    def test_a_plain_string_knows_no_layer(self, label: object) -> None:
        with pytest.raises(TypeError, match=r"got the string 'fc': pass it as `label=`"):
            label("fc")  # type: ignore[operator]

    def test_a_function_of_ones_own_may_go_by_it(self) -> None:
        groups = labelled(bert(1), lambda name: name.kind if "encoder" in name else "rest")  # type: ignore[attr-defined]
        assert list(groups) == ["rest", "attention", "linear"]


class TestPrefix:
    @pytest.mark.parametrize(
        ("prefixes", "name", "label"),
        [
            ((2,), "bert.encoder.layer.0.output", "bert.encoder"),
            ((9,), "bert.pooler", "bert.pooler"),
            (("bert", "bert.encoder.layer.1"), "bert.encoder.layer.1.output", "bert.encoder.layer.1"),
            (("bert", "bert.encoder.layer.1"), "bert.encoder.layer.10.output", "bert"),
            (("bert",), "bertha", "rest"),
            (("bert",), "bert", "bert"),
        ],
    )
    def test_the_longest_that_fits(self, prefixes: tuple[str | int, ...], name: str, label: str) -> None:
        assert by_prefix(*prefixes)(name) == label

    @pytest.mark.parametrize("prefixes", [(), ("",), (0,)])
    def test_empty_ones_are_refused(self, prefixes: tuple[str | int, ...]) -> None:
        with pytest.raises(ValueError, match=r"depth=0|not empty"):
            by_prefix(*prefixes)

    @pytest.mark.parametrize("prefixes", [(1, 2), (True,), ("a", 1), (1.5,)])
    def test_other_types_are_refused(self, prefixes: tuple[str | int, ...]) -> None:
        with pytest.raises(TypeError, match="one number or strings"):
            by_prefix(*prefixes)


def test_a_name_survives_copies() -> None:
    name = LayerName("fc", "linear", "head")
    for twin in (copy.deepcopy(name), pickle.loads(pickle.dumps(name))):
        assert (twin, twin.kind, twin.part) == ("fc", "linear", "head")


@pytest.mark.parametrize("label", [by_layer, by_block(), by_prefix("x"), by_prefix(1), tied])
def test_labels_are_plain_strings(label: object) -> None:
    assert type(label(LayerName("fc"))) is str  # type: ignore[operator]


def test_the_table_shows_what_belongs_together() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4, bias=False))
    assert description(model).splitlines() == [
        "label  layer  kind    weights  not decayed             dropout",
        "-----  -----  ------  -------  ----------------------  -------",
        "0      0      linear  weight   bias, 1.weight, 1.bias  2",
        "3      3      linear  weight   -                       -",
    ]
    assert LayerwiseSpace(lr=0.1, label=tied).describe(model).splitlines()[2].startswith("all    0")
