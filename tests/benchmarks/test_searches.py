"""Searches run in lockstep: their values are the objective's own, and their tables compare what all methods ran."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import FixedTrial

from benchmarks.evidence.tasks import CASES
from benchmarks.searches.engine import Answer, Env, Request, Search, lockstep
from benchmarks.searches.kept import UNTUNED, read_searches
from benchmarks.searches.tables import accuracies, judges, lines, trials_needed
from ww_opt import SpectralObjective

CASE = replace(next(case for case in CASES if case.name == "digits_adamw_40"), n_steps=40)


def test_late_runs_are_those_of_the_objective() -> None:
    env = Env(CASE)
    settings = {name: 0.0 if name.startswith("dropout") else value for name, value in env.untuned.items()}
    task = CASE.task()
    assert task.late_entry is not None
    for draw in (0, 3):
        late = replace(task, late_entry=replace(task.late_entry, seed=draw))
        objective = SpectralObjective(late, CASE.space, 40, 40, guard="late", seed=draw)
        (found,) = env.runs([Request(settings, draw)])
        # every dropout draws numbers there, at rate 0 too, so that batches come in another order after the first epoch
        assert found.value == pytest.approx(objective(FixedTrial(settings)), abs=0.05)
        assert {layer.name for layer in found.layers} == {"hidden1", "hidden2", "hidden3", "output"}


def test_searches_take_turns_and_each_hears_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Env(CASE)
    trained: list[tuple[int, int, str]] = []

    def runs(_: Env, asked: list[Request]) -> list[Answer]:
        trained.append((len(asked), asked[0].draw, asked[0].judge))
        return [Answer(own.parameters["x"] + own.draw, (), 0.0) for own in asked]

    monkeypatch.setattr(Env, "runs", runs)

    def search(x: float, draws: tuple[int, ...], judge: str = "late guard") -> Search:
        heard = []
        for draw in draws:
            answer = yield Request({"x": x}, draw, judge)
            heard.append(answer.value)
        return {"sum": sum(heard)}

    searches = {"a": search(0.5, (0, 0, 7)), "b": search(2.0, (0,)), "c": search(1.0, (0,), "split")}
    found = {key: pick for key, _, pick in lockstep(env, searches)}
    assert found == {"a": {"sum": 8.5}, "b": {"sum": 2.0}, "c": {"sum": 1.0}}
    assert trained == [(2, 0, "late guard"), (1, 0, "late guard"), (1, 0, "split"), (1, 7, "late guard")]


@pytest.mark.parametrize("judge", ["weights", "training loss guard", "split", "test set"])
def test_other_judges_go_by_plain_runs(judge: str) -> None:
    env = Env(CASE)
    settings = {name: 0.0 if name.startswith("dropout") else value for name, value in env.untuned.items()}
    (found,) = env.runs([Request(settings, 3, judge)])
    if judge == "test set":
        assert found.value == -found.test
        assert [found.test] == env.plain_runs([settings], 3)
        return
    if judge == "split":
        assert -1.0 < found.value < 0.0
        assert (-found.value * round(0.1 * len(env._examples))) % 1 == pytest.approx(0.0, abs=1e-9)
        return
    objective = SpectralObjective(CASE.task(), CASE.space, 40, 40, guard=judge != "weights", seed=3)
    assert found.value == pytest.approx(objective(FixedTrial(settings)), abs=0.05)


def _record(case: str, seed: int, method: str, fresh: float, **more: object) -> dict[str, object]:
    return {"case": case, "seed": seed, "method": method, "fresh": [fresh - 0.01, fresh + 0.01], **more}


def test_only_searches_that_all_methods_ran_are_compared() -> None:
    records = [
        _record("a", 0, "ours", 0.8), _record("a", 0, "theirs", 0.6), _record("a", 0, UNTUNED, 0.7),
        _record("b", 0, "ours", 0.1), _record("b", 0, UNTUNED, 0.7),
    ]  # fmt: skip
    assert accuracies(records)["ours"]["b", 0] == pytest.approx(10.0)
    table = lines(records, "ours")
    assert table[0] == "| | a | mean | ours beside it | below what the user came with |"
    assert [row.split(" | ")[0] for row in table[2:]] == ["| ours", "| untuned", "| theirs"]
    assert "| theirs | 60.0 | 60.0 | +20.0 [+20.0, +20.0] | 1 of 1 |" in table


def test_what_a_search_goes_by_is_set_beside_the_search_on_the_test_set() -> None:
    records = [
        _record("a", 0, "ours", 0.8), _record("a", 0, "ours, by test set", 0.85),
        _record("a", 0, "ours, by split", 0.6), _record("b", 0, "ours", 0.1), _record("a", 0, "theirs", 0.9),
    ]  # fmt: skip
    rows = judges(records, "ours")
    assert rows[0] == "1 searches each:"
    assert rows[4:] == [
        "| test set | 85.0 |  |", "| latecomers | 80.0 | +5.0 [+5.0, +5.0] |",
        "| split | 60.0 | +25.0 [+25.0, +25.0] |",
    ]  # fmt: skip
    assert not any(", by" in row for row in lines([*records, _record("a", 0, UNTUNED, 0.5)], "ours"))


def test_trials_needed_go_by_the_sealed_accuracy_of_the_leader() -> None:
    theirs = _record("a", 0, "theirs", 0.5, values=[3.0, 2.0, None], test=[0.1, 0.4, 0.9])
    ours = _record("a", 0, "ours", 0.5, values=[3.0, 4.0, 1.0], test=[0.3, 0.9, 0.5])
    assert trials_needed([theirs, ours], "theirs", "ours") == [3]
    assert trials_needed([theirs, ours], "ours", "theirs") == [4]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "searched.jsonl"
    path.write_text(json.dumps({"case": "a"}) + "\n" + '{"case": "b', encoding="utf-8")
    assert read_searches(tmp_path) == [{"case": "a"}]
    assert read_searches(tmp_path / "none") == []
