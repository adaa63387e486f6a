"""Broken runs are pruned, healthy ones are not, and the record alone decides."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import NopPruner
from optuna.testing.pruners import DeterministicPruner
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

import ww_opt
from tests import tiny
from ww_opt import LayerwiseSpace, SpectralObjective, SpectralPruner
from ww_opt.search import records
from ww_opt.search.records import LayerRecord, Look

N_STEPS = 40


def layer(name: str = "fc", *findings: str, **changes: Any) -> LayerRecord:
    own = LayerRecord(
        name=name, N=64, M=48, alpha=3.0, D=0.1, sigma=0.2, n_tail=12, spikes=2, n_eigenvalues=48, traps=0,
        rank_loss=0, stable_rank=7.5, spectral_norm=4.0, findings=findings or ("NO_FAULT",),
    )  # fmt: skip
    return replace(own, **changes)


def look(*layers: LayerRecord, step: int = 50, n_steps: int = 100, value: float = 1.0) -> Look:
    return Look(step=step, n_steps=n_steps, value=value, score=value, layers=layers)


def recorded(*looks: Look) -> FrozenTrial:
    """A running trial with these looks on record."""
    study = optuna.create_study()
    trial = study.ask()
    for item in looks:
        records.write_look(trial, item)
    return study.trials[0]


def says(pruner: SpectralPruner, trial: FrozenTrial) -> bool:
    return pruner.prune(optuna.create_study(), trial)


def plant_nothing(model: nn.Module) -> None:
    pass


def plant_huge_entries(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter[1, 2] = 40.0


def plant_nan(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan


def plant_dead_rows(model: nn.Module) -> None:
    with torch.no_grad():
        list(model.parameters())[2][4:] = 0.0


def planted(lr: float, plant: Callable[[nn.Module], None]) -> optuna.Study:
    """A study of one trial in which something happens to the weights at step 30 of 40, unseen by the loss."""
    n_calls = 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal n_calls
        n_calls += model.training
        value = tiny.loss(model, batch)
        if not model.training and n_calls == 30:
            plant(model)
        return value

    task = replace(tiny.TASK, loss=loss)
    objective = SpectralObjective(task, LayerwiseSpace(lr=lr), n_steps=N_STEPS, interval_steps=10)
    study = optuna.create_study(pruner=SpectralPruner())
    study.optimize(objective, n_trials=1)
    return study


def test_a_healthy_run_is_left_alone() -> None:
    (trial,) = planted(0.03, plant_nothing).trials
    assert trial.state is TrialState.COMPLETE
    assert not records.reason(trial)
    assert len(records.looks(trial)) == 4


@pytest.mark.parametrize(
    ("lr", "plant", "step", "reason"),
    [
        (0.03, plant_huge_entries, 30, "rule traps: correlation traps in 2 of 2 layers: ['0', '2'] at step 30"),
        (0.03, plant_dead_rows, 30, "rule rank_collapse: rank collapse in ['2'] at step 30"),
        (0.03, plant_nan, 30, "the training loss became nan at step 30: training diverged"),
    ],
    ids=["huge entries", "dead rows", "NaN"],
)
def test_a_planted_broken_run_is_pruned(lr: float, plant: Callable[[nn.Module], None], step: int, reason: str) -> None:
    (trial,) = planted(lr, plant).trials
    assert trial.state is TrialState.PRUNED
    assert records.reason(trial).endswith(reason)
    assert records.read(trial, "steps") == step


def test_the_record_alone_decides(tmp_path: Path) -> None:
    url = f"sqlite:///{(tmp_path / 'study.db').as_posix()}"
    study = optuna.create_study(study_name="s", storage=url, pruner=NopPruner())
    for lr in (1e-12, 0.03):
        study.optimize(SpectralObjective(tiny.TASK, LayerwiseSpace(lr=lr), n_steps=30, interval_steps=15), n_trials=1)
    again = optuna.load_study(study_name="s", storage=url)
    assert [says(SpectralPruner(), trial) for trial in again.trials] == [False, False], "an idle layer is no fault"
    assert [says(SpectralPruner(rules=["moved_little"]), trial) for trial in again.trials] == [True, False]


def test_it_loads_no_torch() -> None:
    code = "import sys, ww_opt.search.pruner; print(sorted({'torch', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    root = Path(ww_opt.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


class TestWarmup:
    @pytest.mark.parametrize(
        ("n_warmup_steps", "step", "n_steps", "pruned"),
        [
            (None, 49, 100, False),
            (None, 50, 100, True),
            (None, 2, 3, True),
            (None, 1, 3, False),
            (None, 10**6, 0, False),
            (0, 0, 100, True),
            (60, 59, 100, False),
            (60, 60, 100, True),
            (60, 60, 0, True),
        ],
    )
    def test_rules_wait_for_it(self, n_warmup_steps: int | None, step: int, n_steps: int, pruned: bool) -> None:
        trial = recorded(look(layer("fc", "RANK_COLLAPSE"), step=step, n_steps=n_steps))
        assert says(SpectralPruner(n_warmup_steps=n_warmup_steps), trial) is pruned

    @pytest.mark.parametrize(
        "broken",
        [look(layer(n_eigenvalues=0), step=1), look(layer(), step=1, value=math.nan)],
        ids=["weights", "score"],
    )
    def test_hard_faults_do_not(self, broken: Look) -> None:
        assert says(SpectralPruner(n_warmup_steps=99), recorded(broken))
        assert SpectralPruner().explain(recorded(broken)).endswith("not finite at step 1")


class TestRules:
    @pytest.mark.parametrize(
        ("layers", "reason"),
        [
            ([layer("a", "MOVED_LITTLE"), layer("b", "MOVED_LITTLE"), layer("c")], ""),
            ([layer("a", "TRAP", "HEAVY_TAIL")], "rule traps: correlation traps in 1 of 1 layers: ['a']"),
            ([layer("a", "TRAP"), layer("b"), layer("c")], ""),
            ([layer("a"), layer("b", "RANK_COLLAPSE"), layer("c")], "rule rank_collapse: rank collapse in ['b']"),
            ([layer("a", "MOVED_LITTLE", M=31), layer("b", "TRAP", M=8), layer("c", "RANK_COLLAPSE", M=31)], ""),
            ([layer("a", "UNDER_TRAINED"), layer("b", "OVER_TRAINED")], ""),
            ([layer("a"), layer("b", "RANK_COLLAPSE", role="HEAD"), layer("c", "TRAP", role="EMBEDDING")], ""),
            ([layer("a", "RANK_COLLAPSE", role="HIDDEN")], "rule rank_collapse: rank collapse in ['a']"),
            ([], ""),
        ],
    )
    def test_each_speaks_for_wide_layers(self, layers: list[LayerRecord], reason: str) -> None:
        trial = recorded(look(*layers))
        assert SpectralPruner().explain(trial) == (f"{reason} at step 50" if reason else "")
        assert says(SpectralPruner(), trial) is bool(reason)

    def test_the_last_look_counts(self) -> None:
        bad, good = look(layer("a", "RANK_COLLAPSE"), step=60), look(layer("a"), step=70)
        assert not says(SpectralPruner(), recorded(good, bad))
        assert says(SpectralPruner(), recorded(replace(good, step=50), bad))

    def test_only_the_named_ones_apply(self) -> None:
        trial = recorded(look(layer("a", "MOVED_LITTLE")))
        assert not says(SpectralPruner(rules=["traps", "rank_collapse"]), trial)
        assert says(SpectralPruner(rules=["moved_little"]), trial)
        assert says(SpectralPruner(rules=["random"]), trial), "its name in earlier versions"
        assert (
            SpectralPruner(rules=["moved_little"]).explain(trial).startswith("rule moved_little: little moved in 1 of")
        )
        assert not says(SpectralPruner(rules=[]), trial)


class TestWrapped:
    @pytest.mark.parametrize("answer", [True, False])
    def test_it_is_asked_where_no_rule_applies(self, answer: bool) -> None:
        pruner = SpectralPruner(DeterministicPruner(answer))
        assert says(pruner, recorded(look(layer()))) is answer
        assert says(pruner, recorded()) is answer, "a trial without records is its alone"
        assert says(pruner, recorded(look(layer("a", "TRAP"))))

    def test_the_reason_names_it(self) -> None:
        study = optuna.create_study(pruner=SpectralPruner(DeterministicPruner(True)))
        study.optimize(tiny.OBJECTIVE, n_trials=1)
        assert records.reason(study.trials[0]) == "DeterministicPruner at step 5"

    def test_it_sees_the_study_unchanged(self) -> None:
        plain, wrapped = (
            optuna.pruners.MedianPruner(n_startup_trials=1),
            optuna.pruners.MedianPruner(n_startup_trials=1),
        )
        ended = []
        for pruner in (plain, SpectralPruner(wrapped, rules=[])):
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
            study.optimize(tiny.OBJECTIVE, n_trials=6)
            ended.append([(trial.state, trial.last_step) for trial in study.trials])
        assert ended[0] == ended[1]
        assert TrialState.PRUNED in {state for state, _ in ended[0]}


@pytest.mark.parametrize(("value", "pruned"), [(math.nan, True), (math.inf, True), (1.0, False)])
def test_what_a_users_own_objective_reports_counts_too(value: float, pruned: bool) -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.report(value, 3)
    assert says(SpectralPruner(), study.trials[0]) is pruned


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="n_warmup_steps=-1"):
        SpectralPruner(n_warmup_steps=-1)
    with pytest.raises(ValueError, match=r"rank_collapse.*got \['alpha'\]"):
        SpectralPruner(rules=["alpha"])
    with pytest.raises(ValueError, match="list of names"):
        SpectralPruner(rules="random")
