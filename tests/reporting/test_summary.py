from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from ww_opt.reporting import summary
from ww_opt.search import records
from ww_opt.search.ranking import INTERRUPTED, best


def layer(name: str, alpha: float = 3.0) -> records.LayerRecord:
    return records.LayerRecord(
        name=name, N=64, M=32, alpha=alpha, D=0.1, sigma=0.2, n_tail=12, spikes=2, n_eigenvalues=32, traps=1,
        rank_loss=0, stable_rank=7.5, spectral_norm=4.0, findings=("TRAP", "HEAVY_TAIL"),
    )  # fmt: skip


def finished(*looks: records.Look, **attrs: object) -> FrozenTrial:
    study = optuna.create_study()
    trial = study.ask()
    for look in looks:
        records.write_look(trial, look)
    records.write(trial, **attrs)
    study.tell(trial, 1.5)
    return study.trials[0]


@pytest.mark.parametrize("name", ["lr/fc1", "a.b-c_d e/f", "x" * 250])
def test_a_good_name_stays(name: str) -> None:
    assert summary.clean_names([name]) == {name: name}


def test_hostile_names_become_keys_that_mlflow_takes_and_stay_apart() -> None:
    names = ["lr/blocks[0].w=1", "lr/blocks_0_.w_1", "lr/blocks(0).w=1", "", ".", "..", "/a", "a//b", "a/./b", "a/../b",
             "schicht/größe", "层/0", "层/1", "k" * 300, "k" * 301, "k" * 250 + "/", "a:b", "\n", "\ud800"]  # fmt: skip
    keys = summary.clean_names(names)
    assert list(keys) == names
    assert len(set(keys.values())) == len(names)
    for key in keys.values():
        assert re.fullmatch(r"[A-Za-z0-9_\-. /]{1,250}", key)
        assert all(part.strip(".") for part in key.split("/"))
    assert keys["lr/blocks_0_.w_1"] == "lr/blocks_0_.w_1", "a name that needs no change keeps its own"


def test_curves_hold_what_is_finite() -> None:
    look = records.Look(3, 10, value=1.0, score=2.0, seconds=0.5, layers=(layer("a"), layer("b", alpha=math.nan)))
    points = summary.curves(finished(look))
    assert points["score", 3] == 2.0
    assert points["value", 3] == 1.0
    assert points["diagnosis_seconds", 3] == 0.5
    assert points["alpha/a", 3] == points["mean_alpha", 3] == 3.0
    assert points["final_value", 3] == 1.5
    assert points["traps/b", 3] == 1.0
    assert not {name for name, _ in points} & {"alpha/b", "train_loss"}
    assert all(math.isfinite(value) for value in points.values())


def test_means_are_over_the_layers_that_the_score_judges() -> None:
    named = {"HIDDEN": 3.0, "HEAD": 100.0, "EMBEDDING": 50.0, "FROZEN": 20.0}
    layers = [replace(layer(role, alpha), role=role) for role, alpha in named.items()]
    narrow = replace(layer("narrow", 9.0), role="HIDDEN", M=16)
    points = summary.curves(finished(records.Look(3, 10, 1.0, 2.0, layers=(*layers, narrow))))
    assert points["mean_alpha", 3] == 3.0
    assert points["alpha/HEAD", 3] == 100.0


def test_an_interrupted_trial_is_told_as_such() -> None:
    attrs = {"ww_opt:reason": INTERRUPTED}
    study = optuna.create_study(study_name="s")
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs=attrs))
    assert summary.note(study.trials[0], 1000).startswith("**INTERRUPTED**")
    assert summary.study_note(study, study.trials, None) == "s: 1 INTERRUPTED. No best trial yet."


@pytest.mark.parametrize(("n_layers", "has_curve"), [(100, True), (101, False)])
def test_beyond_100_layers_only_means_are_curves(n_layers: int, has_curve: bool) -> None:
    trial = finished(records.Look(0, 1, 1.0, 1.0, layers=tuple(layer(f"l{i}") for i in range(n_layers))))
    points = summary.curves(trial)
    assert (("alpha/l0", 0) in points) is has_curve
    assert points["mean_alpha", 0] == pytest.approx(3.0)
    assert len(summary.layer_table(trial).rows) == n_layers


def test_parameters_hold_each_value_once() -> None:
    study = optuna.create_study()
    trial = study.ask({"lr/fc1": optuna.distributions.FloatDistribution(0.1, 0.1)})
    records.write(trial, settings={"fc1": {"lr": 0.1, "weight_decay": 0.5}})
    study.tell(trial, 1.0)
    assert summary.parameters(study.trials[0]) == {"lr/fc1": 0.1, "weight_decay/fc1": 0.5}


def test_parameters_flatten_the_settings_and_leave_out_none() -> None:
    trial = finished(settings={"fc1": {"lr": 0.1, "momentum": None}, "fc2": {"weight_decay": 0.0}}, other=1)
    assert summary.parameters(trial) == {"lr/fc1": 0.1, "weight_decay/fc2": 0.0}


def test_the_table_reads_back_from_json_and_csv() -> None:
    table = summary.layer_table(finished(records.Look(3, 10, 1.0, 2.0, layers=(layer('a,"b"', alpha=math.nan),))))
    read = json.loads(table.to_json())
    row = dict(zip(read["columns"], read["data"][0], strict=True))
    assert row["alpha"] is None
    assert (row["step"], row["name"], row["stable_rank"], row["findings"]) == (3, 'a,"b"', 7.5, "trap, heavy tail")
    cells = next(csv.DictReader(io.StringIO(table.to_csv())))
    assert cells["alpha"] == ""
    assert cells["name"] == 'a,"b"'


def test_the_note_tells_state_reason_and_layers() -> None:
    text = summary.note(finished(records.Look(3, 10, 1.0, 2.0, layers=(layer("fc1"),)), reason="a trap in fc1"), 8000)
    assert text.startswith("**COMPLETE** 1.5\n\na trap in fc1\n\nLayers at step 3:")
    assert "| fc1 | 3 | 0.1 | 7.5 | 2 | 1 | 0 | trap, heavy tail |" in text


def test_a_long_note_ends_with_a_whole_row_and_says_so() -> None:
    look = records.Look(0, 1, 1.0, 1.0, layers=tuple(layer(f"layer{i}") for i in range(500)))
    text = summary.note(finished(look), 2000)
    assert len(text) <= 2000
    *rows, blank, last = text.split("\n")
    assert rows[-1].endswith("|")
    assert (blank, last) == ("", "The other layers are in `layers.csv`.")


@pytest.mark.parametrize(("direction", "number"), [("minimize", 1), ("maximize", 2)])
def test_the_best_is_complete_and_feasible(direction: str, number: int) -> None:
    study = optuna.create_study(direction=direction)
    study.add_trial(optuna.create_trial(value=0.0 if direction == "minimize" else 9.0, state=TrialState.PRUNED))
    for value in (1.0, 2.0):
        study.add_trial(optuna.create_trial(value=value))
    study.add_trial(optuna.create_trial(value=0.5 if direction == "minimize" else 5.0, constraints={"guard": 1.0}))
    found = best(study, study.trials)
    assert found is not None
    assert found.number == study.best_trial.number == number


def test_the_best_value_at_the_end_of_a_trial_does_not_know_the_future() -> None:
    start = datetime(2030, 1, 1)
    study = optuna.create_study()
    for number, (minutes, value) in enumerate([(3, 2.0), (2, 4.0), (1, None), (4, 1.0)]):
        trial = optuna.create_trial(value=value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        trial.number, trial.datetime_complete = number, start + timedelta(minutes=minutes)
        study.add_trial(trial)
    values = [summary.best_value_at(study, study.trials, trial) for trial in study.trials]
    assert values == pytest.approx([2.0, 4.0, math.nan, 1.0], nan_ok=True)


def test_nothing_is_best_without_a_complete_trial_or_with_two_objectives() -> None:
    assert best(optuna.create_study(), []) is None
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trial(optuna.create_trial(values=[1.0, 2.0]))
    assert best(study, study.trials) is None


def test_the_id_of_a_study_moves_with_it(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s")
    study.optimize(lambda trial: 1.0, n_trials=2)
    storage = f"sqlite:///{tmp_path}/s.db"
    optuna.copy_study(from_study_name="s", from_storage=study._storage, to_storage=storage)
    assert summary.study_id(optuna.load_study(study_name="s", storage=storage)) == summary.study_id(study)
    other = optuna.create_study(study_name="s")
    other.optimize(lambda trial: 1.0, n_trials=1)
    assert summary.study_id(other) != summary.study_id(study)
