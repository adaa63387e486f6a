"""The end of a study whose examples joined late: the pick is trained once more, in the plain way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests import tiny
from tests.training.test_late_entry import both, late_task
from ww_opt import Study
from ww_opt.reporting.closing_text import accuracy_text, closing_text
from ww_opt.study.closing import closing, open_test_set
from ww_opt.study.picking import train_pick
from ww_opt.study.study import open_study, run
from ww_opt.study.weights_folder import pick_file


def late_study(seen: list[torch.Tensor]) -> Study:
    task = late_task(seen, both)
    late = task.late_entry
    assert late is not None
    whole = replace(task, batches=lambda: (late.take(index) for index in torch.arange(100).split(16)))
    objective = replace(tiny.OBJECTIVE, task=whole, guard="late")
    return replace(tiny.STUDY, objective=objective, n_trials=2)


def test_the_pick_is_trained_once_more_with_all_examples_from_the_start(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    said: list[str] = []
    study = late_study(seen)
    host = open_study(study)
    run(study, host, tmp_path)
    before = open_test_set(study, host, tmp_path)
    assert before is not None
    assert "trained again" not in accuracy_text(before)
    seen.clear()
    file = train_pick(study.objective, host, host.best_trial, tmp_path, said.append)
    assert file == pick_file(tmp_path, host.best_trial.number)
    assert len(torch.cat(seen).unique()) == 100, "the task's own batches, all of them"
    assert said == ["Training the pick once more, with all examples from the start"]
    seen.clear()
    assert train_pick(study.objective, host, host.best_trial, tmp_path, said.append) == file
    assert (seen, len(said)) == ([], 1), "once for all"

    model = tiny.build_model()
    model.load_state_dict(torch.load(file, weights_only=True))
    after = open_test_set(study, host, tmp_path)
    assert after is not None
    assert after == replace(before, again=tiny.evaluate(model))
    assert f"({after.again:.1%} trained again with all examples from the start)" in accuracy_text(after)


def test_it_is_told_what_looks_took(tmp_path: Path) -> None:
    host = open_study(tiny.STUDY)
    run(tiny.STUDY, host, tmp_path)
    result = closing(tiny.STUDY, host)
    assert result.look_share > 0.0
    result = replace(result, look_share=0.03)
    assert "of the steps.\nLooks took 3.0% of the training time.\n" in closing_text(result, {})
    assert "Looks took" not in closing_text(replace(result, look_share=float("nan")), {})


def test_weights_of_another_study_are_not_taken_for_the_picks(tmp_path: Path) -> None:
    study = late_study([])
    host = open_study(study)
    run(study, host, tmp_path)
    pick_file(tmp_path, host.best_trial.number).write_bytes(b"left by a study that was deleted")
    accuracy = open_test_set(study, host, tmp_path)
    assert accuracy is not None
    assert accuracy.again != accuracy.again, "NaN: not trained yet"
    file = train_pick(study.objective, host, host.best_trial, tmp_path)
    assert file is not None
    assert torch.load(file, weights_only=True)


def test_without_late_examples_there_is_nothing_to_repeat(tmp_path: Path) -> None:
    host = open_study(tiny.STUDY)
    run(tiny.STUDY, host, tmp_path)
    assert train_pick(tiny.OBJECTIVE, host, host.best_trial, tmp_path) is None
    assert not pick_file(tmp_path, host.best_trial.number).exists()
