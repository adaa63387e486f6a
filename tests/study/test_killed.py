"""Workers are killed at random; the study ends with exactly its trials, whole, and none of them running."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch
from optuna.storages import RDBStorage
from optuna.trial import TrialState

import ww_opt
from tests.study.postgres import Server
from ww_opt.search import records
from ww_opt.study.presence import is_gone
from ww_opt.study.shared_storage import SharedStorage, stamps
from ww_opt.study.storages import open_storage
from ww_opt.study.weights_folder import weights_file

ROOT = Path(ww_opt.__file__).parents[1]
COMMAND = [sys.executable, "-c", "from ww_opt.cli.main import main; main()"]
STUDY = """
import time
from dataclasses import replace
from optuna.samplers import RandomSampler
from tests import tiny

def loss(model, batch):
    time.sleep({seconds} / 2)
    return tiny.loss(model, batch)

objective = replace(tiny.OBJECTIVE, n_steps=2, interval_steps=2, task=replace(tiny.TASK, loss=loss))
STUDY = replace(tiny.STUDY, objective=objective, n_trials={n_trials}, sampler=lambda seed: RandomSampler(seed=seed))
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command of ours in a folder, with one thread a process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def opened(storage: str) -> Iterator[Callable[[], optuna.Study | None]]:
    """What loads the study once it is there, through one connection."""
    found = open_storage(storage)
    assert isinstance(found, SharedStorage)

    def load() -> optuna.Study | None:
        try:
            return optuna.load_study(study_name="tiny", storage=found)
        except KeyError:
            return None

    yield load
    database = getattr(found.backend, "_backend", None)
    if isinstance(database, RDBStorage):
        database.engine.dispose()


def kill_at_random(
    load: Callable[[], optuna.Study | None],
    process: subprocess.Popen[str],
    every: int,
    meanwhile: Callable[[], None] | None = None,
) -> int:
    """Kill a worker that runs a trial whenever ``every`` more trials are finished, until the command ends.

    ``meanwhile`` is called once, after the second kill.
    """
    n_killed, due, chance = 0, every, random.Random(0)
    host: optuna.Study | None = None
    while process.poll() is None:
        time.sleep(0.05)
        host = host or load()
        trials = [] if host is None else host.get_trials(deepcopy=False)
        if sum(trial.state.is_finished() for trial in trials) < due:
            continue
        running = [trial for trial in trials if trial.state is TrialState.RUNNING]
        at_work = [own.process.pid for trial in running for own in stamps(trial) if is_gone(own.process) is False]
        if at_work:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(chance.choice(at_work), signal.SIGKILL)
                n_killed, due = n_killed + 1, due + every
            if n_killed == 2 and meanwhile is not None:
                meanwhile()
                meanwhile = None
    return n_killed


def check(host: optuna.Study | None, folder: Path, n_trials: int) -> None:
    """Exactly so many finished trials, numbered without a gap, each with its record and its weights."""
    assert host is not None
    assert [trial.number for trial in host.trials] == list(range(n_trials))
    # one that three processes died with has failed, and says so: with few kills that is nearly impossible
    assert {trial.state for trial in host.trials} == {TrialState.COMPLETE}
    for trial in host.trials:
        assert records.last_step(trial) == 2
        assert records.shapes(trial)
        assert trial.params
        assert torch.load(weights_file(folder / "runs" / "tiny", trial.number), weights_only=True), "whole"


def killed(
    folder: Path,
    storage: str,
    *,
    seconds: float = 0.2,
    n_trials: int = 60,
    every: int = 12,
    meanwhile: Callable[[], None] | None = None,
) -> int:
    (folder / "own.py").write_text(STUDY.format(seconds=seconds, n_trials=n_trials))
    with opened(storage) as load:
        process = start(folder, "worker", "own.py", "--storage", storage, "--workers", "4")
        n_killed = kill_at_random(load, process, every, meanwhile)
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert "secret" not in err
        check(load(), folder, n_trials)
    return n_killed


def test_the_default_journal(tmp_path: Path) -> None:
    assert killed(tmp_path, str(tmp_path / "a.journal")) >= 3


@pytest.mark.slow
def test_the_default_journal_for_longer(tmp_path: Path) -> None:
    """Trials of 4 seconds, a kill some every 20 of them."""
    assert killed(tmp_path, str(tmp_path / "a.journal"), seconds=4.0, every=10) >= 3


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.mark.slow
def test_postgresql(tmp_path: Path, server: Server) -> None:
    assert killed(tmp_path, server.url) >= 3


@pytest.mark.slow
def test_postgresql_that_is_away_for_half_a_minute_and_workers_killed(tmp_path: Path, server: Server) -> None:
    def restart() -> None:
        server.stop()
        time.sleep(30.0)
        server.start()

    assert killed(tmp_path, server.url, seconds=1.0, meanwhile=restart) >= 3
