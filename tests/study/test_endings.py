"""What ends a study early, and what does not: a trial that raises, a sampler that has finished, a callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.samplers import GridSampler, RandomSampler
from optuna.trial import TrialState
from torch import Tensor, nn

from tests import tiny
from ww_opt import Study
from ww_opt.search import records
from ww_opt.study.closing import closing
from ww_opt.study.endings import NOTHING_LEFT
from ww_opt.study.study import n_finished, open_study, run

QUICK = replace(tiny.OBJECTIVE, n_steps=2, interval_steps=2)
SPACE = {f"lr/{layer}": [0.01] for layer in ("2", "4")}


def raising(when: Callable[[int], bool], error: type[Exception] = RuntimeError, **changes: Any) -> Study:
    """A study of which the trials whose number fulfils ``when`` raise; to open it builds no model (``is_checked``)."""
    number = -1

    def build_model() -> nn.Module:
        nonlocal number
        number += 1
        return tiny.build_model()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if when(number):
            raise error(f"of trial {number}")
        return tiny.loss(model, batch)

    objective = replace(QUICK, task=replace(tiny.TASK, build_model=build_model, loss=loss))
    return replace(tiny.STUDY, objective=objective, n_trials=6, **changes)


def ended(study: Study, directory: Path) -> str:
    """States of the trials, a letter each."""
    host = open_study(study, is_checked=True)
    try:
        run(study, host, directory)
    except Exception as error:
        return "".join(trial.state.name[0] for trial in host.trials) + f" {' '.join(error.__notes__)}".rstrip()
    return "".join(trial.state.name[0] for trial in host.trials)


class TestTrialsThatRaise:
    def test_one_is_a_fault_of_its_setting(self, tmp_path: Path) -> None:
        study = raising(lambda number: number in (1, 3, 4), torch.OutOfMemoryError)
        host = open_study(study, is_checked=True)
        run(study, host, tmp_path)
        assert [trial.state for trial in host.trials].count(TrialState.FAIL) == 3
        assert records.reason(host.trials[3]) == "OutOfMemoryError: of trial 3"
        assert n_finished(host) == 6, "a failed trial uses up budget"
        result = closing(study, host)
        assert (result.n_complete, result.n_failed) == (3, 3)
        assert result.failures[0] == "OutOfMemoryError: of trial 1"

    def test_the_first_is_a_fault_of_the_code(self, tmp_path: Path) -> None:
        said = ended(raising(lambda number: number == 0), tmp_path)
        assert said == "F No trial of the study has completed yet, so this is taken for a fault of the code."

    def test_three_in_a_row_are_a_fault_of_the_code(self, tmp_path: Path) -> None:
        said = ended(raising(lambda number: number > 1), tmp_path)
        assert said == "CCFFF Trials 2, 3, 4 failed in a row, so this is taken for a fault of the code."

    def test_nothing_is_caught_that_was_not_asked_for(self, tmp_path: Path) -> None:
        for number, catch in enumerate([(), (MemoryError,)]):
            study = raising(lambda number: number == 1, catch=catch)
            host = open_study(study, is_checked=True)
            with pytest.raises(RuntimeError, match="of trial 1"):
                run(study, host, tmp_path / str(number))

    def test_the_model_of_a_failed_trial_is_let_go(self, tmp_path: Path) -> None:
        import weakref

        models: list[weakref.ref[nn.Module]] = []
        alive: list[bool] = []

        def build_model() -> nn.Module:
            alive.extend(model() is not None for model in models)
            model = tiny.build_model()
            models.append(weakref.ref(model))
            return model

        def loss(model: nn.Module, batch: Any) -> Tensor:
            if len(models) == 2:
                raise torch.OutOfMemoryError("mine")
            return tiny.loss(model, batch)

        task = replace(tiny.TASK, build_model=build_model, loss=loss)
        study = replace(tiny.STUDY, objective=replace(QUICK, task=task), n_trials=3)
        run(study, open_study(study, is_checked=True), tmp_path)
        assert len(models) == 3
        assert not alive[-1], "else it would take the next trial's memory"

    @pytest.mark.parametrize("catch", [RuntimeError, (int,), ["x"]])
    def test_what_is_no_tuple_of_exceptions_is_named(self, catch: object) -> None:
        with pytest.raises(TypeError, match=r"Study\.catch must be a tuple of exception classes"):
            replace(tiny.STUDY, catch=catch)  # type: ignore[arg-type]


class TestStops:
    @staticmethod
    def grid(**changes: Any) -> Study:
        def sampler(seed: int) -> GridSampler:
            return GridSampler({"lr/0": [1e-3, 1e-2, 1e-1], **SPACE}, seed=seed)

        return replace(tiny.STUDY, objective=QUICK, n_trials=14, sampler=sampler, **changes)

    def test_a_sampler_that_has_finished_ends_the_study(self, tmp_path: Path) -> None:
        host = open_study(self.grid())
        assert run(self.grid(), host, tmp_path) == NOTHING_LEFT
        assert sorted(trial.params["lr/0"] for trial in host.trials) == [1e-3, 1e-2, 1e-1]
        assert run(self.grid(), host, tmp_path) == NOTHING_LEFT
        assert len(host.trials) == 3, "run again, it has nothing left either"

    def test_what_waits_is_done_all_the_same(self, tmp_path: Path) -> None:
        host = open_study(self.grid())
        run(self.grid(), host, tmp_path)
        for lr in (0.02, 0.03):
            host.enqueue_trial({"lr/0": lr, "lr/2": 0.01, "lr/4": 0.01})
        run(self.grid(), host, tmp_path)
        assert [trial.params["lr/0"] for trial in host.trials[3:]] == [0.02, 0.03]

    def test_an_observer_that_stops_is_heard(self, tmp_path: Path) -> None:
        study = replace(tiny.STUDY, objective=QUICK, n_trials=5)
        host = open_study(study)
        said = run(study, host, tmp_path, [lambda host, trial: host.stop() if trial.number == 1 else None])
        assert said == "The study was stopped by `study.stop()` in a callback."
        assert len(host.trials) == 2
        assert run(study, host, tmp_path) == "", "it goes on when it is run again"
        assert len(host.trials) == 5
        assert "stop" not in vars(host)

    def test_an_objective_that_stops_is_heard(self, tmp_path: Path) -> None:
        host = open_study(replace(tiny.STUDY, objective=QUICK, n_trials=5))

        def loss(model: nn.Module, batch: Any) -> Tensor:
            host.stop()
            return tiny.loss(model, batch)

        study = replace(tiny.STUDY, objective=replace(QUICK, task=replace(tiny.TASK, loss=loss)), n_trials=5)
        assert run(study, host, tmp_path) == "The study was stopped by `study.stop()` in the objective."
        assert len(host.trials) == 1

    def test_settings_that_were_tried_again_count_once(self, tmp_path: Path) -> None:
        study = replace(tiny.STUDY, objective=QUICK, n_trials=12, sampler=lambda seed: RandomSampler(seed=seed))
        host = open_study(study)
        for number in range(12):
            host.enqueue_trial({"lr/0": 0.01 + 0.01 * (number % 2), "lr/2": 0.01, "lr/4": 0.01})
        run(study, host, tmp_path)
        result = closing(study, host)
        assert (result.n_complete, result.n_settings) == (12, 2)
        assert any("Only 12 trials completed, of 2 distinct settings" in said for said in result.trust)


def test_no_feasible_trial_does_not_end_a_study_that_keeps_the_best(tmp_path: Path) -> None:
    class Constrained(RandomSampler):
        def after_trial(self, study: optuna.Study, trial: Any, state: Any, values: Any) -> None:
            study._storage.set_trial_system_attr(trial._trial_id, "constraints", [trial.number % 2 - 0.5])

    study = replace(tiny.STUDY, n_trials=4, keep_weights="best", sampler=lambda seed: Constrained(seed=seed))
    host = open_study(study)
    run(study, host, tmp_path)
    infeasible = [trial.number for trial in host.trials if trial.number % 2]
    result = closing(study, host)
    assert result.pick is not None
    assert result.pick.number not in infeasible
    assert [file.name for file in tmp_path.glob("*.pt")] == [f"trial-{result.pick.number:05d}.pt"]
    assert "2 completed trials not ranked, for a constraint is violated: 1, 3." in result.trust[0]
