"""What a layer lacks by its alpha: on rows whose numbers are known, and what never improves a score."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ww_opt.spectral import SCORES, diagnose, score
from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics
from ww_opt.spectral.scores import ALPHA_SHARE, USUAL_ALPHA, named_score
from ww_opt.spectral.terms import AlphaTerm, band, mean_of, missing_spikes

ROW = LayerDiagnostics(
    name="a", kind="Linear", parameter="a.weight", N=128, M=128, Q=1.0, n_matrices=1,
    alpha=2.0, D=0.06, sigma=0.2, n_tail=40, n_eigenvalues=128,
    spectral_norm=3.0, effective_rank=80.0, null_effective_rank=95.0, spikes=20,
)  # fmt: skip
TERM = AlphaTerm()
PENALISED = ("default", "alpha", "alpha:language", "alpha:3.5")


def learnt_model() -> nn.Module:
    """Two layers of noise, each with directions whose strengths fall like a power."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (model[0], model[1]):
            u, v = (torch.linalg.qr(torch.randn(64, 64, generator=generator))[0] for _ in range(2))
            layer.weight += (u * 4 * torch.arange(1, 65) ** -0.8) @ v
    return model


def of(name: str, *rows: LayerDiagnostics) -> float:
    return named_score(name)(Diagnosis(rows))


def test_by_hand() -> None:
    assert TERM(ROW) == 0.0
    assert TERM(replace(ROW, alpha=4.0)) == TERM(replace(ROW, alpha=4.0, n_tail=10)) == pytest.approx(0.5)
    assert TERM(replace(ROW, alpha=1.0)) == pytest.approx(0.25)
    assert TERM(replace(ROW, alpha=60.0)) == 1.0
    assert TERM(replace(ROW, D=0.14)) == pytest.approx(0.5)
    assert TERM(replace(ROW, n_tail=5)) == TERM(replace(ROW, sigma=2.0)) == 0.5
    assert TERM(replace(ROW, spikes=0)) == TERM(replace(ROW, D=0.18)) == 1.0
    assert of("alpha", replace(ROW, alpha=4.0), ROW) == pytest.approx(0.25)
    assert of("default", ROW) == 0.0
    assert of("default", replace(ROW, spikes=5)) == of("alpha", replace(ROW, spikes=5)) == pytest.approx(1 - 5 / 12.8)
    assert of("default", replace(ROW, alpha=6.0)) == pytest.approx(ALPHA_SHARE * 0.5)
    assert [USUAL_ALPHA.distance(alpha) for alpha in (1.0, 2.0, 3.0, 4.0, 5.0)] == [0.25, 0.0, 0.0, 0.0, 0.25]


@pytest.mark.parametrize("unknown", [{"alpha": math.nan}, {"D": math.nan}, {"sigma": math.nan}])
@pytest.mark.parametrize("name", PENALISED)
def test_a_layer_without_a_fit_counts_as_not_having_learnt(name: str, unknown: dict[str, float]) -> None:
    whole = of(name, ROW)
    assert of(name, ROW, replace(ROW, **unknown)) > whole
    unlearnt = AlphaTerm()(replace(ROW, **unknown))
    assert unlearnt == AlphaTerm()(replace(ROW, spikes=0)) == 1.0


@pytest.mark.parametrize(
    "fault",
    [
        {"alpha": math.nan, "D": math.nan, "sigma": math.nan, "n_tail": 0},
        {"D": 0.15},
        {"D": 0.4},
        {"n_tail": 4},
        {"sigma": 3.0},
        {"spikes": 5},
        {"spikes": 0},
        {"traps": 1},
        {"traps": 30},
        {"rank_loss": 1},
        {"rank_loss": 120},
        {"effective_rank": 4.0},
        {"spikes": 0, "spectral_norm": 1e-6, "effective_rank": 1.0, "rank_loss": 127, "alpha": math.nan},
    ],
    ids=str,
)
@pytest.mark.parametrize("alpha", [1.3, 2.0, 3.0, 3.5, 5.0, 9.0])
@pytest.mark.parametrize("name", PENALISED)
def test_faults_of_a_layer_never_improve_a_score(name: str, alpha: float, fault: dict[str, float]) -> None:
    row = replace(ROW, alpha=alpha)
    other = replace(ROW, name="b", alpha=2.7)
    assert of(name, row, other) <= of(name, replace(row, **fault), other)
    if set(fault) & {"traps", "rank_loss", "effective_rank"}:
        assert of(name, row, other) < of(name, replace(row, **fault), other)


@pytest.mark.parametrize(("name", "low", "high"), [("alpha", 2, 2), ("alpha:language", 3, 4), ("alpha:3.5", 3.5, 3.5)])
def test_an_alpha_that_comes_nearer_to_its_target_is_better(name: str, low: float, high: float) -> None:
    above = [of(name, replace(ROW, alpha=high + step)) for step in (0.0, 0.1, 0.5, 1.0, 3.0)]
    below = [of(name, replace(ROW, alpha=low - step)) for step in (0.0, 0.1, 0.5, 0.9)]
    assert above == sorted(set(above))
    assert below == sorted(set(below))
    assert above[0] == below[0] == 0.0


def test_a_fit_that_gets_better_never_hurts_the_default() -> None:
    values = [of("default", replace(ROW, alpha=5.0, D=D)) for D in (0.05, 0.1, 0.12, 0.16, 0.2)]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_wider_layers_count_for_more() -> None:
    narrow = replace(ROW, M=32, alpha=6.0)
    assert mean_of(TERM, (ROW, narrow)) == pytest.approx(0.2)
    assert math.isnan(mean_of(TERM, (replace(ROW, M=16),)))
    assert missing_spikes(ROW) == 0.0


class TestTargets:
    model = learnt_model()

    def test_each_way_of_naming_a_target_is_one(self) -> None:
        diagnosis = diagnose(self.model)
        assert score(diagnosis, "alpha") == score(diagnosis, "alpha", target="vision") == score(diagnosis, "alpha:2")
        language = score(diagnosis, "alpha", target="language")
        assert language == score(diagnosis, "alpha:language") == score(diagnosis, SCORES["alpha"], target="language")
        assert (
            score(diagnosis, "alpha", target=3.5)
            == score(diagnosis, "alpha:3.5")
            == named_score("alpha:3.5")(diagnosis)
        )
        assert len({score(diagnosis, "alpha"), language, score(diagnosis, "alpha:3.5")}) == 3
        assert named_score("alpha", 3.5).name == "alpha:3.5"

    def test_guards_keep_the_target(self) -> None:
        aimed = named_score(SCORES["alpha"].guarded(), "language")
        assert aimed.is_guarded
        assert aimed.name == "alpha:language"
        losses = {"train_loss": 1.0, "first_loss": 2.0}
        assert score(self.model, "alpha", target="language", **losses) == aimed(diagnose(self.model), **losses)

    @pytest.mark.parametrize(
        "target", ["speech", "", "nan", 1.0, 6.5, -2, math.nan, math.inf, True, [2.0], "language "]
    )
    def test_what_is_no_target_is_refused(self, target: object) -> None:
        with pytest.raises(ValueError, match=r"`target` must be one of \['vision', 'language'\] or an alpha, `1 < tar"):
            band(target)

    def test_refused_by_name_as_well(self) -> None:
        for call in (lambda: named_score("alpha:speech"), lambda: score(self.model, "alpha", target="speech")):
            with pytest.raises(
                ValueError, match=r"but got target='speech': alphas of well-trained layers lie near 2 in"
            ):
                call()

    @pytest.mark.parametrize("name", ["default", "mean_alpha", "alpha:language", SCORES["default"].guarded()])
    def test_only_alpha_aims(self, name: str) -> None:
        with pytest.raises(
            ValueError, match=r"what the score 'alpha' aims at, but got target=3.5 with score '.*take 'alp"
        ):
            score(self.model, name, target=3.5)

    def test_an_unknown_loss_is_refused(self) -> None:
        with pytest.raises(TypeError, match="trainloss"):
            score(self.model, "alpha", trainloss=1.0)
