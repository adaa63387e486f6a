"""Scores: directions, what they reward, what cannot cheat them, the guard, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ww_opt.spectral import SCORES, diagnose, score
from ww_opt.spectral.scores import guard, judged, named_score, network_gain


def model_of(*weights: torch.Tensor) -> nn.Module:
    modules = []
    for W in weights:
        layer = nn.Linear(W.shape[1], W.shape[0], bias=False)
        layer.weight = nn.Parameter(W)
        modules.append(layer)
    return nn.Sequential(*modules, nn.Linear(weights[-1].shape[0], 10))


def noise(n: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed)) / n**0.5


def learnt(n: int = 128, strength: float = 8.0, seed: int = 0) -> torch.Tensor:
    """Noise and fifteen directions whose strengths fall like a power."""
    u, _ = torch.linalg.qr(noise(n, seed + 1))
    v, _ = torch.linalg.qr(noise(n, seed + 2))
    return noise(n, seed) + (u[:, :15] * strength * torch.arange(1, 16) ** -0.6) @ v[:, :15].T


def better(name: str, one: nn.Module, other: nn.Module) -> bool:
    difference = score(one, name) - score(other, name)
    return difference < 0 if SCORES[name].direction == "minimize" else difference > 0


@pytest.mark.parametrize("name", SCORES)
def test_a_trained_model_beats_noise(name: str) -> None:
    assert better(name, model_of(learnt(), learnt(seed=5)), model_of(noise(), noise(seed=5)))


def test_contract() -> None:
    assert "default" in SCORES
    assert {item.direction for item in SCORES.values()} <= {"minimize", "maximize"}
    assert isinstance(score(model_of(noise())), float)
    model = model_of(noise())
    assert score(model) == SCORES["default"](diagnose(model))


@pytest.mark.parametrize("name", ["default", "alpha", "alpha:language"])
@pytest.mark.parametrize("cheat", ["mean shift", "row norms", "scale", "huge entry", "lost rank"])
def test_scores_with_penalties_are_not_cheated(cheat: str, name: str) -> None:
    W = noise()
    changed = {
        "mean shift": lambda: W + 0.3,
        "row norms": lambda: W * torch.exp(0.5 * torch.randn(128, 1, generator=torch.Generator().manual_seed(9))),
        "scale": lambda: W * 100,
        "huge entry": lambda: W.index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(5.0)),
        "lost rank": lambda: W @ torch.diag((torch.arange(128) < 8).float()),
    }[cheat]()
    assert score(model_of(changed), name) > score(model_of(W), name) - 0.05


@pytest.mark.parametrize("name", ["default", "alpha", "alpha:language", "alpha:3.5"])
@pytest.mark.parametrize("fault", ["died", "started anew", "huge entries", "lost rank"])
def test_a_layer_that_breaks_never_improves_scores_with_penalties(fault: str, name: str) -> None:
    W, generator = learnt(), torch.Generator().manual_seed(3)
    broken = {
        "died": lambda: W * 0.0 + 1e-9 * noise(seed=7),
        "started anew": lambda: noise(seed=7),
        "huge entries": lambda: W + 60.0 * (torch.rand(128, 128, generator=generator) < 2e-4) * W.std(),
        "lost rank": lambda: W @ torch.diag((torch.arange(128) < 8).float()),
    }[fault]()
    assert score(model_of(learnt(seed=5), broken), name) > score(model_of(learnt(seed=5), W), name)


def test_head_embedding_and_narrow_layers_are_not_judged() -> None:
    model = nn.Sequential(
        nn.Embedding(100, 64), nn.Linear(64, 64), nn.Linear(64, 20), nn.Linear(20, 64), nn.Linear(64, 50)
    )
    assert [row.name for row in judged(diagnose(model))] == ["1"]


def test_a_model_without_wide_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 wide, but the widest of 1 hidden layers has 10"):
        score(nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5)))


def test_broken_weights_give_nan() -> None:
    W = noise()
    W[0, 0] = math.inf
    assert math.isnan(score(model_of(W, noise(seed=1))))


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"'spike_share'.*or 'alpha:<number>', but got 'beta'"):
        score(model_of(noise()), "beta")


def test_guard_is_the_floored_logarithm() -> None:
    assert guard(2.0, 2.0) == pytest.approx(0.0)
    assert guard(1.6, 2.0) == pytest.approx(math.log(0.8))
    assert guard(1e-9, 2.0) == guard(0.0, 2.0) == pytest.approx(math.log(0.5))
    assert guard(math.nan, 2.0) == math.inf
    assert guard(2.0) == pytest.approx(math.log(2.0 / math.log(10)))


@pytest.mark.parametrize("name", SCORES)
def test_the_guard_helps_the_lower_loss_in_either_direction(name: str) -> None:
    model = model_of(learnt())
    low, high = (score(model, name, train_loss=loss, first_loss=2.3) for loss in (0.2, 2.0))
    assert (low < high) == (SCORES[name].direction == "minimize")
    guarded = named_score(name).guarded()
    assert guarded(diagnose(model), train_loss=0.2, first_loss=2.3) == low
    assert guarded.unguarded()(diagnose(model)) == score(model, name)
    with pytest.raises(ValueError, match="needs the training loss"):
        guarded(diagnose(model))


def test_a_late_loss_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="pass both"):
        score(model_of(learnt()), late_loss=1.0)


def test_default_lies_between_its_bounds() -> None:
    generator = np.random.default_rng(0)
    for seed in range(10):
        model = model_of(learnt(strength=float(generator.uniform(0, 20)), seed=seed), noise(seed=seed + 50))
        assert 0.0 <= score(model) <= 4.0


def test_factors_that_neighbours_pass_to_each_other_change_nothing() -> None:
    model, other = model_of(learnt(), learnt(seed=5)), model_of(learnt() * 4, learnt(seed=5) / 4)
    other[2].load_state_dict(model[2].state_dict())
    assert score(other) == pytest.approx(score(model), abs=1e-6)


def test_a_signal_that_fades_is_worse_in_the_head_as_well() -> None:
    model = model_of(learnt(), learnt(seed=5))
    before = score(model)
    with torch.no_grad():
        model[2].weight.mul_(0.01)
    assert score(model) > before + 0.5


def test_an_expected_gain_is_that_of_xavier() -> None:
    """Noise of Xavier's variance has no gain; the head of ten is as wide as its own edge, within its fluctuation."""
    rows = diagnose(model_of(noise(400), noise(400, 1)))
    gains = [math.log(row.spectral_norm / (math.sqrt(2 / 800) * 2 * math.sqrt(400))) for row in list(rows)[:2]]
    assert max(map(abs, gains)) < 0.03


def test_several_output_layers_count_as_one_and_a_tied_one_as_not_tied() -> None:
    def net(**more: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64), "head": nn.Linear(64, 40), **more})

    one = net()
    two = net(head_dist=nn.Linear(64, 40))
    two["head_dist"].load_state_dict(one["head"].state_dict())
    assert network_gain(diagnose(two).rows) == pytest.approx(network_gain(diagnose(one).rows), abs=1e-12)
    tied = net(embed=nn.Embedding(40, 64))
    tied["head"].weight = tied["embed"].weight
    unlearnt = math.log((1 / (3 * 64) / (2 / (40 + 64))) ** 0.5)  # as of the head that is not tied
    hidden = [math.log(3**-0.5)] * 2  # no spikes, and Linear's own weights are no wider
    assert network_gain(diagnose(tied).rows) == pytest.approx(sum([*hidden, unlearnt]) / 3, abs=0.05)
    assert network_gain(diagnose(tied).rows) == pytest.approx(network_gain(diagnose(one).rows), abs=0.03)
    with torch.no_grad():
        tied["embed"].weight.mul_(100.0)
    assert network_gain(diagnose(tied).rows) == pytest.approx(sum([*hidden, unlearnt]) / 3, abs=0.05)


@pytest.mark.parametrize("n_outputs", [1, 2, 10])
def test_the_width_of_the_head_changes_nothing(n_outputs: int) -> None:
    hidden = [nn.Linear(64, 64), nn.Linear(64, 64)]
    rows = judged(diagnose(nn.Sequential(*hidden, nn.Linear(64, n_outputs))))
    assert [row.name for row in rows] == ["0", "1"]
