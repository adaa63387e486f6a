"""What every study owes to those who run it. One class; a new file in `studies/` needs no new test."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

import studies
from ww_opt import Study
from ww_opt.search import records
from ww_opt.study.references import load_study

FOLDER = Path(studies.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def test_there_are_studies_and_no_two_of_one_name() -> None:
    names = [load_study(f"studies.{name}").name for name in NAMES]
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", NAMES)
class TestStudy:
    @pytest.fixture
    def study(self, name: str) -> Study:
        return load_study(str(FOLDER / f"{name}.py"))

    def test_its_first_line_asks_one_question(self, name: str) -> None:
        text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
        question = text.partition("\n")[0]
        assert question.endswith("?")
        assert question.count("?") == 1

    def test_it_is_named_after_its_file(self, name: str, study: Study) -> None:
        assert study.name == name.replace("_", "-")

    def test_its_budget_is_bearable(self, study: Study) -> None:
        assert 2 <= study.n_trials <= 200
        looks = study.objective.n_steps / study.objective.interval
        assert looks >= 4, "a pruner that waits for half of the run has to see something after it"

    def test_its_space_suggests_for_every_label(self, study: Study) -> None:
        torch.manual_seed(0)
        model = study.objective.task.build_model()
        trial = optuna.create_study().ask()
        settings = study.objective.space.suggest(trial, model)
        assert trial.distributions == study.objective.space.parameters(model)
        assert len(trial.params) >= len(settings) - 1

    def test_its_sampler_is_made_anew_from_a_seed(self, study: Study) -> None:
        first, second = study.sampler(1), study.sampler(2)
        assert isinstance(first, BaseSampler)
        assert first is not second

    def test_a_shortened_trial_gives_a_value_and_its_layers(self, study: Study) -> None:
        short = replace(study.objective, n_steps=4, interval_steps=4)
        host = optuna.create_study(direction=short.direction, sampler=study.sampler(0))
        host.optimize(short, n_trials=1)
        (trial,) = host.trials
        assert trial.state is TrialState.COMPLETE
        (look,) = records.looks(trial)
        assert look.value == trial.value
        assert any(layer.M >= 32 for layer in look.layers), "narrower layers say nothing"

    def test_its_pruner_leaves_the_first_look_of_a_first_trial_alone(self, study: Study) -> None:
        objective = study.objective
        host = optuna.create_study(direction=objective.direction, pruner=study.pruner, sampler=study.sampler(0))
        trial = host.ask()
        trial.report(1.0, objective.interval)
        assert not trial.should_prune()

    def test_it_ends_with_a_test_set(self, study: Study) -> None:
        assert study.objective.task.evaluate is not None
