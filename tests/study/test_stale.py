"""Trials whose process is gone are done again, under their number, once; others are left alone."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from torch import Tensor, nn

from tests import tiny
from ww_opt import Study
from ww_opt.search import records
from ww_opt.study import stale
from ww_opt.study.budget import n_finished, n_taken
from ww_opt.study.presence import Process, is_gone, place, this_process
from ww_opt.study.shared_storage import SharedStorage, stamps
from ww_opt.study.stale import requeue_stale
from ww_opt.study.study import open_study, run

QUICK = replace(tiny.OBJECTIVE, n_steps=2, interval_steps=2)
STUDY = replace(tiny.STUDY, objective=QUICK, n_trials=4)
RUNNING, WAITING, COMPLETE, FAIL = TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.FAIL


@pytest.fixture(params=["studies.journal", "sqlite:///studies.db"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def states(host: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in host.trials]


def stamped(host: optuna.Study, number: int, **changes: Any) -> None:
    """Put another process's name on a trial in the place of ours."""
    trial = host.trials[number]
    (stamp,) = stamps(trial)
    kept = {**vars(stamp.process), "at": stamp.at, **changes}
    host._storage.set_trial_system_attr(trial._trial_id, stamp.key, None)
    host._storage.set_trial_system_attr(trial._trial_id, f"ww_opt:process:{os.urandom(4).hex()}", kept)


def ended_process() -> Process:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = Process(place(), process.pid, "1")
    process.communicate(b"\n")
    return found


class TestPresence:
    def test_this_process_is_there_and_one_that_ended_is_not(self) -> None:
        assert is_gone(this_process()) is False
        assert is_gone(ended_process()) is True

    def test_its_number_given_to_another_does_not_bring_it_back(self) -> None:
        assert is_gone(replace(this_process(), started="17")) is True

    def test_one_that_was_killed_and_not_yet_looked_after_is_gone(self) -> None:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(Process(place(), process.pid, "")) is True
        process.communicate()

    def test_another_machine_is_not_asked(self) -> None:
        assert is_gone(replace(this_process(), place="elsewhere||")) is None


class TestRequeue:
    def test_what_lives_is_left_alone(self, storage: str) -> None:
        host = open_study(STUDY, storage)
        host.ask()
        assert requeue_stale(open_study(STUDY, storage)) == []
        assert states(host) == [RUNNING]

    def test_a_dead_one_waits_again_under_its_number_with_its_settings(self, storage: str) -> None:
        host = open_study(STUDY, storage)
        asked = host.ask(dict(tiny.SPACE.parameters(tiny.build_model())))
        asked.report(0.5, 1)
        stamped(host, 0, pid=ended_process().pid)
        other = open_study(STUDY, storage)
        assert n_taken(other) == 0
        run(STUDY, other, Path("kept"))
        assert states(other) == [COMPLETE] * 4
        assert other.trials[0].params == asked.params
        assert n_finished(other) == 4

    def test_ones_own_that_it_does_not_run_is_stale(self, storage: str) -> None:
        """Its creation was heard of too late: the connection was lost between write and answer."""
        host = open_study(STUDY, storage)
        host.ask()
        host.ask()
        assert requeue_stale(host) == [0]
        assert states(host) == [WAITING, RUNNING]

    def test_another_machine_is_judged_by_its_last_sign_of_life(self, storage: str) -> None:
        host = open_study(STUDY, storage)
        host.ask()
        host.ask()
        stamped(host, 0, place="elsewhere||", at=time.time() - stale.GRACE_SECONDS - 1)
        stamped(host, 1, place="elsewhere||", at=time.time() - stale.GRACE_SECONDS + 30)
        assert requeue_stale(host, may_judge_others=False) == []
        assert requeue_stale(host) == [0]

    def test_a_beat_is_a_sign_of_life(self, storage: str) -> None:
        host = open_study(STUDY, storage)
        storage_of = host._storage
        assert isinstance(storage_of, SharedStorage)
        trial = host.ask()
        (before,) = stamps(host.trials[0])
        time.sleep(0.15)
        storage_of.beat()
        (after,) = stamps(host.trials[0])
        assert after.at > before.at
        host.tell(trial, 1.0)
        storage_of.beat()

    def test_one_that_costs_three_processes_fails_with_the_reason(
        self, storage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = open_study(STUDY, storage)
        gone = ended_process().pid
        host.ask()
        for number in range(3):
            key = f"ww_opt:process:{number}"
            kept = {**vars(this_process()), "pid": gone, "at": float(number)}
            host._storage.set_trial_system_attr(host.trials[0]._trial_id, key, kept)
        (own,) = [stamp for stamp in stamps(host.trials[0]) if stamp.process.pid == os.getpid()]
        host._storage.set_trial_system_attr(host.trials[0]._trial_id, own.key, None)
        assert requeue_stale(host) == [0]
        assert states(host) == [FAIL]
        assert "died 3 times" in records.reason(host.trials[0])
        assert n_finished(host) == 1, "it used up budget"

    def test_those_of_stock_optuna_are_not_ours_to_judge(self, storage: str) -> None:
        host = open_study(STUDY, storage)
        host.add_trial(create_trial(state=RUNNING))
        assert requeue_stale(host) == []
        assert n_taken(host) == 0

    def test_in_memory_nothing_is_judged(self) -> None:
        host = open_study(STUDY)
        host.ask()
        assert requeue_stale(host) == []

    def test_what_was_reported_before_is_reported_again_without_a_word(
        self, storage: str, recwarn: pytest.WarningsRecorder
    ) -> None:
        """Warnings are errors here: Optuna warns where a step is reported twice."""
        study = replace(STUDY, n_trials=1)
        host = open_study(study, storage)
        trial = host.ask()
        for step in (0, 2, 9):
            trial.report(99.0, step)
        stamped(host, 0, pid=ended_process().pid)
        other = open_study(study, storage)
        run(study, other, Path("kept"))
        assert other.trials[0].value == other.trials[0].intermediate_values[2] != 99.0


class TestBudget:
    def test_running_ones_count_and_their_end_is_waited_for(self, storage: str) -> None:
        host = open_study(STUDY, storage)
        theirs = [host.ask() for _ in range(2)][-1:]
        host._storage.running = None  # type: ignore[attr-defined]
        other = open_study(STUDY, storage)
        polls = 0

        def may_start() -> bool:
            nonlocal polls
            polls += 1
            if n_taken(other) == 4 and n_finished(other) < 4:
                host.tell(theirs[0], 0.5) if host.trials[1].state is RUNNING else host.tell(0, 0.5)
            return True

        run(STUDY, other, Path("kept"), may_start=may_start)
        assert states(other) == [COMPLETE] * 4, "two were run, two waited for"

    def test_one_beyond_the_budget_is_withdrawn_before_it_begins(self, storage: str) -> None:
        """Between machines two may ask at once: here, behind the back of the turn."""
        host = open_study(STUDY, storage)
        original, other = host.ask, open_study(STUDY, storage)

        def late(*args: Any) -> optuna.Trial:
            for number in range(4):
                other.add_trial(create_trial(value=float(number)))
            return original(*args)

        vars(host)["ask"] = late
        run(STUDY, host, Path("kept"))
        vars(host).pop("ask", None)
        assert states(host) == [COMPLETE] * 4 + [FAIL]
        assert records.reason(host.trials[4]).startswith("not needed")
        assert n_finished(host) == 4

    def test_a_trial_that_another_machine_took_over_ends_nothing(
        self, storage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = open_study(STUDY, storage)
        n_calls = 0

        def loss(model: nn.Module, batch: Any) -> Tensor:
            nonlocal n_calls
            n_calls += 1
            if n_calls == 2:
                other.tell(0, 0.125)
            return tiny.loss(model, batch)

        study: Study = replace(STUDY, objective=replace(QUICK, task=replace(tiny.TASK, loss=loss)))
        host = open_study(study, storage, is_checked=True)
        run(study, host, Path("kept"))
        assert states(host) == [COMPLETE] * 4
        assert host.trials[0].value == 0.125
        assert "Trial 0 was taken over by another worker" in caplog.text


KILLED = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from tests import tiny
from ww_opt.study.study import open_study, run
n_calls = 0
def loss(model, batch):
    global n_calls
    n_calls += 1
    if n_calls == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return tiny.loss(model, batch)
objective = replace(tiny.OBJECTIVE, n_steps=2, interval_steps=2, task=replace(tiny.TASK, loss=loss))
study = replace(tiny.STUDY, objective=objective, n_trials=4)
run(study, open_study(study, sys.argv[1], is_checked=True), Path("kept"))
"""


def test_kill_9_in_the_middle_of_a_trial_costs_nothing(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, storage], env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    host = open_study(STUDY, storage)
    before = host.trials
    assert [trial.state for trial in before].count(RUNNING) == 1
    with caplog.at_level(logging.WARNING):
        run(STUDY, host, Path("kept"))
    assert states(host) == [COMPLETE] * 4
    assert [trial.number for trial in host.trials] == [0, 1, 2, 3]
    assert host.trials[len(before) - 1].params == before[-1].params
    assert "which is gone; it is done again" in caplog.text
