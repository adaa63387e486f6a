"""A study trains its leaders again within its budget."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests import tiny
from ww_opt.search import records
from ww_opt.search.ranking import INTERRUPTED, ranking
from ww_opt.search.repeats import MARK, repeat_of, spread
from ww_opt.study.closing import closing
from ww_opt.study.leaders import drawn, plan_repeat
from ww_opt.study.study import open_study, run
from ww_opt.training.late_entry import LateExamples

OBJECTIVE = replace(tiny.OBJECTIVE, n_steps=4, interval_steps=4)
STUDY = replace(tiny.STUDY, objective=OBJECTIVE, n_trials=16)


def repeated(host: optuna.Study) -> list[tuple[int, int]]:
    return [(own.of, own.draw) for trial in host.trials if (own := repeat_of(trial))]


def test_the_last_quarter_repeats_two_leaders(tmp_path: Path) -> None:
    host = open_study(STUDY)
    run(STUDY, host, tmp_path)
    assert len(host.trials) == 16
    assert len(repeated(host)) == 4
    assert all(repeat_of(trial) is None for trial in host.trials[:12])
    first, second = (of for of, draw in repeated(host) if draw == 1)
    assert sorted(repeated(host)) == sorted([(first, 1), (first, 2), (second, 1), (second, 2)])
    for trial in host.trials[12:]:
        of = repeat_of(trial)
        assert of is not None
        assert trial.params == host.trials[of.of].params
        assert trial.value != host.trials[of.of].value  # another seed
    found = spread(host, ranking(host).trials)
    assert found is not None
    assert ranking(host).trials[0].number == min(found.means, key=lambda number: found.means[number])
    said = closing(STUDY, host, repeat=True)
    assert any("2 leaders were trained 2 times more" in sentence for sentence in said.trust)
    assert said.noise == pytest.approx(found.noise)
    assert not any(key.startswith("ww_opt:repeats:") for key in host.user_attrs)


def test_a_longer_study_searches_on_and_repeats_its_new_leaders(tmp_path: Path) -> None:
    host = open_study(STUDY)
    run(STUDY, host, tmp_path)
    longer = replace(STUDY, n_trials=40, n_repeats=1)
    run(longer, host, tmp_path)
    assert len(host.trials) == 40
    last = host.trials[-1]
    assert repeat_of(last) is not None
    searched = [trial.number for trial in host.trials if repeat_of(trial) is None]
    assert max(searched) > 16


def test_an_interrupted_repeat_is_done_again_as_one(tmp_path: Path) -> None:
    host = open_study(STUDY)

    def interrupt(_: optuna.Study, trial: FrozenTrial) -> None:
        if repeat_of(trial):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(STUDY, objective=replace(OBJECTIVE, task=_stopping(host))), host, tmp_path)
    assert [trial.state for trial in host.trials if trial.user_attrs.get(MARK)] == [
        TrialState.FAIL,
        TrialState.WAITING,
    ]
    run(STUDY, host, tmp_path)
    done = [trial for trial in host.trials if records.reason(trial) != INTERRUPTED]
    assert len(done) == 16
    assert len({repeat_of(trial) for trial in done} - {None}) == 4


def _stopping(host: optuna.Study) -> object:
    """The task, which Ctrl-C ends in the first repeat."""

    def build_model() -> object:
        if host.trials[-1].user_attrs.get(MARK):
            raise KeyboardInterrupt
        return tiny.build_model()

    return replace(tiny.TASK, build_model=build_model)  # type: ignore[arg-type]


def test_of_two_workers_that_queue_one_repeat_the_later_takes_it_back(tmp_path: Path) -> None:
    host = open_study(replace(STUDY, n_repeats=0, n_trials=12))
    run(replace(STUDY, n_repeats=0, n_trials=12), host, tmp_path)
    plan_repeat(host, 16, 2, 2)
    (first,) = repeated(host)
    host.enqueue_trial(host.trials[first[0]].params, user_attrs={MARK: list(first)})
    from ww_opt.search.repeats import Repeat
    from ww_opt.study.leaders import _is_first

    assert not _is_first(host, Repeat(*first))
    assert [trial.state for trial in host.trials[12:]] == [TrialState.WAITING, TrialState.FAIL]


def test_settings_that_the_user_came_with_run_to_their_end_and_are_repeated(tmp_path: Path) -> None:
    class PruneAll(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            return trial.number < 9

    study = replace(STUDY, pruner=PruneAll(), objective=replace(OBJECTIVE, interval_steps=2), start=True)
    host = open_study(study)
    run(study, host, tmp_path)
    assert host.trials[0].state is TrialState.COMPLETE
    assert host.trials[1].state is TrialState.PRUNED
    assert (0, 1) in repeated(host)
    assert all(trial.state is TrialState.COMPLETE for trial in host.trials if repeat_of(trial))


def test_a_repeat_has_seeds_and_late_examples_of_its_own() -> None:
    late = LateExamples(96, 32, take=lambda index: index)
    objective = replace(tiny.OBJECTIVE, task=replace(tiny.TASK, late_entry=late))
    study = optuna.create_study()
    study.enqueue_trial({"lr/0": 0.01}, user_attrs={MARK: [0, 2]})
    own = drawn(objective, study.ask())
    assert own.seed == objective.seed + 2
    assert own.task.late_entry is not None
    assert own.task.late_entry.seed == late.seed + 2
    assert drawn(objective, study.ask()) is objective


def test_a_trial_that_another_worker_runs_is_waited_for() -> None:
    study = optuna.create_study()
    for value in (3.0, 2.0, 1.0):
        trial = study.ask()
        trial.suggest_float("lr/0", 0.0, 1.0)
        time.sleep(0.05)
        study.tell(trial, value)
    running = study.ask()
    running.suggest_float("lr/0", 0.0, 1.0)
    assert plan_repeat(study, 6, 2, 1) is None
    study.tell(running, 0.0)
    assert plan_repeat(study, 6, 2, 1)
    assert repeated(study) == [(3, 1)]  # the one that was waited for leads


def test_no_more_are_queued_than_there_is_budget_for() -> None:
    study = optuna.create_study()
    for value in (3.0, 2.0, 1.0):
        trial = study.ask()
        trial.suggest_float("lr/0", 0.0, 1.0)
        study.tell(trial, value)
    assert plan_repeat(study, 4, 2, 1)
    assert plan_repeat(study, 4, 2, 1), "what waits is to be run"
    assert len(repeated(study)) == 1


def test_a_trial_of_a_dead_worker_is_not_waited_for() -> None:
    study = optuna.create_study()
    for value in (3.0, 2.0):
        trial = study.ask()
        trial.suggest_float("lr/0", 0.0, 1.0)
        study.tell(trial, value)
    study.ask()
    time.sleep(3.2 * max(trial.duration.total_seconds() for trial in study.trials[:2] if trial.duration) + 0.01)
    assert plan_repeat(study, 5, 2, 1)
    assert repeated(study) == [(1, 1)]
