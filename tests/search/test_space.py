"""What is suggested for which model, and what is refused."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial
from torch import nn
from torch.optim import SGD, AdamW

from ww_opt.search import records
from ww_opt.search.bounds import is_inside
from ww_opt.search.space import LayerwiseSpace, crowding
from ww_opt.training.dropout import add_dropout
from ww_opt.training.labels import by_block, by_depth, by_kind, by_layer, tied
from ww_opt.training.layerwise import LayerSettings
from ww_opt.training.optimizers import build_optimizer

LR = FloatDistribution(1e-4, 1e-1, log=True)
RATE = FloatDistribution(0.0, 0.5)


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Linear(4, 4),
            "blocks": nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)), nn.Sequential(nn.Linear(4, 4))),
        }
    )


def ask(space: LayerwiseSpace, net: nn.Module | None = None) -> tuple[dict[str, LayerSettings], optuna.Trial]:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    return space.suggest(trial, net if net is not None else model()), trial


class TestSuggest:
    def test_every_layer_has_its_own_parameter(self) -> None:
        settings, trial = ask(LayerwiseSpace(lr=LR))
        assert list(trial.params) == ["lr/stem", "lr/blocks.0.0", "lr/blocks.1.0"]
        assert settings == {name.removeprefix("lr/"): LayerSettings(lr=value) for name, value in trial.params.items()}
        assert set(trial.distributions.values()) == {LR}

    def test_what_is_listed_is_what_is_suggested(self) -> None:
        space = LayerwiseSpace(lr=LR, weight_decay=1e-4, dropout=RATE, momentum=FloatDistribution(0.5, 0.9, step=0.1))
        _, trial = ask(space)
        assert space.parameters(model()) == trial.distributions
        assert list(space.parameters(model())) == list(trial.params)

    def test_dropout_is_suggested_only_where_there_is_one(self) -> None:
        settings, trial = ask(LayerwiseSpace(lr=0.1, dropout=RATE))
        assert list(trial.params) == ["dropout/blocks.0.0"]
        assert settings["stem"] == LayerSettings(lr=0.1)

    def test_dropout_on_a_model_without_any_is_refused(self) -> None:
        net = nn.Sequential(nn.Linear(2, 2))
        for choice in (RATE, 0.5):
            with pytest.raises(ValueError, match="the model has no dropout module"):
                ask(LayerwiseSpace(dropout=choice), net)
        settings, _ = ask(LayerwiseSpace(dropout=RATE), add_dropout(net, ["0"]))
        assert settings["0"].dropout is not None

    @pytest.mark.parametrize(
        ("label", "names"),
        [(tied, ["all"]), (by_block(), ["stem", "blocks.0", "blocks.1"]), (by_block(2), ["stem", "blocks"])],
    )
    def test_labels_share_parameters(self, label: Any, names: list[str]) -> None:
        settings, trial = ask(LayerwiseSpace(lr=LR, label=label))
        assert list(settings) == names
        assert list(trial.params) == [f"lr/{name}" for name in names]

    def test_a_constant_is_no_parameter(self) -> None:
        settings, trial = ask(LayerwiseSpace(lr=0.1, weight_decay=0, momentum=0.9))
        assert trial.params == {}
        assert set(settings.values()) == {LayerSettings(lr=0.1, weight_decay=0.0, momentum=0.9)}

    def test_a_distribution_of_a_single_value_is_a_constant(self) -> None:
        space = LayerwiseSpace(lr=FloatDistribution(0.25, 0.25))
        settings, trial = ask(space)
        assert trial.params == space.parameters(model()) == {}
        assert {own.lr for own in settings.values()} == {0.25}

    def test_integers_are_suggested_as_such(self) -> None:
        settings, trial = ask(LayerwiseSpace(lr=IntDistribution(1, 9), momentum=IntDistribution(0, 0), label=tied))
        assert settings["all"] == LayerSettings(lr=trial.params["lr/all"], momentum=0)

    def test_a_mapping_searches_some_layers_and_leaves_the_rest(self) -> None:
        settings, trial = ask(LayerwiseSpace(lr={"stem": LR, "blocks.0.0": 0.5}))
        assert list(trial.params) == ["lr/stem"]
        assert settings["blocks.0.0"].lr == 0.5
        assert settings["blocks.1.0"].lr is None

    def test_a_fixed_trial_reproduces_settings(self) -> None:
        params = {"lr/all": 0.01, "dropout/all": 0.25}
        settings = LayerwiseSpace(lr=LR, dropout=RATE, label=tied).suggest(FixedTrial(params), model())
        assert settings == {"all": LayerSettings(lr=0.01, dropout=0.25)}


class TestAround:
    """One line from a model and an optimizer to a space that holds what is trained today."""

    @pytest.mark.parametrize("label", [by_layer, tied, by_block(), by_depth, by_kind])
    @pytest.mark.parametrize("momentum", [False, True])
    @pytest.mark.parametrize("build", [AdamW, partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)])
    def test_the_present_configuration_lies_inside_and_is_trained_as_before(
        self, build: Any, momentum: bool, label: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        net = model()
        space = LayerwiseSpace.around(net, build, label=label, momentum=momentum)
        start = space.present(net, build)
        assert list(start) == list(space.parameters(net))
        assert is_inside(start, space.parameters(net))
        assert not caplog.messages
        study = optuna.create_study()
        study.enqueue_trial(dict(start))
        tried = build_optimizer(build, space.configure(study.ask(), net))
        plain = build(net.parameters())
        for group in tried.param_groups:
            for key in ("lr", "momentum", "betas"):
                assert group.get(key) == plain.param_groups[0].get(key)
            expected = 0.0 if group["name"].endswith(":no_decay") else plain.param_groups[0]["weight_decay"]
            assert group["weight_decay"] == expected

    def test_what_all_labels_share_is_one_distribution_and_what_they_do_not_a_mapping(self) -> None:
        net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 4), nn.Dropout(0.6))
        optimizer = SGD([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.01}], lr=0.1)
        space = LayerwiseSpace.around(net, optimizer)
        assert space == LayerwiseSpace(
            lr={
                "0": FloatDistribution(0.0032, 3.2, log=True),
                "2": FloatDistribution(0.00032, 0.32, log=True),
            },
            weight_decay=FloatDistribution(1e-6, 1e-2, log=True),
            dropout={"0": FloatDistribution(0.0, 0.5), "2": FloatDistribution(0.0, 0.6)},
        )

    def test_what_is_not_there_is_not_searched(self) -> None:
        net = nn.Sequential(nn.Linear(4, 4))
        space = LayerwiseSpace.around(net, torch.optim.Rprop)
        assert list(space.parameters(net)) == ["lr/0"]
        assert LayerwiseSpace.around(net, AdamW, decades=0.5).lr == FloatDistribution(0.00032, 0.0032, log=True)

    def test_decay_of_zero_is_taken_at_the_lowest_bound_and_told(self, caplog: pytest.LogCaptureFixture) -> None:
        net, build = model(), partial(SGD, lr=0.1)
        start = LayerwiseSpace.around(net, build).present(net, build)
        assert {value for name, value in start.items() if name.startswith("weight_decay")} == {1e-6}
        assert "weight_decay of 3 labels is 0 and was taken as 1e-06" in caplog.text

    def test_momentum_of_an_optimizer_without_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Momentum acts on nothing in Adagrad"):
            LayerwiseSpace.around(model(), torch.optim.Adagrad, momentum=True)

    @pytest.mark.parametrize("decades", [0, -1.0, float("nan")])
    def test_bounds_need_room(self, decades: float) -> None:
        with pytest.raises(ValueError, match=r"`decades > 0` must hold"):
            LayerwiseSpace.around(model(), AdamW, decades=decades)


class TestConfigure:
    def test_one_call_gives_groups_sets_dropout_and_remembers(self) -> None:
        net, study = model(), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        space = LayerwiseSpace(lr=LR, dropout=RATE, weight_decay=0.5, label=by_block())
        trial = study.ask()
        groups = space.configure(trial, net)
        rates = {group["name"]: group["lr"] for group in groups}
        assert rates["blocks.0"] == rates["blocks.0:no_decay"] == trial.params["lr/blocks.0"]
        assert {group["name"]: group["weight_decay"] for group in groups}["stem"] == 0.5
        assert net.get_submodule("blocks.0.1").p == trial.params["dropout/blocks.0"]
        assert records.read(trial, "settings")["stem"] == {
            "lr": trial.params["lr/stem"],
            "weight_decay": 0.5,
            "momentum": None,
            "dropout": None,
            "init_scale": None,
        }
        assert list(trial.params) == list(space.parameters(net))

    def test_a_fixed_trial_will_do(self) -> None:
        (group, _) = LayerwiseSpace(lr=LR, label=tied).configure(FixedTrial({"lr/all": 0.01}), model())
        assert group["lr"] == 0.01


class TestInitScale:
    """A factor on the initial weights, on request."""

    SPACE = LayerwiseSpace(init_scale=FloatDistribution(0.5, 2.0, log=True), lr=0.1)

    @staticmethod
    def zero_headed() -> nn.Module:
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        nn.init.zeros_(net[1].weight)
        return net

    def test_configure_scales_and_remembers(self) -> None:
        net = model()
        before = {name: own.clone() for name, own in net.state_dict().items()}
        trial = FixedTrial({"init_scale/stem": 2.0, "init_scale/blocks.0.0": 0.5, "init_scale/blocks.1.0": 1.0})
        for _ in range(2):  # twice is once
            self.SPACE.configure(trial, net)
        factors = {"stem.weight": 2.0, "blocks.0.0.weight": 0.5}
        for name, own in net.state_dict().items():
            assert torch.equal(own, factors.get(name, 1.0) * before[name])
        assert [own["init_scale"] for own in records.read(trial, "settings").values()] == [2.0, 0.5, 1.0]

    def test_around_has_it_on_request_alone_and_the_present_is_one(self) -> None:
        net = model()
        assert LayerwiseSpace.around(net, AdamW).init_scale is None
        space = LayerwiseSpace.around(net, AdamW, init_scale=True)
        assert space.init_scale == FloatDistribution(0.4, 2.5, log=True)
        start = space.present(net, AdamW)
        assert {value for name, value in start.items() if name.startswith("init_scale/")} == {1.0}
        before = {name: own.clone() for name, own in net.state_dict().items()}
        space.configure(FixedTrial(start), net)
        assert all(torch.equal(own, before[name]) for name, own in net.state_dict().items())

    def test_weights_of_zero_are_no_dimension(self) -> None:
        net = self.zero_headed()
        assert list(self.SPACE.parameters(net)) == ["init_scale/0"]
        assert LayerwiseSpace.around(net, AdamW, init_scale=True).init_scale == {
            "0": FloatDistribution(0.4, 2.5, log=True)
        }
        with pytest.raises(ValueError, match=r"`init_scale` may only name labels with a weight that is not 0.*\['0'\]"):
            LayerwiseSpace(init_scale={"1": 2.0}).parameters(net)
        nn.init.zeros_(net[0].weight)
        with pytest.raises(ValueError, match="`init_scale` needs weights that are trained and not all 0"):
            LayerwiseSpace.around(net, AdamW, init_scale=True)


@pytest.mark.parametrize(("n_trials", "is_crowded"), [(2, True), (3, False)])
def test_more_parameters_than_trials_are_told(n_trials: int, is_crowded: bool) -> None:
    text = crowding(len(LayerwiseSpace(lr=LR).parameters(model())), n_trials)
    assert text.startswith("3 parameters are searched in 2 trials") is is_crowded
    assert bool(text) is is_crowded


class TestErrors:
    @pytest.mark.parametrize(
        ("kind", "choice", "words"),
        [
            ("lr", 0.0, r"`lr` must be > 0, but got 0\.0"),
            ("lr", FloatDistribution(0.0, 1.0), r"`lr` must be > 0, but got \(0\.0, 1\.0\)"),
            ("lr", float("nan"), "`lr` must be > 0, but got nan"),
            ("lr", float("inf"), "`lr` must be > 0, but got inf"),
            ("weight_decay", -1.0, r"`weight_decay` must be >= 0, but got -1\.0"),
            ("dropout", 1.5, r"`dropout` must be in \[0, 1\], but got 1\.5"),
            ("dropout", {"stem": FloatDistribution(0.0, 2.0)}, r"`dropout` must be in \[0, 1\]"),
            ("init_scale", 0, r"`init_scale` must be > 0, but got 0\.0"),
            ("init_scale", {"stem": FloatDistribution(0.0, 2.0)}, r"`init_scale` must be > 0"),
            ("momentum", 1.0, r"`momentum` must be in \[0, 1\), but got 1\.0"),
        ],
    )
    def test_values_out_of_range_are_named(self, kind: str, choice: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            LayerwiseSpace(**{kind: choice})

    @pytest.mark.parametrize("choice", ["0.1", True, CategoricalDistribution([0.1, 0.2]), {"stem": "0.1"}])
    def test_other_types_are_refused(self, choice: Any) -> None:
        with pytest.raises(TypeError, match="`lr` must be a FloatDistribution"):
            LayerwiseSpace(lr=choice)

    @pytest.mark.parametrize("settings", [{}, {"lr": {}}])
    def test_an_empty_space_is_refused(self, settings: Mapping[str, Any]) -> None:
        with pytest.raises(ValueError, match="at least one setting"):
            LayerwiseSpace(**settings)

    @pytest.mark.parametrize("method", ["suggest", "parameters"])
    def test_a_mapping_may_name_only_labels_of_the_model(self, method: str) -> None:
        space = LayerwiseSpace(lr={"head": LR})
        arguments = (FixedTrial({}), model()) if method == "suggest" else (model(),)
        with pytest.raises(ValueError, match=r"but got \['head'\]; labels of the model: \['blocks\.0\.0'"):
            getattr(space, method)(*arguments)

    def test_dropout_may_name_only_labels_that_have_one(self) -> None:
        with pytest.raises(ValueError, match=r"but got \['stem'\]; labels with one: \['blocks\.0\.0'\]"):
            ask(LayerwiseSpace(dropout={"stem": RATE}))


def test_a_label_that_is_no_function_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="from ww_opt import tied"):
        LayerwiseSpace(lr=LR, label="tied")  # type: ignore[arg-type]
