"""What mattered, on studies of which that is known."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from ww_opt.search import records
from ww_opt.search.coordinates import Coordinates
from ww_opt.search.draws import draw_functions
from ww_opt.search.importance import FEW, importance
from ww_opt.search.layer_effects import beyond_chance, is_of
from ww_opt.search.records import LayerRecord, Look
from ww_opt.search.surrogate import fit_surrogate
from ww_opt.search.variance_shares import Mixture
from ww_opt.study.mattered import mattered

KINDS = ("lr", "weight_decay", "dropout")
Point = dict[str, np.ndarray]


def planted(
    target: Callable[[Point], float],
    n_labels: int = 4,
    n: int = 40,
    *,
    is_shared: bool = False,
    noise: float = 0.1,
    direction: str = "minimize",
) -> optuna.Study:
    """A study of random settings, whose value is known."""
    rng = np.random.default_rng(0)
    study = optuna.create_study(direction=direction)
    labels = [f"l{number}" for number in range(n_labels)]
    for _ in range(n):
        point = {kind: np.full(n_labels, rng.random()) if is_shared else rng.random(n_labels) for kind in KINDS}
        params = {f"{kind}/{label}": float(x) for kind in KINDS for label, x in zip(labels, point[kind], strict=True)}
        value = float(target(point) + noise * rng.normal())
        space: dict[str, BaseDistribution] = {name: FloatDistribution(0, 1) for name in params}
        study.add_trial(create_trial(value=value, params=params, distributions=space))
    return study


def lr_alone(point: Point) -> float:
    return 40 * float(point["lr"].mean() - 0.4) ** 2


def head_alone(point: Point) -> float:
    return 9 * float(point["lr"][-1] - 0.6) ** 2


def head_differs(point: Point) -> float:
    return float(4 * (point["lr"][-1] - 0.9) ** 2 + 4 * (point["lr"][:-1].mean() - 0.2) ** 2)


def said(study: optuna.Study) -> str:
    return " ".join(mattered(importance(study)))


@pytest.mark.parametrize("is_shared", [False, True])
def test_only_the_learning_rate_matters(is_shared: bool) -> None:
    found = importance(planted(lr_alone, is_shared=is_shared))
    lr, *others = found.kinds
    assert (lr.kind, lr.share > 0.85, lr.low <= lr.share <= lr.high) == ("lr", True, True)
    assert all(own.share < 0.05 for own in others)
    assert next(own for own in found.parts if (own.kind, own.part) == ("lr", "shared")).share > 0.8
    assert found.r2 > 0.8
    assert sum(own.share for own in found.kinds) <= 1 + 1e-9
    # where labels never differed, nothing tells them apart
    assert bool(found.settings) is not is_shared


@pytest.mark.parametrize(("n_labels", "least"), [(4, 0.15), (34, 0.6)])
def test_only_the_heads_learning_rate_matters(n_labels: int, least: float) -> None:
    found = importance(planted(head_alone, n_labels))
    head, second, *_ = found.settings
    assert (head.kind, head.label) == ("lr", f"l{n_labels - 1}")
    assert (head.low > least, head.share > 0.5) == (True, True)
    assert second.share < 0.1
    leading = max(found.parts, key=lambda own: own.share)
    assert (leading.kind, leading.part) == ("lr", "last")
    assert f"Of single settings lr/l{n_labels - 1} makes" in " ".join(mattered(found))


def test_where_nothing_matters_nothing_is_told() -> None:
    studies = [planted(lambda _: 0.0, n_labels, n) for n_labels, n in ((4, 40), (34, 40), (4, 20), (4, 100))]
    for study in studies:
        found = importance(study)
        assert found.r2 < 0.2
        assert (found.rows(), found.gain) == ([], None)
        assert "What mattered cannot be told: of trials that it was not shown" in said(study)


def test_a_gain_of_settings_per_layer_is_told_and_none_is_not() -> None:
    gain = importance(planted(head_differs)).gain
    assert gain is not None
    assert gain.is_told
    # the best shared value is about 0.98
    assert gain.gained == pytest.approx(0.9, abs=0.3)
    assert len({value for name, value in gain.params.items() if name.startswith("lr")}) == 1
    assert "Settings per layer gained 0." in said(planted(head_differs))
    none = importance(planted(lr_alone)).gain
    assert none is not None
    assert not none.is_told
    assert "not more than the model's doubt" in said(planted(lr_alone))
    assert "Only shared settings were tried" in said(planted(lr_alone, is_shared=True))


def test_shares_hold_what_is_so() -> None:
    """Of a sum of lr's mean, the head's dropout and the first weight decay: 0.75, 0.19 and 0.07."""
    study = planted(lambda own: 2 * own["lr"].mean() + 0.5 * own["dropout"][-1] + 0.3 * own["weight_decay"][0])
    for own in importance(study).kinds:
        truth = {"lr": 0.75, "dropout": 0.19, "weight_decay": 0.07}[own.kind]
        assert own.low - 0.03 <= truth <= own.high + 0.03
        assert own.share == pytest.approx(truth, abs=0.15)


def test_the_mean_function_comes_before_the_draws() -> None:
    coordinates = Coordinates({f"lr/{number}": FloatDistribution(0, 1) for number in range(6)})
    rng = np.random.default_rng(0)
    surrogate = fit_surrogate(coordinates, rng.random((15, 6)), rng.normal(size=15))
    draws, new = draw_functions(surrogate, 3, rng), rng.random((9, 6))
    both = draws.with_mean()(new)
    assert both[:, 0] == pytest.approx(surrogate.predict(new)[0])
    assert both[:, 1:] == pytest.approx(draws(new))


def test_direction_turns_nothing_but_the_sign() -> None:
    up = importance(planted(lambda point: -head_differs(point), direction="maximize", noise=0.0))
    down = importance(planted(head_differs, noise=0.0))
    assert up.rows() == down.rows()
    assert up.gain == down.gain


def test_equal_seeds_give_equal_numbers() -> None:
    study = planted(head_alone)
    assert asdict(importance(study, seed=1)) == asdict(importance(study, seed=1))
    assert importance(study, seed=1).rows() != importance(study, seed=2).rows()


def test_what_did_not_complete_is_left_out() -> None:
    study = planted(lr_alone)
    before = importance(study)
    like = study.trials[0]
    for state, value in ((TrialState.PRUNED, None), (TrialState.FAIL, None), (TrialState.COMPLETE, math.inf)):
        study.add_trial(create_trial(state=state, value=value, params=like.params, distributions=like.distributions))
    after = importance(study)
    assert (after.n_trials, after.n_left_out) == (40, 3)
    assert after.rows() == before.rows()
    assert "3 that did not complete or compare are left out" in said(study)


def test_few_equal_or_no_trials_say_so() -> None:
    assert "7 completed trials are too few" in said(planted(lr_alone, n=FEW - 1))
    assert "all trials have the same value" in said(planted(lambda _: 1.0, noise=0.0))
    assert mattered(importance(optuna.create_study())) == []
    study = optuna.create_study()
    for number in range(9):
        study.add_trial(create_trial(value=float(number)))
    assert "no parameter was searched in all trials" in said(study)


def test_a_space_that_is_not_ours() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        x, kind = trial.suggest_float("x", 0, 1), trial.suggest_categorical("kind", ["a", "b", "c"])
        trial.suggest_int("width", 1, 64, log=True)
        if kind == "b":
            trial.suggest_float("only b", 0, 1)
        return x + 2 * (kind == "b")

    study.optimize(objective, n_trials=40)
    found = importance(study)
    assert [own.kind for own in found.kinds[:2]] == ["kind", "x"]
    assert {own.kind for own in found.kinds} == {"kind", "x", "width"}
    assert (found.parts, found.gain, found.only_shared) == ((), None, False)
    assert list(found.frame().columns) == ["kind", "part", "label", "share", "low", "high"]
    assert said(study).startswith("By themselves kind makes")


def test_parts_add_up_to_the_points() -> None:
    space: dict[str, BaseDistribution] = {
        f"{kind}/{number}": FloatDistribution(0, 1)
        for kind, n in (("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 9))
        for number in range(n)
    }
    space["choice/enc"] = CategoricalDistribution(["x", "y"])
    coordinates = Coordinates(space)
    points = coordinates.rounded(np.random.default_rng(0).random((12, coordinates.n)))
    mixture = Mixture(coordinates, points)
    assert sum(own for _, _, own in mixture.parts) == pytest.approx(points)
    parts = [f"{kind}:{part}" for kind, part, _ in mixture.parts]
    assert parts[:6] == ["b:shared", "b:last", "c:shared", "c:last", "c:trend", "d:shared"]
    assert parts[-3:] == ["e:alone", "a:", "choice:"]


def test_draws_are_of_what_is_believed() -> None:
    coordinates = Coordinates({f"lr/{number}": FloatDistribution(0, 1) for number in range(7)})
    rng = np.random.default_rng(0)
    points = rng.random((15, 7))
    surrogate = fit_surrogate(coordinates, points, rng.normal(size=15))
    new = rng.random((20, 7))
    drawn = np.concatenate([draw_functions(surrogate, 200, rng)(new) for _ in range(10)], axis=1)
    means, deviations = surrogate.predict(new)
    assert drawn.mean(axis=1) == pytest.approx(means, abs=0.15)
    assert drawn.std(axis=1) == pytest.approx(deviations, rel=0.15)


def layered(n: int = 30) -> optuna.Study:
    """The learning rate of one layer makes its spikes; that of the other does nothing to its own."""
    rng = np.random.default_rng(1)
    study = optuna.create_study()
    for _ in range(n):
        params = {f"lr/{label}": float(rng.random()) for label in ("encoder.1", "encoder.10", "nowhere")}
        layers = [
            LayerRecord(f"{label}.linear", 64, 64, 2 + rng.random(), 0.1, 0.1, 9, spikes, 64, 0, 0, 9.0, 1.0)
            for label, spikes in (
                ("encoder.1", round(9 * params["lr/encoder.1"])),
                ("encoder.10", int(rng.integers(9))),
            )
        ]
        trial = create_trial(
            value=float(rng.random()),
            params=params,
            distributions={name: FloatDistribution(0, 1) for name in params},
            user_attrs={"ww_opt:look:9": records._to_json(asdict(Look(9, 9, 1.0, 1.0, layers=tuple(layers))))},
        )
        study.add_trial(trial)
    return study


def test_what_settings_did_to_their_own_layers() -> None:
    found = importance(layered())
    assert {(own.label, own.layer) for own in found.effects} == {
        ("encoder.1", "encoder.1.linear"), ("encoder.10", "encoder.10.linear"),
    }  # fmt: skip
    (told,) = beyond_chance(found.effects)
    assert (told.label, told.measure, told.n_trials) == ("encoder.1", "spikes", 30)
    assert told.low > 0.9
    assert told.partial > 0.9
    assert "lr/encoder.1 went with more spikes in encoder.1.linear (" in " ".join(mattered(found))


@pytest.mark.parametrize(
    ("label", "layer", "answer"),
    [("a", "a", True), ("a", "a.b", True), ("a.1", "a.10", False), ("a", "ab", False), ("all", "a", False)],
)
def test_which_layers_are_a_labels(label: str, layer: str, answer: bool) -> None:
    assert is_of(label, layer) is answer


def test_no_model_is_needed() -> None:
    code = "import sys, ww_opt.search.importance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
