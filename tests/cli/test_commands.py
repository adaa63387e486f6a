"""The command as users and scripts meet it: output, exit codes, and one line for bad input."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlflow
import optuna
import pandas as pd
import pytest
import torch
from torch import nn

import ww_opt
from ww_opt.cli import main as cli
from ww_opt.cli.stored import place_of, stored
from ww_opt.reporting import closing_text, terminal
from ww_opt.reporting.progress import Progress
from ww_opt.search import records
from ww_opt.spectral import diagnose

ROOT = Path(ww_opt.__file__).parents[1]
TINY = str(ROOT / "tests" / "tiny.py")
COMMAND = [sys.executable, "-c", "from ww_opt.cli.main import main; main()"]
COLUMNS = {
    "name", "kind", "N", "M", "Q", "alpha", "xmin", "xmax", "D", "sigma", "n_tail", "spikes", "traps", "stable_rank",
    "rank_loss", "finding",
}  # fmt: skip

STUDY_HEAD = """
from dataclasses import replace
from pathlib import Path
import time
from tests import tiny
HERE = Path(__file__).parent
def study(**changes):
    task = replace(tiny.TASK, **changes)
    return replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, task=task, n_steps=2, interval_steps=2))
"""
FOREVER = """
import ctypes
def forever():
    \"\"\"Wait for a lock that is held, outside of Python; no signal ends that.\"\"\"
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)
"""
INTERRUPTED_ONCE = (
    STUDY_HEAD
    + """
def loss(model, batch):
    if list(HERE.rglob("trial-00000.pt")) and not (HERE / "reached").exists():
        (HERE / "reached").touch()
        time.sleep(60)
    return tiny.loss(model, batch)
STUDY = study(loss=loss)
"""
)


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


class Runner:
    """Calls the command in this process, from an empty folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Answer:
        self._monkeypatch.setattr(sys, "argv", ["ww-opt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = self._capsys.readouterr()
        return Answer(int(stop.value.code or 0), captured.out, captured.err)

    def study(self, text: str) -> Path:
        path = self.folder / "own_study.py"
        path.write_text(STUDY_HEAD + text)
        return path

    def host(self, name: str = "tiny") -> optuna.Study:
        found = stored(name, place_of(None, self.folder / "runs", name))
        assert found is not None
        return found


@pytest.fixture
def ww(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Runner]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before, verbosity = signal.getsignal(signal.SIGTERM), optuna.logging.get_verbosity()
    yield Runner(tmp_path, monkeypatch, capsys)
    signal.signal(signal.SIGTERM, before)
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.Linear(48, 3))
    with torch.no_grad():
        list(model.parameters())[2][0, 0] = torch.nan
    torch.save(model.state_dict(), path)
    return path


class TestHelp:
    def test_no_argument_prints_it(self, ww: Runner) -> None:
        answer = ww()
        assert answer == ww("--help")
        assert answer.code == 0
        for word in ("without a test set", "ww-opt run studies/digits.py", "ww-opt analyze model.pt", "Exit codes: 0"):
            assert word in answer.out

    @pytest.mark.parametrize("command", ["run", "worker", "analyze", "compare", "judge", "data-check", "storage-proxy"])
    def test_every_option_is_explained(self, ww: Runner, command: str) -> None:
        for parameter in cli.cli.commands[command].params:
            assert parameter.param_type_name == "argument" or getattr(parameter, "help", None)
        assert ww(command, "-h").code == 0

    def test_the_options_of_mlflow_are_explained(self, ww: Runner) -> None:
        for parameter in cli.cli.commands["mlflow"].commands["sync"].params:
            assert parameter.param_type_name == "argument" or getattr(parameter, "help", None)
        assert "sync" in ww("mlflow", "-h").out
        assert ww("mlflow", "sync", "-h").code == 0

    def test_it_answers_without_loading_what_is_slow(self) -> None:
        code = (
            "import sys\nfrom ww_opt.cli.main import main\n"
            "try:\n    main()\nfinally:\n"
            "    slow = {'torch', 'optuna', 'mlflow', 'numpy', 'scipy', 'pandas', 'matplotlib', 'tqdm'}\n"
            "    print('loaded', sorted(slow & set(sys.modules)))"
        )
        for arguments in (["--help"], *([own, "--help"] for own in cli.cli.commands), ["--version"]):
            run = subprocess.run(
                [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
            )
            assert run.stdout.endswith("loaded []\n")

    def test_version(self, ww: Runner) -> None:
        assert ww("--version").out == f"ww-opt, version {ww_opt.__version__}\n"


class TestBadInput:
    """One line on stderr that says what is wrong, exit code 2, no traceback, and nothing written."""

    @staticmethod
    def check(answer: Answer, message: str) -> None:
        assert answer.code == 2
        assert answer.out == ""
        assert answer.err.startswith("Error: ")
        assert answer.err.count("\n") == 1
        assert message in answer.err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["none.py"], "none.py"),
            (["no.such.module"], "no.such.module"),
            (["notes.txt"], "notes.txt"),
            (["syntax.py"], "SyntaxError"),
            (["empty.py"], "'STUDY'"),
            (["three.py"], "int"),
            (["score.py"], "but got 'best'"),
            ([], "STUDY"),
            ([TINY, "--n-trials", "-3"], "n_trials=-3"),
            ([TINY, "--n-trials", "0"], "n_trials=0"),
            ([TINY, "--n-trials", "many"], "--n-trials"),
            ([TINY, "--workers", "0"], "workers=0"),
            ([TINY, "--seed", "-1"], "seed=-1"),
            ([TINY, "--timeout", "0"], "timeout=0"),
            ([TINY, "--study-name", "a/b"], "'a/b'"),
            ([TINY, "--storage", "foo://x"], "--storage"),
            ([TINY, "--storage", "sqlite:///missing/folder/x.db"], "--storage"),
            ([TINY, "--storage", "missing/x.journal"], "--storage"),
            ([TINY, "--tracking-uri", "foo://bar"], "foo://bar"),
            ([TINY, "--directory", "notes.txt"], "notes.txt"),
            ([TINY, "--no-such-option"], "--no-such-option"),
        ],
    )
    def test_run(self, ww: Runner, arguments: list[str], message: str) -> None:
        Path("notes.txt").write_text("hello")
        Path("syntax.py").write_text("x = (")
        Path("empty.py").write_text("")
        Path("three.py").write_text("STUDY = 3")
        Path("score.py").write_text(
            "from tests import tiny\nfrom ww_opt import *\n"
            "STUDY = Study(name='s', objective=SpectralObjective(tiny.TASK, tiny.SPACE, 9, score='best'))"
        )
        self.check(ww("run", *arguments, *([] if "--tracking-uri" in arguments else ["--no-mlflow"])), message)
        assert not list(ww.folder.rglob("*.db"))

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("none.pt", "none.pt"),
            ("garbage.pt", "garbage.pt"),
            ("notes.txt", "notes.txt"),
            ("folder", "folder"),
            ("empty.pt", "empty.pt"),
            ("models.py:without_weights", "ReLU"),
            ("models.py:five", "int"),
            ("models.py:FIVE", "'models.py:FIVE' is a int"),
            ("models.py:nothing", "'nothing'"),
            ("none.py:model", "none.py"),
            ("no.module:model", "no.module"),
            ("models.py", "models.py:NAME"),
        ],
    )
    def test_analyze(self, ww: Runner, source: str, message: str) -> None:
        Path("garbage.pt").write_bytes(bytes(range(256)) * 8)
        Path("notes.txt").write_text("hello")
        Path("folder").mkdir()
        torch.save({}, "empty.pt")
        Path("models.py").write_text("from torch.nn import ReLU as without_weights\nFIVE = 5\ndef five(): return 5")
        self.check(ww("analyze", source), message)

    def test_command(self, ww: Runner, checkpoint: Path) -> None:
        self.check(ww("frobnicate"), "frobnicate")
        self.check(ww("--frobnicate"), "--frobnicate")
        self.check(ww("analyze", checkpoint, "--json", "--csv"), "--json")

    def test_another_direction_in_the_storage(self, ww: Runner) -> None:
        assert ww("run", TINY, "--n-trials", 1, "--no-mlflow").code == 0
        other = ww.study("STUDY = replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, score='spike_share'))")
        self.check(ww("run", other, "--no-mlflow"), "--study-name")

    def test_found_out_in_a_trial(self, ww: Runner) -> None:
        path = ww.study("def narrow(): return tiny.nn.Linear(40, 3)\nSTUDY = study(build_model=narrow)")
        answer = ww("run", path, "--no-mlflow")
        assert answer.code == 2
        assert "Traceback" not in answer.err
        assert "Error: A score needs a hidden weight matrix at least 32 wide" in answer.err


class TestRun:
    def test_from_start_to_end_with_mlflow(self, ww: Runner) -> None:
        answer = ww("run", TINY)
        assert answer.code == 0
        lines = answer.err.splitlines()
        assert [line.partition(",")[0] for line in lines] == [
            *("tiny 1/3", "tiny 2/3", "tiny 3/3"),
            "Training the pick 2 times more",
        ], "and no other noise"
        assert re.search(r"left, trial 2 \d\.\d", lines[2])
        assert re.search(r"best \d\.\d", lines[2])
        assert "pruned 0" in lines[2]
        pick = ww.host().best_trial
        assert f"The pick: trial {pick.number}, score {pick.value:.4g}" in answer.out
        for label, own in records.read(pick, "settings").items():
            assert any(line.split()[:2] == [label, f"{own['lr']:.4g}"] for line in answer.out.splitlines())
        assert "48x40" in answer.out
        assert "3 trials completed, 0 pruned, 0 failed; pruning saved 0% of the steps." in answer.out
        for row in ("the pick", "the best trial", "the median trial"):
            assert row in answer.out
        assert f"runs/tiny/trial-{pick.number:05d}.pt" in answer.out
        database = ww.folder / "runs" / "mlflow.db"
        assert database.is_file()
        assert f"mlflow ui --backend-store-uri sqlite:///{database}" in answer.out

    def test_the_same_command_goes_on_to_the_trials_in_all(self, ww: Runner) -> None:
        assert ww("run", TINY, "--no-mlflow", "--n-trials", 2).code == 0
        answer = ww("run", TINY, "--no-mlflow", "--n-trials", 3)
        assert answer.code == 0
        assert answer.err.startswith("Study 'tiny' has 2 of 3 trials already; going on from there.\ntiny 3/3")
        again = ww("run", TINY, "--no-mlflow", "--n-trials", 3)
        assert "nothing" not in again.err
        assert again.out == answer.out
        assert len(ww.host().trials) == 3

    def test_options_reach_the_study(self, ww: Runner) -> None:
        def run(name: str, seed: int) -> list[dict[str, float]]:
            storage = ww.folder / "own.journal"
            options = ["--study-name", name, "--seed", seed, "--n-trials", 1, "--storage", storage, "--directory", "d"]
            assert ww("run", TINY, "--no-mlflow", *options).code == 0
            assert (ww.folder / "d" / name / "trial-00000.pt").is_file()
            backend = optuna.storages.journal.JournalFileBackend(str(storage))
            host = optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))
            return [trial.params for trial in host.trials]

        assert run("a", 1) == run("b", 1)
        assert run("c", 2) != run("d", 1)
        assert not (ww.folder / "runs").exists()

    def test_pick_and_figure_lie_in_the_folder(self, ww: Runner) -> None:
        answer = ww("run", TINY, "--no-mlflow")
        folder = ww.folder / "runs" / "tiny"
        card = json.loads((folder / "pick.json").read_text())
        assert card["trial"] == ww.host().best_trial.number
        assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
        assert "Figure of the study: runs/tiny/study.png" in answer.out
        assert "Settings, score and versions of the pick: runs/tiny/pick.json" in answer.out
        assert "The score is the default score of the weights, 0 (best) to 4" in answer.out
        assert {file.name for file in folder.iterdir()} == {
            *(".study", "pick.json", "report.html", "study.png"),
            *(f"trial-{number:05d}.pt" for number in range(3)),
        }

    def test_more_parameters_than_trials_are_told_before_and_after(self, ww: Runner) -> None:
        words = "3 parameters are searched in 2 trials: with fewer trials"
        answer = ww("run", TINY, "--no-mlflow", "--n-trials", 2)
        assert answer.err.startswith(words)
        assert words in answer.out
        assert "parameters are searched" not in ww("run", TINY, "--no-mlflow", "--n-trials", 3).err

    def test_a_metric_has_its_own_name_and_direction(self, ww: Runner) -> None:
        text = """
values = iter([0.25, 0.75, 0.5])
STUDY = study(evaluate=lambda model: next(values), metric="error", higher_is_better=False)
"""
        answer = ww("run", ww.study(text), "--no-mlflow")
        assert "The sealed test set, opened only now (error)" in answer.out
        assert "the best trial         0.25  (trial 0, known by hindsight only)" in answer.out
        assert "%" not in answer.out.partition("The sealed test set")[2].partition("Weights")[0]

    def test_one_setting_that_raises_is_told_and_the_study_goes_on(self, ww: Runner) -> None:
        path = ww.study(
            """
def loss(model, batch):
    if len(list(HERE.rglob("trial-*.pt"))) == 1 and not (HERE / "raised").exists():
        (HERE / "raised").touch()
        raise MemoryError("too large")
    return tiny.loss(model, batch)
STUDY = study(loss=loss)
"""
        )
        answer = ww("run", path, "--no-mlflow")
        assert answer.code == 0
        assert "2 trials completed, 0 pruned, 1 failed" in answer.out
        assert "  MemoryError: too large\n" in answer.out
        (ww.folder / "raised").unlink()
        for file in ww.folder.rglob("trial-*.pt"):
            file.unlink()
        stopped = ww("run", path, "--no-mlflow", "--n-trials", 6, "--no-catch")
        assert stopped.code == 1
        assert "A trial failed; what was done is recorded. To go on once the fault is mended:" in stopped.err

    def test_a_deleted_experiment_is_told_before_the_first_trial(self, ww: Runner) -> None:
        client = mlflow.MlflowClient(f"sqlite:///{ww.folder / 'mlflow.db'}")
        client.delete_experiment(client.create_experiment("mine"))
        options = ["--tracking-uri", f"sqlite:///{ww.folder / 'mlflow.db'}", "--n-trials", 1]
        answer = ww("run", TINY, *options, "--experiment", "mine")
        told, first = (answer.err.index(words) for words in ("experiment 'mine' was deleted", "tiny 1/1"))
        assert told < first
        assert "2 records are not in MLflow yet, since experiment 'mine' was deleted. First bring it back" in answer.err
        assert answer.err.splitlines()[-1].endswith("ww-opt mlflow sync runs/mlflow-spool")
        other = ww("run", TINY, *options, "--experiment", "other")
        assert "not in MLflow" not in other.err
        experiment = client.get_experiment_by_name("other").experiment_id
        (parent,) = client.search_runs([experiment], "tags.`ww_opt.role` = 'study'")
        assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
            *("pick.json", "report.html", "study.png", "best"),
        }

    def test_a_timeout_ends_it(self, ww: Runner) -> None:
        answer = ww("run", TINY, "--no-mlflow", "--timeout", "1e-9")
        assert answer.code == 3
        assert "0 trials completed" in answer.out

    def test_nothing_completed_is_3_and_says_why(self, ww: Runner) -> None:
        path = ww.study("STUDY = study(loss=lambda model, batch: tiny.loss(model, batch) * float('nan'))")
        answer = ww("run", path, "--no-mlflow")
        assert answer.code == 3
        assert "0 trials completed, 3 pruned, 0 failed" in answer.out
        assert "the training loss became nan at step 2" in answer.out

    def test_an_error_of_the_users_own_is_1_with_its_traceback_and_on_record(self, ww: Runner) -> None:
        path = ww.study("def loss(model, batch):\n    raise ValueError('mine')\nSTUDY = study(loss=loss)")
        answer = ww("run", path, "--no-mlflow")
        assert answer.code == 1
        assert "raise ValueError('mine')" in answer.err
        assert answer.err.count("Traceback") == 1
        assert f"ww-opt run {path}" in answer.err
        (trial,) = ww.host().trials
        assert trial.state.name == "FAIL"
        assert records.reason(trial) == "ValueError: mine"

    def test_the_test_set_is_opened_at_the_end_alone(self, ww: Runner) -> None:
        text = """
def evaluate(model):
    with open(HERE / "calls", "a") as file:
        file.write(f"{len(list(HERE.rglob('trial-*.pt')))}\\n")
    return 0.5
STUDY = study(evaluate=evaluate)
"""
        assert ww("run", ww.study(text), "--no-mlflow").code == 0
        assert (ww.folder / "calls").read_text() == "3\n3\n3\n", "once a completed trial, after the last"

    def test_a_test_set_that_fails_costs_no_result(self, ww: Runner) -> None:
        text = "def evaluate(model): raise RuntimeError('sealed')\nSTUDY = study(evaluate=evaluate)"
        answer = ww("run", ww.study(text), "--no-mlflow")
        assert answer.code == 1
        assert "The pick: trial" in answer.out
        assert "Weights of the pick" in answer.out
        assert "RuntimeError: sealed" in answer.err
        assert all(trial.state.name == "COMPLETE" for trial in ww.host().trials)

    def test_only_the_best_weights_where_the_study_says_so(self, ww: Runner) -> None:
        answer = ww("run", ww.study('STUDY = replace(tiny.STUDY, keep_weights="best")'), "--no-mlflow")
        assert answer.code == 0
        assert len(list(ww.folder.rglob("trial-*.pt"))) == 1
        assert "the pick" in answer.out
        assert "the median trial" not in answer.out


def started(folder: Path, *options: str, study: Path | None = None) -> subprocess.Popen[str]:
    """Start the command on a study whose second trial waits for a signal, and wait until it does."""
    (folder / "waiting.py").write_text(INTERRUPTED_ONCE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "run", "waiting.py" if study is None else str(study), "--no-mlflow", *options]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (folder / "reached").exists():
        time.sleep(0.05)
    return process


class TestJudge:
    def test_the_pick_beside_its_rivals_and_a_search_on_the_test_set(self, ww: Runner) -> None:
        path = ww.study("STUDY = replace(study(), start=True)")
        assert ww("run", path, "--no-mlflow").code == 0
        before = sorted(ww.folder.rglob("*"))
        answer = ww("judge", path, "--seeds", 2)
        assert answer.code == 0
        assert sorted(ww.folder.rglob("*")) == before, "nothing is written"
        assert "accuracy in percent, each trained afresh on all examples with 2 seeds that no trial had" in answer.out
        for row in ("what you came with", "best shared setting", "the pick", "a search on the test set"):
            assert row in answer.out
        assert "on the test set 3/3" in answer.err
        assert "a search on the test set" not in ww("judge", path, "--no-ceiling").out

    def test_a_study_that_was_not_run_is_refused_and_nothing_is_made(self, ww: Runner) -> None:
        for options in ([], ["--storage", "some.journal"]):
            answer = ww("judge", TINY, *options)
            TestBadInput.check(answer, "there is no 'tiny'")
            assert "`ww-opt run` it first" in answer.err
        assert not [path for path in ww.folder.rglob("*") if path.suffix in (".db", ".journal")]
        assert ww("run", TINY, "--n-trials", 1, "--no-mlflow").code == 0
        TestBadInput.check(ww("judge", TINY, "--study-name", "other"), "there is no 'other'")


class TestDataCheck:
    def test_settings_of_the_pick_else_ones_own_and_a_figure(self, ww: Runner) -> None:
        path = ww.study(
            "from tests.study.test_data_check import objective_of\n"
            "STUDY = replace(tiny.STUDY, name='parts', objective=objective_of(), n_trials=1)"
        )
        answer = ww("data-check", path)
        assert answer.code == 0
        assert "Settings: your optimizer and model as they are" in answer.err
        assert "Training on 51 of 204 examples, 2 times" in answer.err
        assert re.search(r"^ +204 +-?\d", answer.out, re.MULTILINE)
        assert (ww.folder / "runs" / "parts" / "data.png").stat().st_size > 10_000
        assert ww("run", path, "--no-mlflow").code == 0
        assert "Settings: the pick, trial 0" in ww("data-check", path).err

    def test_without_examples_by_number_it_is_refused(self, ww: Runner) -> None:
        answer = ww("data-check", TINY)
        assert answer.code == 2
        assert "has no `late_entry`" in answer.err


class TestInterrupted:
    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
    def test_it_ends_cleanly_and_goes_on_with_what_was_interrupted(self, ww: Runner, number: signal.Signals) -> None:
        process = started(ww.folder)
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == 130
        assert "Traceback" not in err
        assert "Stopped; what was done is recorded. To go on:" in err
        assert "run waiting.py --no-mlflow" in err
        assert [trial.state.name for trial in ww.host().trials] == ["COMPLETE", "FAIL", "WAITING"]
        assert ww("run", "waiting.py", "--no-mlflow").code == 0
        trials = ww.host().trials
        assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
        assert trials[2].params == trials[1].params

    @pytest.mark.parametrize("options", [[], pytest.param(["--workers", "2"], marks=pytest.mark.slow)])
    def test_a_process_that_is_stuck_outside_of_python_ends_all_the_same(self, ww: Runner, options: list[str]) -> None:
        path = ww.study(
            FOREVER
            + """
from ww_opt.study import crew, interruptions
interruptions.STUCK_SECONDS = 0.5
crew._STOP_SECONDS = 2.0
def loss(model, batch):
    if list(HERE.rglob("trial-00000.pt")):
        (HERE / "reached").touch()
        forever()
    return tiny.loss(model, batch)
STUDY = study(loss=loss)
"""
        )
        process = started(ww.folder, *options, study=path)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, err = process.communicate()
        assert process.returncode == 130
        assert time.monotonic() - sent < 60.0, "it would never have ended"
        assert "Stopped; what was done is recorded. To go on:" in err
        assert not [trial for trial in ww.host().trials if trial.state.name == "RUNNING"]
        assert "WAITING" in [trial.state.name for trial in ww.host().trials]

    def test_the_line_that_says_how_to_go_on_works_and_holds_no_password(self, ww: Runner) -> None:
        path = ww.study("def loss(model, batch): raise KeyboardInterrupt\nSTUDY = study(loss=loss)")
        answer = ww("run", path, "--no-mlflow", "--storage", "own.journal", "--study-name", "two words")
        assert answer.code == 130
        line = answer.err.splitlines()[-1].strip()
        asked = ["run", str(path), "--no-mlflow", "--storage", "own.journal", "--study-name", "two words"]
        assert shlex.split(line)[1:] == asked

    @pytest.mark.slow
    def test_with_workers_too(self, ww: Runner) -> None:
        process = started(ww.folder, "--workers", "2", "--n-trials", "6")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130
        assert "Traceback" not in err
        host = ww.host()
        assert not [trial for trial in host.trials if trial.state.name == "RUNNING"]
        interrupted = [trial for trial in host.trials if trial.state.name == "FAIL"]
        waiting = [trial for trial in host.trials if trial.state.name == "WAITING"]
        assert 1 <= len(interrupted) <= 2
        assert {records.reason(trial) for trial in interrupted} == {"interrupted by the user"}
        assert len(waiting) <= len(interrupted)


def test_a_changed_space_is_refused_or_gone_on_with_as_asked(ww: Runner) -> None:
    assert ww("run", TINY, "--no-mlflow", "--n-trials", 1).code == 0
    path = ww.study(
        "from optuna.distributions import FloatDistribution\n"
        "space = replace(tiny.SPACE, lr=FloatDistribution(1e-4, 1.0, log=True))\n"
        "STUDY = replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, space=space))"
    )
    refused = ww("run", path, "--no-mlflow", "--n-trials", 2)
    assert refused.code == 2
    assert "`lr/0`, `lr/2`, `lr/4` was 0.001 to 0.1 (log) and is 0.0001 to 1 (log)" in refused.err
    assert "Traceback" not in refused.err
    assert ww("run", path, "--no-mlflow", "--n-trials", 2, "--changed-space", "rescale").code == 0
    assert len(ww.host().trials) == 2


def test_a_new_study_begins_with_settings_of_an_earlier_one_and_says_so(ww: Runner) -> None:
    assert ww("run", TINY, "--no-mlflow", "--n-trials", 1).code == 0
    command = ("run", TINY, "--no-mlflow", "--study-name", "later", "--from", "tiny", "--n-trials")
    answer = ww(*command, 2)
    assert answer.code == 0
    first, *_ = answer.err.splitlines()
    assert first == "Carried over from study 'tiny': the settings of 1 of its best trials, tried first."
    assert [records.read(own, "origin") for own in ww.host("later").trials] == ["carried over from study 'tiny'", None]
    again = ww(*command, 2)
    assert again.err.startswith("Study 'later' has 2 of 2 trials already")
    assert "arried over" not in again.err
    refused = ww("run", TINY, "--no-mlflow", "--study-name", "third", "--from", "none")
    assert refused.code == 2
    assert "but got 'none', and the storage of this study has 'later', 'tiny'" in refused.err


class TestWorkers:
    def test_they_share_the_budget_exactly(self, ww: Runner) -> None:
        assert ww("run", TINY, "--no-mlflow", "--n-trials", 1).code == 0
        answer = ww("run", TINY, "--no-mlflow", "--n-trials", 6, "--workers", 2)
        assert answer.code == 0
        assert [trial.state.name for trial in ww.host().trials] == ["COMPLETE"] * 6
        bars = [line.partition(",")[0] for line in answer.err.splitlines() if line.startswith("tiny ")]
        assert sorted(bars) == [f"tiny {i}/6" for i in range(2, 7)]
        assert len(list(ww.folder.rglob("trial-*.pt"))) == 6

    def test_the_present_configuration_is_tried_once_and_first(self, ww: Runner) -> None:
        assert ww("run", TINY, "--no-mlflow", "--n-trials", 3, "--workers", 2, "--start").code == 0
        trials = ww.host().trials
        assert [records.read(trial, "origin") for trial in trials] == ["present configuration", None, None]
        assert set(trials[0].params.values()) == {1e-3}, "AdamW's own rate"

    @pytest.mark.slow
    def test_a_fault_in_one_ends_all(self, ww: Runner) -> None:
        path = ww.study("def loss(model, batch):\n    raise ValueError('mine')\nSTUDY = study(loss=loss)")
        answer = ww("run", path, "--no-mlflow", "--workers", 2, "--n-trials", 40)
        assert answer.code == 1
        assert answer.err.count("Traceback") == 1
        assert "raise ValueError('mine')" in answer.err
        assert 1 <= len(ww.host().trials) <= 2


class TestWorker:
    def test_it_takes_trials_of_the_study_until_none_is_left(self, ww: Runner) -> None:
        storage = ["--storage", "own.journal"]
        assert ww("run", TINY, "--no-mlflow", "--n-trials", 4, "--timeout", 1e-9, *storage).code == 3
        answer = ww("worker", TINY, *storage)
        assert answer.code == 0
        assert answer.out == "4 of 4 trials of 'tiny' are finished.\n", "as many as `run` said"
        assert ww("worker", TINY, *storage, "--n-trials", 5).out == "5 of 5 trials of 'tiny' are finished.\n"
        assert "5 trials completed" in ww("run", TINY, "--no-mlflow", "--n-trials", 5, *storage).out

    def test_the_storage_may_come_from_the_environment(self, ww: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        TestBadInput.check(ww("worker", TINY), "--storage")
        monkeypatch.setenv("WW_OPT_STORAGE", "own.journal")
        assert ww("worker", TINY, "--n-trials", 1).code == 0
        assert ww("run", TINY, "--no-mlflow", "--n-trials", 2).err.startswith("Study 'tiny' has 1 of 2 trials")

    def test_two_commands_that_create_one_study_at_once_share_it(self, ww: Runner) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        path = ww.study("STUDY = replace(study(), n_trials=8, start=True)")
        command = [*COMMAND, "run", str(path), "--no-mlflow", "--directory", str(ww.folder / "runs")]
        both = [
            subprocess.Popen(command, cwd=ww.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        for process in both:
            out, err = process.communicate()
            assert process.returncode == 0, err
            assert b"8 trials completed" in out
        trials = ww.host().trials
        assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8
        assert [records.read(trial, "origin") for trial in trials] == ["present configuration", *[None] * 7]

    @pytest.mark.parametrize(
        ("storage", "message"),
        [
            ("own.journal", "a journal, which the proxy does not carry"),
            ("redis://me:secret@host", "a journal, which the proxy does not carry"),
            ("grpc://host", "a proxy itself"),
            ("sqlite:///a.db", "SQLite locks no rows"),
        ],
    )
    def test_the_proxy_refuses_what_it_cannot_carry(self, ww: Runner, storage: str, message: str) -> None:
        answer = ww("storage-proxy", "--storage", storage)
        TestBadInput.check(answer, message)
        assert "secret" not in answer.err


class TestTimeLimit:
    HANGS = (
        FOREVER
        + """
def loss(model, batch):
    if list(HERE.rglob("trial-00000.pt")) and not (HERE / "hung").exists():
        (HERE / "hung").touch()
        {hang}
    return tiny.loss(model, batch)
STUDY = replace(study(loss=loss), timeout_per_trial={limit})
"""
    )

    @pytest.mark.parametrize(
        ("hang", "limit", "reason"),
        [
            ("time.sleep(300)", 5, "it took longer than the 5 seconds that a trial may (timeout_per_trial)"),
            pytest.param(
                "forever()",
                5,
                "it took longer than the 5 seconds that a trial may; its process had to be killed",
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_a_trial_that_hangs_fails_and_the_study_goes_on(
        self, ww: Runner, hang: str, limit: float, reason: str
    ) -> None:
        answer = ww("run", ww.study(self.HANGS.format(hang=hang, limit=limit)), "--no-mlflow")
        assert answer.code == 0, answer.err
        assert [trial.state.name for trial in ww.host().trials] == ["COMPLETE", "FAIL", "COMPLETE"]
        assert records.reason(ww.host().trials[1]) == reason
        assert f"  {reason}\n" in answer.out


class TestAnalyze:
    def test_what_could_not_be_read_has_its_reason_under_the_table(self, ww: Runner) -> None:
        state = {"a.weight": torch.full((40, 40), float("nan")), "b.weight": torch.randn(40, 40)}
        torch.save(state, "half.pt")
        answer = ww("analyze", "half.pt")
        assert answer.code == 0
        row = next(line.split() for line in answer.out.splitlines() if line.startswith("a "))
        assert row[2:7] == ["-"] * 5, "no count of what was not looked at"
        assert "  a: not analysed: the weights contain NaN or infinity" in answer.out

    def test_json(self, ww: Runner, checkpoint: Path) -> None:
        answer = ww("analyze", checkpoint, "--json")
        rows = json.loads(answer.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert answer.code == 0
        assert [row["name"] for row in rows] == ["0", "2", "3"]
        for row in rows:
            assert set(row) >= COLUMNS
        assert rows[0]["alpha"] == pytest.approx(diagnose(str(checkpoint)).rows[0].alpha)
        assert rows[1]["alpha"] is None
        assert "NaN" in rows[1]["finding"]

    def test_csv(self, ww: Runner, checkpoint: Path) -> None:
        frame = pd.read_csv(io.StringIO(ww("analyze", checkpoint, "--csv").out), dtype={"name": str})
        assert list(frame["name"]) == ["0", "2", "3"]
        assert set(frame.columns) >= COLUMNS

    def test_table(self, ww: Runner, checkpoint: Path) -> None:
        answer = ww("analyze", checkpoint)
        assert answer.code == 0
        assert " ".join(answer.out.split()[:9]) == "layer shape alpha D spikes traps rank loss finding"
        for word in ("64x48", "not fitted", "default", "Weights say how much was learnt, not whether it was right"):
            assert word in answer.out
        assert "- 3: under 32 wide" in answer.out or "- 3: an output layer" in answer.out
        assert "better" not in answer.out.partition("default  ")[2], "no verdict on two models stands beside a score"

    def test_causes_are_told_where_something_is_found(self, ww: Runner) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 3))
        torch.save(model.state_dict(), "start.pt")
        out = " ".join(ww("analyze", "start.pt").out.split())
        assert "Nothing was learnt that a spectrum shows: all 3 judged layers have moved little" in out
        assert "What this may come from, most likely first - too little training of the whole net" in out
        assert "healthy" not in out
        rows = json.loads(ww("analyze", "start.pt", "--json").out)
        assert [len(row["suggestions"]) for row in rows] == [2, 2, 2, 1]
        with torch.no_grad():
            for layer in model[:3]:
                u, v = (torch.linalg.qr(torch.randn(64, 12))[0] for _ in range(2))
                layer.weight += (u * torch.linspace(3.0, 1.0, 12)) @ v.T
        torch.save(model.state_dict(), "learnt.pt")
        out = ww("analyze", "learnt.pt").out
        assert "What this may come from" not in out
        assert "Nothing was learnt" not in out
        assert [row["suggestions"] for row in json.loads(ww("analyze", "learnt.pt", "--json").out)] == [[]] * 4

    @pytest.fixture
    def trapped(self) -> Path:
        """Three layers, of which the last hidden one has exploded entries."""
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 3))
        with torch.no_grad():
            for layer in model[:3]:
                u, v = (torch.linalg.qr(torch.randn(64, 12))[0] for _ in range(2))
                layer.weight += (u * torch.linspace(3.0, 1.0, 12)) @ v.T
            model[2].weight[torch.arange(6), torch.arange(6)] = 40.0
        torch.save(model.state_dict(), "trapped.pt")
        return Path("trapped.pt")

    @staticmethod
    def names(answer: Answer) -> list[str]:
        lines = answer.out.split("\n\n")[0].splitlines()[2:]
        return [line.split()[0] for line in lines if re.match(r"\s*\d ", line)]

    def test_what_needs_attention_stands_first(self, ww: Runner, trapped: Path) -> None:
        assert self.names(ww("analyze", trapped)) == ["2", "0", "1", "3"]
        assert self.names(ww("analyze", trapped, "--in-order")) == ["0", "1", "2", "3"]
        assert [row["name"] for row in json.loads(ww("analyze", trapped, "--json").out)] == ["0", "1", "2", "3"]

    def test_some_layers_alone(self, ww: Runner, trapped: Path) -> None:
        assert self.names(ww("analyze", trapped, "--layers", "[01]", "--layers", "3")) == ["0", "1", "3"]
        assert self.names(ww("analyze", trapped, "--min-width", 64)) == ["2", "0", "1"]
        assert self.names(ww("analyze", trapped, "--kind", "linear", "--layers", "1")) == ["1"]
        whole, some = (
            json.loads(ww("analyze", trapped, "--json", *own).out) for own in ((), ("--layers", "1", "--layers", "3"))
        )
        assert [own["alpha"] for own in some] == [whole[1]["alpha"], whole[3]["alpha"]]
        assert some[1]["role"] == "HEAD", "roles are told from all layers"

    def test_no_layer_of_that_name(self, ww: Runner, trapped: Path) -> None:
        answer = ww("analyze", trapped, "--layers", "encoder.*")
        assert answer.code == 2
        assert "none is; the first of them: 0 (linear, 64 wide)" in answer.err

    def test_a_domain_says_how_far_alphas_are_off(self, ww: Runner, trapped: Path) -> None:
        out = " ".join(ww("analyze", trapped, "--domain", "language").out.split())
        assert out.startswith("layer shape alpha off D")
        assert "off: alpha beyond 3 to 4. Of 3 judged layers" in out
        answer = ww("analyze", trapped, "--domain", "audio")
        assert answer.code == 2
        assert "vision" in answer.err

    def test_a_page(self, ww: Runner, trapped: Path) -> None:
        answer = ww("analyze", trapped, "--html", "out/page.html", "--layers", "[0-2]")
        assert answer.code == 0
        assert "Page: out/page.html" in answer.err
        text = Path("out/page.html").read_text()
        assert "1 layer needs attention" in text
        assert "clip gradients" in text
        assert text.count("<svg") == 4, "alphas, and three spectra"
        assert "http://" not in text.replace("http://www.w3.org", "")
        model = nn.Sequential()
        model.add_module("<script>alert(1)</script>", nn.Linear(40, 40))
        torch.save(model.state_dict(), "odd.pt")
        assert ww("analyze", "odd.pt", "--html", "odd.html").code == 0
        assert "<script>" not in Path("odd.html").read_text()

    def test_figures(self, ww: Runner, trapped: Path) -> None:
        answer = ww("analyze", trapped, "--plot", "figures", "--layers", "[02]")
        assert answer.code == 0
        assert "3 figures in figures" in answer.err
        assert sorted(path.name for path in Path("figures").iterdir()) == ["000-0.png", "001-2.png", "layers.png"]

    @pytest.mark.parametrize("source", ["tests.tiny:build_model", f"{TINY}:build_model"])
    def test_a_function_that_builds_a_model(self, ww: Runner, source: str) -> None:
        answer = ww("analyze", source)
        assert answer.code == 0
        assert "48x40" in answer.out

    def test_a_function_that_fails_keeps_its_traceback(
        self, tmp_path: Path, ww: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("models.py").write_text("def model(): raise ValueError('mine')")
        monkeypatch.setattr(sys, "argv", ["ww-opt", "analyze", "models.py:model"])
        with pytest.raises(ValueError, match="mine"):
            cli.main()


class TestTerminal:
    def test_an_interrupted_trial_is_no_failed_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        host = optuna.create_study()
        attrs = {"ww_opt:reason": "interrupted by the user"}
        host.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=attrs))
        with Progress("digits", 40) as progress:
            progress(host, host.trials[0])
        assert "digits 0/40" in (line := capsys.readouterr().err)
        assert "trial 0 interrupted" in line

    def test_layers_stand_in_the_order_of_their_numbers(self) -> None:
        def names(*given: str) -> list[str]:
            return [row.name for row in terminal.in_network_order([SimpleNamespace(name=name) for name in given])]

        assert names("layers.0.w", "layers.10.w", "layers.2.w") == ["layers.0.w", "layers.2.w", "layers.10.w"]
        assert names("stem", "body.10", "body.2", "head") == ["stem", "body.10", "body.2", "head"], "the network's own"
        assert names("a", "a.1", "b1", "b10", "b2") == ["a", "a.1", "b1", "b2", "b10"]

    @pytest.mark.parametrize("columns", [80, 120])
    def test_the_progress_line_fits_the_terminal_and_says_it_all(
        self, monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        class Screen(io.StringIO):
            def isatty(self) -> bool:
                return True

        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("COLUMNS", str(columns))
        host = optuna.create_study()
        with Progress("digits", 40, n_done=10, n_pruned=9) as progress:
            for state, values in (("COMPLETE", [-0.5]), ("PRUNED", None), ("FAIL", None)):
                host.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState[state], values=values))
                progress(host, host.trials[-1])
        lines = screen.getvalue().rstrip("\n").split("\r")
        assert max(map(len, lines)) <= columns
        last = lines[-1]
        for word in ("digits 13/40", "left", "trial 2 failed", "best -0.500 (trial 0)", "pruned 10"):
            assert word in last

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "-"), (float("nan"), "-"), (0.0, "0"), (0.01234567, "0.01235"), (3e-7, "3.00e-07"), (2.5e6, "2.50e+06"),
         (12, "12"), ("fc", "fc")],
    )  # fmt: skip
    def test_numbers_are_short(self, value: object, text: str) -> None:
        assert terminal.number(value) == text

    def test_long_lines_end_with_dots(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        lines = terminal.table(["layer", "finding"], [["fc", "long " * 40]]).splitlines()
        assert [len(line) for line in lines] == [14, 80, 80]
        assert lines[-1].endswith("...")

    def test_a_password_is_not_shown(self) -> None:
        text = closing_text.mlflow_text("postgresql://me:secret@host/db")
        assert "secret" not in text
        assert "host/db" in text
        assert closing_text.mlflow_text("https://me:secret@host:5000") == "MLflow runs: https://***@host:5000"

    def test_a_program_off_the_path_is_called_by_its_place(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("python", "mlflow"):
            (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "bin" / name).touch(mode=0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
        assert terminal.command_line("mlflow", "a b") == "bin/mlflow 'a b'"
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert terminal.command_line("mlflow", "ui") == "mlflow ui"
