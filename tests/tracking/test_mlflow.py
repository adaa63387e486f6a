from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search import records
from ww_opt.tracking.mlflow import MLflowCallback
from ww_opt.tracking.runs import quiet
from ww_opt.tracking.stores import HTTP_DEFAULTS

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

Read = Callable[[], tuple[Run, dict[int, Run]]]

LONG = "lr/" + "k" * 300
HOSTILE = {"lr/blocks[0].w=1": 0.5, "lr/blocks(0).w=1": 0.25, "größe/層": 1.0, LONG: 2.0, LONG + "k": 3.0, "/": 4.0}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests, for making its tables takes seconds; each test has an experiment of its own."""
    address = f"sqlite:///{tmp_path_factory.mktemp('a store')}/mlflow.db"
    MlflowClient(address).search_experiments()
    return address


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where spools lie by default."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def callback(uri: str, request: pytest.FixtureRequest) -> MLflowCallback:
    return MLflowCallback(uri, request.node.name)


@pytest.fixture
def read(uri: str, request: pytest.FixtureRequest) -> Read:
    """Read the test's only parent run and its children by trial number; a trial that stands twice fails."""

    def tree() -> tuple[Run, dict[int, Run]]:
        client = MlflowClient(uri)
        runs = client.search_runs([client.get_experiment_by_name(request.node.name).experiment_id])
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(parents) == 1
        children = {int(run.data.tags["ww_opt.trial"]): run for run in runs if run not in parents}
        assert len(children) == len(runs) - 1, "a trial was written twice"
        assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} <= {parents[0].info.run_id}
        return parents[0], children

    return tree


@pytest.fixture
def quick_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in set(HTTP_DEFAULTS) - {"MLFLOW_HTTP_REQUEST_MAX_RETRIES"}:
        monkeypatch.setenv(name, HTTP_DEFAULTS[name])  # so that what the callback sets ends with the test


def layer(name: str, alpha: float) -> records.LayerRecord:
    return records.LayerRecord(
        name=name, N=64, M=32, alpha=alpha, D=0.1, sigma=0.2, n_tail=12, spikes=2, n_eigenvalues=32, traps=0,
        rank_loss=1, stable_rank=7.5, spectral_norm=4.0, findings=("HEALTHY",),
    )  # fmt: skip


def objective(trial: optuna.Trial) -> float:
    """Number 1 of three is pruned, number 2 fails; the others get better and better."""
    lr = trial.suggest_float("lr/fc[1]", 1e-3, 1e-1, log=True)
    records.write(trial, settings={"fc[1]": {"lr": lr, "weight_decay": None}})
    for step in (10, 20):
        score = 5.0 - trial.number - step / 100
        layers = (layer("fc[1]", 3.0 + step), layer("fc2", math.nan))
        records.write_look(trial, records.Look(step, 30, score, score, math.nan, 0.25, layers))
        trial.report(score, step)
        if trial.number % 3 == 1:
            records.write(trial, reason="alpha of fc[1] rose | too far")
            raise optuna.TrialPruned
    return math.nan if trial.number % 3 == 2 else 5.0 - trial.number


def run_study(callback: MLflowCallback, n_trials: int = 3, **settings: object) -> optuna.Study:
    study = optuna.create_study(**settings)  # type: ignore[arg-type]
    study.optimize(objective, n_trials, callbacks=[callback])
    return study


def run_and_wait(callback: MLflowCallback, n_trials: int) -> optuna.Study:
    study = run_study(callback, n_trials)
    callback._outbox.background.wait(60)
    return study


def history(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


def tell(study: optuna.Study, value: float) -> FrozenTrial:
    study.tell(study.ask(), value)
    return study.trials[-1]


def test_a_study_is_a_parent_run_and_its_trials_are_children(callback: MLflowCallback, read: Read) -> None:
    study = run_study(callback)
    assert callback.finish(study) == 0
    parent, children = read()
    assert [children[i].info.status for i in range(3)] == ["FINISHED", "KILLED", "FAILED"]
    assert children[1].info.run_name == "trial 1"
    assert parent.info.run_name == study.study_name
    for number, trial in enumerate(study.trials):
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert children[number].info.start_time == int(trial.datetime_start.timestamp() * 1000)
        assert children[number].info.end_time == int(trial.datetime_complete.timestamp() * 1000)
    assert (parent.info.status, parent.info.end_time) == ("FINISHED", children[2].info.end_time)
    for run in (parent, *children.values()):
        assert run.data.tags["ww_opt.study.study"] == study.study_name
        assert run.data.tags["ww_opt.direction"] == "minimize"


def test_parameters_curves_tags_and_notes_of_a_trial(callback: MLflowCallback, read: Read, uri: str) -> None:
    study = run_study(callback)
    callback.finish(study)
    parent, children = read()
    lr = str(study.trials[1].params["lr/fc[1]"])
    assert children[1].data.params == {"lr/fc_1_": lr}
    assert history(uri, children[0], "score") == [(10, 4.9), (20, 4.8)]
    assert history(uri, children[0], "value") == [(10, 4.9), (20, 4.8)]
    assert history(uri, children[0], "alpha/fc_1_") == [(10, 13.0), (20, 23.0)]
    assert history(uri, children[0], "final_value") == [(20, 5.0)]
    assert not {"alpha/fc2", "train_loss"} & set(children[0].data.metrics), "NaN is left out"
    assert children[1].data.tags["ww_opt.reason"] == "alpha of fc[1] rose | too far"
    assert "ww_opt.reason" not in children[0].data.tags
    assert children[1].data.tags["mlflow.note.content"].startswith("**PRUNED** 3.9\n\nalpha of fc[1] rose | too far")
    assert "1 COMPLETE, 1 FAIL, 1 PRUNED. Best: **trial 0**, 5." in parent.data.tags["mlflow.note.content"]


def test_tables_of_the_layers_lie_beside_the_database(callback: MLflowCallback, read: Read, uri: str) -> None:
    callback.finish(run_study(callback, 1))
    folder = Path(unquote(urlparse(read()[1][0].info.artifact_uri).path))
    assert folder.parents[1] == Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    table = json.loads((folder / "layers.json").read_text())
    assert [row[:2] for row in table["data"]] == [[10, "fc[1]"], [10, "fc2"], [20, "fc[1]"], [20, "fc2"]]
    assert len((folder / "layers.csv").read_text().splitlines()) == 5


def test_hostile_names_and_values_are_written_and_kept_apart(
    callback: MLflowCallback, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # MLflow refuses what is too long
    study = optuna.create_study(study_name='it\'s "a" `study` = [1]')
    study.add_trial(
        optuna.create_trial(
            params={**HOSTILE, "choice": "c" * 7000},
            distributions={
                **{name: optuna.distributions.FloatDistribution(0, 9) for name in HOSTILE},
                "choice": optuna.distributions.CategoricalDistribution(["c" * 7000]),
            },
            intermediate_values={0: math.inf, 1: math.nan, 2: 1.5},
            user_attrs={"ww_opt:reason": "r" * 9000},
            value=math.inf,
        )
    )
    assert callback.finish(study) == 0
    run = read()[1][0]
    assert sorted(float(value) for value in run.data.params.values() if value[0] != "c") == sorted(HOSTILE.values())
    assert run.data.params["choice"] == "c" * 6000
    assert run.data.metrics == {"value": 1.5}
    assert len(run.data.tags["ww_opt.reason"]) == 8000


def test_an_objective_without_records_is_logged_too(callback: MLflowCallback, read: Read, uri: str) -> None:
    def own(trial: optuna.Trial) -> float:
        trial.report(0.75, 4)
        return trial.suggest_float("x", 0.5, 0.5)

    study = optuna.create_study()
    study.optimize(own, n_trials=1, callbacks=[callback])
    assert callback.finish(study) == 0
    run = read()[1][0]
    assert run.data.metrics == {"value": 0.75, "final_value": 0.5}
    assert run.data.params == {"x": "0.5"}
    assert MlflowClient(uri).list_artifacts(run.info.run_id) == []


def test_two_objectives_have_two_values_and_no_best(callback: MLflowCallback, read: Read) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.optimize(lambda trial: (1.0, 2.0), n_trials=1, callbacks=[callback])
    assert callback.finish(study) == 0
    parent, children = read()
    assert children[0].data.metrics == {"final_value/0": 1.0, "final_value/1": 2.0}
    assert parent.data.tags["ww_opt.direction"] == "minimize,maximize"
    assert "ww_opt.best_trial" not in parent.data.tags


def test_the_mark_of_the_best_moves(callback: MLflowCallback, read: Read, uri: str) -> None:
    study = optuna.create_study(direction="maximize")
    for value, best in [(1.0, 0), (0.5, 0), (3.0, 2)]:
        callback(study, tell(study, value))
        assert callback.sync(study) == 0
        parent, children = read()
        assert [number for number, run in children.items() if "ww_opt.best" in run.data.tags] == [best]
        assert children[best].data.tags["ww_opt.best"] == "true"
        assert parent.data.tags["ww_opt.best_trial"] == str(best)
        assert parent.data.tags["ww_opt.best_run_id"] == children[best].info.run_id
    assert history(uri, parent, "best_value") == [(0, 1.0), (1, 1.0), (2, 3.0)]


def test_a_late_sync_draws_the_same_curve_of_the_best(callback: MLflowCallback, read: Read, uri: str) -> None:
    study = optuna.create_study()
    for value in (2.0, 3.0, 1.0):
        tell(study, value)
    assert callback.sync(study) == 0
    assert history(uri, read()[0], "best_value") == [(0, 2.0), (1, 2.0), (2, 1.0)]


def test_a_study_without_a_best_is_finished_all_the_same(callback: MLflowCallback, read: Read) -> None:
    def prune(trial: optuna.Trial) -> float:
        raise optuna.TrialPruned

    study = optuna.create_study()
    assert callback.finish(study) == 0, "there is nothing to write yet"
    study.optimize(prune, n_trials=2, callbacks=[callback])
    assert callback.finish(study) == 0
    parent, children = read()
    assert parent.info.status == "FINISHED"
    assert "best_value" not in parent.data.metrics
    assert [run.info.status for run in children.values()] == ["KILLED", "KILLED"]


def test_a_resumed_study_goes_on_under_the_same_parent(
    callback: MLflowCallback, read: Read, uri: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    callback.finish(run_study(callback, 1, study_name="again", storage=storage))
    before, _ = read()
    resumed = optuna.load_study(study_name="again", storage=storage)
    second = MLflowCallback(uri, request.node.name)
    resumed.optimize(objective, n_trials=3, callbacks=[second])
    assert second.finish(resumed) == 0
    after, children = read()
    assert after.info.run_id == before.info.run_id
    assert sorted(children) == [0, 1, 2, 3]
    assert [number for number, run in children.items() if "ww_opt.best" in run.data.tags] == [3]


def test_what_is_written_is_not_written_again(
    callback: MLflowCallback, read: Read, uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run_study(callback)
    callback.finish(study)
    before = {number: run.info.run_id for number, run in read()[1].items()}
    MlflowClient(uri).set_tag(before[0], "mlflow.note.content", "the user's own words")
    callback(study, study.trials[0])
    assert callback.finish(study) == 0
    searches, search = [], MlflowClient.search_runs
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_runs", lambda *args, **own: searches.append(own) or search(*args, **own))
        assert MLflowCallback(uri, request.node.name).sync(study) == 0
    assert len(searches) == 1, "one search for all trials"
    _, children = read()
    assert {number: run.info.run_id for number, run in children.items()} == before
    assert children[0].data.tags["mlflow.note.content"] == "the user's own words"
    monkeypatch.setattr(MlflowClient, "search_runs", None)
    monkeypatch.setattr(threading, "Thread", None)
    assert callback.sync(study) == 0, "nothing to do takes neither MLflow nor a thread"


def test_an_interrupted_run_is_completed_not_doubled(
    callback: MLflowCallback, read: Read, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_text", interrupted)
        with pytest.warns(UserWarning, match=r"disk full.*ww-opt mlflow sync"):
            study = run_and_wait(callback, 1)
        assert callback.finish(study) == 1, "the trial; the end of the study has no artifact"
    assert read()[1][0].info.status == "RUNNING"
    assert callback.finish(study) == 0
    parent, children = read()
    assert children[0].info.status == "FINISHED"
    assert history(uri, children[0], "score") == [(10, 4.9), (20, 4.8)]
    assert parent.data.tags["ww_opt.best_run_id"] == children[0].info.run_id


def test_threads_of_one_study_share_a_callback(callback: MLflowCallback, read: Read) -> None:
    study = optuna.create_study()
    study.optimize(objective, n_trials=8, n_jobs=2, callbacks=[callback])
    assert callback.finish(study) == 0
    parent, children = read()
    assert sorted(children) == list(range(8))
    assert parent.data.tags["ww_opt.best_trial"] == str(study.best_trial.number)


def test_the_user_s_active_run_and_address_stay(
    callback: MLflowCallback, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # set_tracking_uri writes it: put back after the test
    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_run() as own:
            study = run_study(callback)
            assert callback.finish(study) == 0
            assert mlflow.active_run().info.run_id == own.info.run_id
            assert mlflow.get_tracking_uri() == uri
        after = mlflow.get_run(own.info.run_id)
        assert (after.data.params, after.data.metrics) == ({}, {})
        assert not [name for name in after.data.tags if name.startswith("ww_opt")]
    finally:
        mlflow.set_tracking_uri(None)


@contextmanager
def server(answer: Callable[[], int]) -> Iterator[tuple[str, list[str]]]:
    """Answer every request with a status and no body; gives its address and the list of paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(answer())
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://user:secret@127.0.0.1:{running.server_port}", asked
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.usefixtures("quick_failures")
def test_a_server_that_breaks_is_soon_left_alone_and_the_study_goes_on(callback: MLflowCallback, read: Read) -> None:
    with server(lambda: 500) as (address, asked):
        broken = MLflowCallback(address)
        with pytest.warns(UserWarning, match="500") as caught:
            study = run_and_wait(broken, 6)
        assert len(asked) == 9, "three records, three times each"
        assert broken.finish(study) == 7
        assert len(asked) == 12, "once more at the end"
    assert len(caught) == 1, "one warning for all failures"
    assert "ww-opt mlflow sync" in str(caught[0].message)
    assert "secret" not in str(caught[0].message)
    assert callback.sync(study) == 0
    assert sorted(read()[1]) == list(range(6)), "what the outage left out is written when MLflow is back"


@pytest.mark.usefixtures("quick_failures")
def test_a_refused_connection_does_not_end_the_study(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # urllib3 says so in the log
        refused = MLflowCallback(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.warns(UserWarning, match="no server answers at http://127.0.0.1"):
            study = run_and_wait(refused, 4)
        assert refused.finish(study) == 5
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 2
    assert "urllib3.connectionpool" not in {record.name for record in caplog.records}


@pytest.mark.usefixtures("quick_failures")
def test_a_server_that_hangs_does_not_hold_up_the_study() -> None:
    release = threading.Event()

    def hang() -> int:
        release.wait(60)
        return 500

    with server(hang) as (address, asked):
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
        slow = MLflowCallback(address)
        study = run_study(slow, n_trials=4)
        assert slow.finish(study, timeout=0.1) == 5, "finishing has a limit of its own"
        assert len(asked) <= 1, "the first request still hangs"

        def end_of_the_outage() -> None:
            release.set()
            slow._outbox.background.wait(60)

        with pytest.warns(UserWarning, match="500"):
            end_of_the_outage()


def test_one_trial_that_fails_stands_behind_the_others(
    callback: MLflowCallback, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study()
    for value in (1.0, 2.0, 3.0):
        tell(study, value)
    set_terminated, asked = MlflowClient.set_terminated, []

    def fails_three_times(self: MlflowClient, run_id: str, *rest: object) -> None:
        asked.append(self.get_run(run_id).data.tags.get("ww_opt.trial"))
        if len(asked) <= 3:
            raise OSError("unwell")
        set_terminated(self, run_id, *rest)

    monkeypatch.setattr(MlflowClient, "set_terminated", fails_three_times)
    assert callback.sync(study) == 0, "also where warnings are errors"
    assert asked == ["0", "0", "0", "1", "2", "0"]
    assert sorted(read()[1]) == [0, 1, 2]


@pytest.mark.parametrize("address", ["foo://bar", "file:./mlruns", "./mlruns"])
def test_an_address_that_mlflow_cannot_use_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match=rf"`tracking_uri` must .* got '{address}'.*sqlite:///mlflow.db"):
        MLflowCallback(address)


def test_time_limits_are_set_for_servers_where_the_user_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HTTP_DEFAULTS:
        monkeypatch.setenv(name, "")  # remembered, so that what the callback sets ends with the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "17")
    MLflowCallback("sqlite:///never_opened.db")
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    MLflowCallback("http://127.0.0.1:1")
    assert {name: os.environ[name] for name in HTTP_DEFAULTS} == HTTP_DEFAULTS | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "17"}


def test_the_default_is_a_quiet_database_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        callback = MLflowCallback()
        monkeypatch.chdir("/")
        assert callback.finish(run_study(callback, 1), timeout=600) == 0
    finally:
        optuna.logging.set_verbosity(optuna.logging.INFO)
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert capfd.readouterr() == ("", "")


def test_the_environment_names_the_address(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://bar")
    with pytest.raises(ValueError, match="foo://bar"):
        MLflowCallback()
    MLflowCallback(uri)


def test_only_the_writing_thread_is_quiet() -> None:
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, ear = logging.getLogger("mlflow"), Ear()
    logger.addHandler(ear)
    try:
        with quiet():
            logger.warning("mine")
            other = threading.Thread(target=logger.warning, args=("the user's",))
            other.start()
            other.join()
        logger.warning("after")
    finally:
        logger.removeHandler(ear)
    assert heard == ["the user's", "after"]


def test_importing_changes_nothing(tmp_path: Path) -> None:
    code = """
import logging, os, threading, warnings
import mlflow, optuna
def state():
    places = (logging.getLogger(name) for name in ("", "mlflow", "urllib3.connectionpool"))
    return [
        dict(os.environ), list(warnings.filters), os.listdir("."), [thread.name for thread in threading.enumerate()],
        [(place.level, place.filters[:], [(item, item.filters[:]) for item in place.handlers]) for place in places],
    ]
before = state()
import ww_opt.tracking.mlflow
assert state() == before, (before, state())
"""
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root, "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
