"""Which parameters and dropouts belong to which layer, for the models that people have."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from ww_opt.training.dropout import add_dropout
from ww_opt.training.labels import by_block, by_layer, tied
from ww_opt.training.layerwise import (
    Layer,
    LayerSettings,
    apply_dropout,
    labelled,
    layers,
    parameter_groups,
)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 2))


class PreNorm(nn.Module):
    """What transformers are made of: bare parameters, a norm before the first matrix, attention, tied ends."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.embedding = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3)
        self.mlp = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)
        self.head.weight = self.embedding.weight


MODELS = {
    "mlp": mlp,
    "pre-norm": PreNorm,
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),
    "lstm": lambda: nn.LSTM(4, 8, 2, dropout=0.1),
    "conv": lambda: nn.Sequential(nn.BatchNorm1d(1), nn.Conv1d(1, 4, 3, bias=False), nn.BatchNorm1d(4), nn.Flatten()),
    "weight norm": lambda: nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4))),
    "root": lambda: nn.Linear(4, 4),
    "parametrised root": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "list": lambda: nn.ParameterList([torch.zeros(2, 2), torch.zeros(3), torch.zeros(2, 2)]),
}


def names_in(found: tuple[Layer, ...]) -> list[str]:
    return [name for layer in found for name in (*layer.weights, *layer.followers)]


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
class TestEveryModel:
    def test_every_trainable_parameter_has_one_place(self, build: type[nn.Module]) -> None:
        model = build()
        assert sorted(names_in(layers(model))) == sorted(name for name, _ in model.named_parameters())

    def test_frozen_parameters_have_none(self, build: type[nn.Module]) -> None:
        model = build()
        *_, (frozen, parameter) = model.named_parameters()
        parameter.requires_grad_(False)
        left = names_in(layers(model))
        assert frozen not in left
        assert sorted(left) == sorted(name for name, p in model.named_parameters() if p.requires_grad)

    def test_an_optimizer_takes_the_groups(self, build: type[nn.Module]) -> None:
        model = build()
        settings = {label: LayerSettings(lr=0.1, weight_decay=0.01) for label in labelled(model)}
        optimizer = torch.optim.AdamW(parameter_groups(model, settings))
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())

    def test_dropouts_are_modules_of_the_model(self, build: type[nn.Module]) -> None:
        model = build()
        modules = dict(model.named_modules())
        assert all(place in modules for layer in layers(model) for place in layer.dropouts)


class TestLayers:
    def test_biases_and_dropout_follow_their_layer(self) -> None:
        assert layers(mlp()) == (
            Layer("0", ("0.weight",), ("0.bias",), ("2",)),
            Layer("3", ("3.weight",), ("3.bias",), ("4",)),
            Layer("5", ("5.weight",), ("5.bias",)),
        )

    def test_attention_and_its_output_are_two_layers(self) -> None:
        assert {layer.name: layer for layer in layers(PreNorm())}["attention.in_proj_weight"].dropouts == ("attention",)
        assert [layer.name for layer in layers(PreNorm())] == [
            "embedding",
            "attention.in_proj_weight",
            "attention.out_proj",
            "mlp",
        ]

    def test_a_norm_before_the_first_matrix_joins_the_first_layer(self) -> None:
        assert layers(PreNorm())[0].followers == ("cls_token", "norm.weight", "norm.bias")

    def test_a_norm_at_the_start_of_a_block_is_the_blocks_own(self) -> None:
        def block() -> nn.Module:
            return nn.ModuleDict({"norm": nn.LayerNorm(4), "fc": nn.Linear(4, 4), "after": nn.LayerNorm(4)})

        model = nn.Sequential(nn.Linear(4, 4), block(), nn.Sequential(nn.Sequential(nn.BatchNorm1d(4)), block()))
        model.append(nn.Sequential(nn.BatchNorm1d(4)))  # no layer in its container: it belongs to what it follows
        model.append(nn.LayerNorm(4))
        assert {layer.name: layer.followers for layer in layers(model)} == {
            "0": ("0.bias",),
            "1.fc": ("1.norm.weight", "1.norm.bias", "1.fc.bias", "1.after.weight", "1.after.bias"),
            "2.1.fc": (
                *("2.0.0.weight", "2.0.0.bias", "2.1.norm.weight", "2.1.norm.bias", "2.1.fc.bias"),
                *("2.1.after.weight", "2.1.after.bias", "3.0.weight", "3.0.bias", "4.weight", "4.bias"),
            ),
        }

    def test_dropout_at_the_start_of_a_block_is_not(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(), nn.LayerNorm(4), nn.Linear(4, 4)))
        assert [layer.dropouts for layer in layers(model)] == [("1.0",), ()]

    def test_a_table_of_biases_is_no_layer_though_it_is_an_embedding(self) -> None:
        model = nn.ModuleDict({"q": nn.Linear(4, 4), "relative_attention_bias": nn.Embedding(8, 2)})
        (layer,) = layers(model)
        assert layer.followers == ("q.bias", "relative_attention_bias.weight")
        assert len(layers(nn.ModuleDict({"q": nn.Linear(4, 4), "position": nn.Embedding(8, 2)}))) == 2

    def test_a_tied_weight_counts_once_where_it_stands_first(self) -> None:
        model = PreNorm()
        (embedding,) = (layer for layer in layers(model) if layer.name == "embedding")
        assert embedding.weights == ("embedding.weight",)
        assert layers(model)[-1].followers == ("mlp.bias", "head.bias")

    def test_a_module_used_twice_counts_once(self) -> None:
        dropout = nn.Dropout()
        first, second = layers(nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), dropout) for _ in range(2))))
        assert (first.dropouts, second.dropouts) == (("0.1",), ())

    def test_a_parametrised_layer_keeps_its_own_name_and_bias(self) -> None:
        first, second = layers(nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4))))
        assert first.followers == ("0.bias",)
        assert second.name == "1"
        assert second.weights == tuple(f"1.parametrizations.weight.original{i}" for i in (0, 1))
        assert second.followers == ("1.bias",)

    def test_a_parametrised_root_is_named_after_its_weight(self) -> None:
        assert [layer.name for layer in layers(parametrizations.weight_norm(nn.Linear(4, 4)))] == ["weight"]

    def test_a_recurrent_network_is_one_layer_with_several_weights(self) -> None:
        (layer,) = layers(nn.Sequential(nn.LSTM(4, 8, 2, dropout=0.1)))
        assert layer.name == "0"
        assert layer.weights == tuple(f"0.weight_{kind}_l{depth}" for depth in (0, 1) for kind in ("ih", "hh"))
        assert layer.dropouts == ("0",)

    def test_a_single_recurrent_layer_has_no_dropout(self) -> None:
        assert layers(nn.Sequential(nn.LSTM(4, 8)))[0].dropouts == ()

    def test_a_norm_over_several_dimensions_is_no_layer(self) -> None:
        (conv,) = layers(nn.Sequential(nn.Conv1d(1, 4, 3), nn.LayerNorm([4, 6])))
        assert conv.followers == ("0.bias", "1.weight", "1.bias")

    def test_dropout_before_the_first_layer_joins_it(self) -> None:
        assert layers(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))[0].dropouts == ("0",)

    def test_a_frozen_layer_is_none_and_its_dropout_moves_on(self) -> None:
        model = mlp()
        model[0].requires_grad_(False)
        assert [(layer.name, layer.dropouts) for layer in layers(model)] == [("3", ("2", "4")), ("5", ())]

    def test_a_model_without_matrices_has_no_layers(self) -> None:
        assert layers(nn.LayerNorm(4)) == ()
        with pytest.raises(ValueError, match=r"2 or more dimensions, but LayerNorm has none"):
            labelled(nn.LayerNorm(4))

    @pytest.mark.filterwarnings("ignore:Lazy modules")
    def test_a_lazy_parameter_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"'1\.weight' first"):
            layers(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)))


class TestLabels:
    @pytest.mark.parametrize(
        ("depth", "name", "label"),
        [(1, "blocks.0.mlp", "blocks.0"), (2, "blocks.0.mlp", "blocks"), (3, "blocks.0.mlp", "blocks.0.mlp")],
    )
    def test_by_block_drops_the_last_parts(self, depth: int, name: str, label: str) -> None:
        assert by_block(depth)(name) == label

    def test_by_block_needs_a_depth(self) -> None:
        with pytest.raises(ValueError, match="depth=0"):
            by_block(0)

    @pytest.mark.parametrize(("label", "expected"), [(by_layer, ["0", "3", "5"]), (tied, ["all"])])
    def test_labelled_groups_in_order(self, label: object, expected: list[str]) -> None:
        assert list(labelled(mlp(), label)) == expected  # type: ignore[arg-type]

    def test_no_layer_is_lost_in_grouping(self) -> None:
        assert labelled(mlp(), tied)["all"] == layers(mlp())


class TestParameterGroups:
    def test_settings_reach_weights_and_biases(self) -> None:
        settings = {"all": LayerSettings(lr=0.5, weight_decay=0.25, momentum=0.75)}
        weights, followers = parameter_groups(mlp(), settings, tied)
        assert (weights["name"], weights["lr"], weights["weight_decay"], weights["momentum"]) == (
            "all",
            0.5,
            0.25,
            0.75,
        )
        assert (followers["name"], followers["lr"], followers["weight_decay"]) == ("all:no_decay", 0.5, 0.0)
        assert followers["momentum"] == 0.75
        assert [name for name, _ in followers["params"]] == ["0.bias", "3.bias", "5.bias"]

    def test_none_leaves_the_optimizers_own_value(self) -> None:
        groups = parameter_groups(mlp(), {"all": LayerSettings()}, tied)
        weights, followers = torch.optim.AdamW(groups, lr=0.125, weight_decay=0.5).param_groups
        assert (weights["lr"], weights["weight_decay"]) == (0.125, 0.5)
        assert (followers["lr"], followers["weight_decay"]) == (0.125, 0.0)

    def test_layers_without_biases_need_no_second_group(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2, bias=False))
        assert [group["name"] for group in parameter_groups(model, {"0": LayerSettings()})] == ["0"]

    def test_a_mismatch_shows_both_sides(self) -> None:
        with pytest.raises(ValueError, match=r"\['0', '3', '5'\]; settings for: \['0', 'head'\]"):
            parameter_groups(mlp(), {"0": LayerSettings(), "head": LayerSettings()})


class TestDropout:
    def test_rates_go_to_the_labels_dropout(self) -> None:
        model = mlp()
        apply_dropout(model, {"0": LayerSettings(dropout=0.5), "3": LayerSettings(), "5": LayerSettings()})
        assert [model[place].p for place in (2, 4)] == [0.5, 0.2]

    def test_attention_and_recurrent_layers_take_a_rate(self) -> None:
        model = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.GRU(4, 8, 2)])
        apply_dropout(model, {"0.in_proj_weight": LayerSettings(dropout=0.5), "1": LayerSettings(dropout=0.25)})
        assert [module.dropout for module in model] == [0.5, 0.25]
        model.train()
        x = torch.ones(3, 1, 8)
        torch.manual_seed(0)
        assert not torch.equal(model[0](x, x, x)[0], model[0](x, x, x)[0])

    def test_a_label_without_dropout_is_refused(self) -> None:
        with pytest.raises(ValueError, match="label '5' has none"):
            apply_dropout(mlp(), {"5": LayerSettings(dropout=0.5)})

    def test_a_label_that_the_model_lacks_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"'head'; labels: \['0', '3', '5'\]"):
            apply_dropout(mlp(), {"head": LayerSettings(dropout=0.5)})

    @pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
    def test_a_rate_is_a_probability(self, p: float) -> None:
        with pytest.raises(ValueError, match=f"dropout={p}"):
            apply_dropout(mlp(), {"0": LayerSettings(dropout=p)})
        with pytest.raises(ValueError, match=f"dropout={p}"):
            add_dropout(mlp(), ["0"], p)

    def test_added_dropout_acts_in_training_and_sleeps_in_eval(self) -> None:
        model = add_dropout(nn.Sequential(nn.Linear(4, 1000)), ["0"], p=0.5)
        torch.manual_seed(0)
        share = float((model(torch.ones(1, 4)) == 0).float().mean())
        assert share == pytest.approx(0.5, abs=0.1)
        assert not (model.eval()(torch.ones(1, 4)) == 0).any()

    def test_added_dropout_survives_copies_and_leaves_the_state_dict(self) -> None:
        model = add_dropout(nn.Sequential(nn.Linear(4, 4)), ["0"], p=0.0)
        assert model.state_dict().keys() == nn.Sequential(nn.Linear(4, 4)).state_dict().keys()
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            apply_dropout(twin, {"0": LayerSettings(dropout=1.0)})
            assert not twin(torch.ones(1, 4)).any()
        assert model(torch.ones(1, 4)).any()

    def test_adding_twice_sets_the_rate_anew(self) -> None:
        model = add_dropout(add_dropout(nn.Sequential(nn.Linear(4, 4)), ["0"], p=1.0), ["0"], p=0.0)
        assert model(torch.ones(1, 4)).all()

    def test_dropout_behind_a_container_belongs_to_its_last_layer(self) -> None:
        model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
        add_dropout(model, ["0"])
        assert [layer.dropouts for layer in layers(model)] == [(), ("0",), ()]

    def test_an_unknown_module_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"'7' is none; modules: \['0', '1', '2', '3', '4', '5'\]"):
            add_dropout(mlp(), ["7"])
