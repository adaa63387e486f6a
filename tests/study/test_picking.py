"""From a study to a model, and to a file that says what it is."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial
from torch import Tensor, nn

import ww_opt
from tests import tiny
from tests.study.test_closing import late_study
from ww_opt import LayerwiseSpace, SpectralObjective, train_best
from ww_opt.study.closing import closing
from ww_opt.study.pick_card import git_commit, pick_card, write_card
from ww_opt.study.study import open_study, run

QUICK = replace(tiny.OBJECTIVE, n_steps=4, interval_steps=2)


def optimised(objective: SpectralObjective, n_trials: int = 3) -> optuna.Study:
    study = optuna.create_study(direction=objective.direction, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=n_trials)
    return study


class TestTrainBest:
    def test_it_is_the_model_of_the_best_trial(self) -> None:
        kept: dict[int, nn.Module] = {}
        objective = replace(QUICK, on_trained=lambda trial, model: kept.update({trial.number: model}))
        study = optimised(objective)
        model = train_best(study, objective)
        assert not model.training
        assert sorted(kept) == [0, 1, 2], "the objective's own `on_trained` is not called"
        expected = kept[study.best_trial.number].state_dict()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name])

    def test_the_scale_of_the_initial_weights_is_set_again(self) -> None:
        kept: list[nn.Module] = []
        task = replace(tiny.TASK, optimizer=partial(torch.optim.SGD, lr=1e-9))
        scaled = replace(
            QUICK, task=task, space=LayerwiseSpace(init_scale=3.0), on_trained=lambda _, own: kept.append(own)
        )
        study = optimised(scaled, 1)
        weight = train_best(study, scaled).state_dict()["0.weight"]
        plain = replace(scaled, space=LayerwiseSpace(init_scale=1.0))
        optimised(plain, 1)
        torch.testing.assert_close(weight, kept[0].state_dict()["0.weight"])
        torch.testing.assert_close(weight, 3.0 * kept[1].state_dict()["0.weight"])

    def test_another_seed_is_another_model(self) -> None:
        study = optimised(QUICK, 1)
        state = torch.get_rng_state()
        one, two, again = (next(train_best(study, QUICK, seed=seed).parameters()) for seed in (5, 6, 5))
        assert torch.equal(one, again)
        assert not torch.equal(one, two)
        assert torch.equal(torch.get_rng_state(), state)

    def test_who_joined_late_is_there_from_the_start(self) -> None:
        seen: list[Tensor] = []
        objective = late_study(seen).objective
        study = optimised(objective, 1)
        seen.clear()
        train_best(study, objective)
        assert len(torch.cat(seen[:7]).unique()) == 100, "the first epoch shows all"

    def test_what_is_infeasible_is_not_the_best(self) -> None:
        study = optimised(QUICK, 2)
        params, distributions = study.best_trial.params, study.best_trial.distributions
        far = create_trial(
            value=-100.0, params={**params, "lr/0": 0.09}, distributions=distributions, constraints={"x": 1.0}
        )
        study.add_trial(far)
        expected = next(train_best(study, QUICK).parameters())
        study_without = optimised(QUICK, 2)
        assert torch.equal(expected, next(train_best(study_without, QUICK).parameters()))

    def test_without_a_best_trial_it_says_why(self) -> None:
        study = optuna.create_study()
        with pytest.raises(ValueError, match=r"must have a best trial.*0 trials completed"):
            train_best(study, QUICK)
        study.add_trial(create_trial(value=1.0, constraints={"x": 1.0}))
        with pytest.raises(ValueError, match="a constraint is violated"):
            train_best(study, QUICK)

    def test_training_that_diverges_says_so(self) -> None:
        study = optimised(QUICK, 1)
        broken = replace(
            QUICK, task=replace(tiny.TASK, loss=lambda model, batch: tiny.loss(model, batch) * float("nan"))
        )
        with pytest.raises(RuntimeError, match=r"seed=None.*diverge|must not diverge"):
            train_best(study, broken)

    def test_bad_types_are_named(self) -> None:
        with pytest.raises(TypeError, match=r"must be an optuna\.Study, but got a Study.*load_study"):
            train_best(tiny.STUDY, QUICK)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"must be a ww_opt\.SpectralObjective.*study\.best_params"):
            train_best(optuna.create_study(), len)  # type: ignore[arg-type]


class TestCard:
    @staticmethod
    def made(directory: Path, **changes: Any) -> dict[str, Any]:
        study = replace(tiny.STUDY, objective=QUICK, n_repeats=0, seed=3, **changes)
        host = open_study(study)
        run(study, host, directory)
        card = pick_card(study, host, closing(study, host), directory / "trial-00001.pt", directory)
        assert card is not None
        file = write_card(card, directory)
        assert [left.name for left in directory.iterdir() if "pick.json" in left.name] == ["pick.json"]
        assert file.name == "pick.json"
        read: dict[str, Any] = json.loads(
            file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
        )
        assert read["trial"] == host.best_trial.number
        assert read["value"] == host.best_trial.value
        assert read["params"] == host.best_trial.params
        return read

    def test_it_says_what_the_pick_is(self, tmp_path: Path) -> None:
        read = self.made(tmp_path)
        assert (read["study"], read["task"], read["score"], read["guard"]) == ("tiny", "tiny", "default", False)
        assert (read["n_steps"], read["seed"], read["sampler_seed"], read["sampler"]) == (4, 0, 3, "LayerwiseSampler")
        assert read["optimizer"] == "AdamW"
        assert read["settings"]["0"]["weight_decay"] == 1e-4, "constants too"
        assert read["late_accuracy"] is None
        assert any("Only 3 trials completed" in said for said in read["trust"])
        assert any("What mattered cannot be told: 3 completed" in said for said in read["mattered"])
        assert read["weights"] == "trial-00001.pt"
        assert read["versions"]["ww_opt"] == ww_opt.__version__
        assert set(read["versions"]) == {"ww_opt", "torch", "optuna", "python"}
        assert read["made"].endswith("+00:00")

    def test_the_commit_is_that_of_the_folder(self, tmp_path: Path) -> None:
        assert git_commit(tmp_path) is None
        git = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
        own = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
        git(["git", "init", "-q"])
        (tmp_path / "a").write_text("1")
        git(["git", "add", "a"])
        git([*own, "commit", "-qm", "a"])
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        assert git_commit(tmp_path) == commit
        (tmp_path / "a").write_text("2")
        assert git_commit(tmp_path) == f"{commit}+changes"

    def test_no_pick_has_no_card(self, tmp_path: Path) -> None:
        host = open_study(tiny.STUDY)
        host.add_trial(create_trial(state=TrialState.PRUNED))
        assert pick_card(tiny.STUDY, host, closing(tiny.STUDY, host), None, tmp_path) is None
