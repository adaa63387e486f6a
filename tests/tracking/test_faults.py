"""A tracking server that is down, breaks, hangs or is slow costs no study its end, and MLflow no record."""

from __future__ import annotations

import gc
import json
import math
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.faulty_mlflow import FaultyMLflow
from ww_opt.reporting import summary
from ww_opt.search import records
from ww_opt.tracking import outbox
from ww_opt.tracking.contents import Contents
from ww_opt.tracking.mlflow import MLflowCallback, Weights
from ww_opt.tracking.outbox import Target
from ww_opt.tracking.replay import headers, replay
from ww_opt.tracking.runs import Runs
from ww_opt.tracking.spool import Spool, files
from ww_opt.tracking.stores import HTTP_DEFAULTS, make_whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets of a server that goes down
]

ROOT = Path(__file__).resolve().parents[2]
N_TRIALS = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyMLflow]:
    """MLflow's own server, one for all tests; each has an experiment of its own."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FILE_STORE", "ARTIFACT_ROOT", "ARTIFACT_DESTINATION", "SERVE_ARTIFACTS"):
            patch.setenv(f"_MLFLOW_SERVER_{name}", "")  # remembered, so that what it sets ends with the tests
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        make_whole(f"sqlite:///{folder / 'server.db'}")
        running = FaultyMLflow(folder, seconds=0.4)
        yield running
        running.stop()


@pytest.fixture
def faulty(server: FaultyMLflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyMLflow]:
    for name, value in HTTP_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    server.calls.clear()
    yield server
    server.fault("none")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def objective(trial: optuna.Trial) -> float:
    """Number 1 of three is pruned; the others get better and better."""
    lr = trial.suggest_float("lr/fc[1]", 1e-3, 1e-1, log=True)
    for step in (10, 20):
        layer = records.LayerRecord(
            name="fc[1]", N=64, M=32, alpha=3.0 + step, D=0.1, sigma=0.2, n_tail=12, spikes=2, n_eigenvalues=32,
            traps=0, rank_loss=1, stable_rank=7.5, spectral_norm=4.0,
        )  # fmt: skip
        records.write_look(trial, records.Look(step, 30, lr, lr, math.nan, 0.25, (layer,), late_accuracy=lr))
        trial.report(5.0 - trial.number - step / 100, step)
    if trial.number % 3 == 1:
        records.write(trial, reason="alpha of fc[1] rose")
        raise optuna.TrialPruned
    return 5.0 - trial.number


def let_go() -> None:
    """As the end of a process does, let the files go of callbacks that are used no more."""
    for thread in threading.enumerate():
        if thread.name == "ww_opt":
            thread.join(60)
    gc.collect()


def sync(name: str, timeout: float = 300.0) -> int:
    """What ``ww-opt mlflow sync`` does; how many records are left."""
    let_go()
    folder, left = Path("mlflow-spool"), 0
    for header in headers(folder):
        assert header["experiment"] == name
        left += replay(folder, header, Target(header["uri"], name), timeout, print).n_left
    return left


def tree(address: str, name: str) -> tuple[MlflowClient, Run, dict[int, Run]]:
    client = MlflowClient(address)
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    (parent,) = (run for run in runs if run.data.tags.get("ww_opt.role") == "study")
    children = {int(run.data.tags["ww_opt.trial"]): run for run in runs if run is not parent}
    assert len(children) == len(runs) - 1, "a trial was written twice"
    return client, parent, children


def check_exactly_once(address: str, name: str, study: optuna.Study) -> None:
    """Every metric, parameter and artifact of every trial is there, once, with its first time."""
    client, parent, children = tree(address, name)
    assert sorted(children) == [trial.number for trial in study.trials]
    for trial in study.trials:
        run = children[trial.number]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[trial.state.name]
        assert run.data.params == {"lr/fc_1_": str(trial.params["lr/fc[1]"])}
        assert trial.datetime_complete is not None
        moment = int(trial.datetime_complete.timestamp() * 1000)
        curves = summary.curves(trial)
        keys = summary.clean_names(key for key, _ in curves)
        assert Counter(points(client, run)) == {
            (keys[key], step, value, moment): 1 for (key, step), value in curves.items()
        }
        assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["layers.csv", "layers.json"]
    best = [point for point in points(client, parent) if point[0] == "best_value"]
    assert sorted(point[1] for point in best) == [trial.number for trial in study.trials]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["ww_opt.best_trial"] == str(study.best_trial.number)
    assert [n for n, run in children.items() if "ww_opt.best" in run.data.tags] == [study.best_trial.number]


def points(client: MlflowClient, run: Run) -> list[tuple[str, int, float, int]]:
    found = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    return [(point.key, point.step, point.value, point.timestamp) for point in found]


def tuned(callback: MLflowCallback, at: Callable[[int], object] = lambda _: None, **own: Any) -> optuna.Study:
    study = optuna.create_study(**own)
    hook = [callback, lambda _, trial: at(trial.number)]
    study.optimize(objective, N_TRIALS, callbacks=hook)  # type: ignore[arg-type]
    return study


def test_a_server_that_is_well(faulty: FaultyMLflow, name: str) -> None:
    callback = MLflowCallback(faulty.address, name)
    study = tuned(callback)
    assert callback.finish(study, timeout=300) == 0
    assert not Path("mlflow-spool").exists()
    check_exactly_once(faulty.address, name, study)


def test_one_that_is_down_from_the_start(faulty: FaultyMLflow, name: str) -> None:
    faulty.fault("down")
    said: list[str] = []
    callback = MLflowCallback(faulty.address, name, tell=said.append)
    assert callback.prepare(300) is None, "it may come back"
    study = tuned(callback)
    assert callback.finish(study, timeout=300) == N_TRIALS + 1
    assert len(said) == 1
    assert f"no server answers at {faulty.address}" in said[0]
    assert f"`ww-opt mlflow sync {Path('mlflow-spool').resolve()}` sends them" in said[0]
    assert sync(name, timeout=0.1) == N_TRIALS + 1, "while the process lives"
    faulty.fault("none")
    assert sync(name) == 0
    assert not Path("mlflow-spool").exists()
    check_exactly_once(faulty.address, name, study)
    assert callback.sync(study, timeout=300) == 0, "nothing is left to send"


def test_one_that_goes_down_in_the_middle_and_comes_back(
    faulty: FaultyMLflow, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_PAUSE", 0.05)
    callback = MLflowCallback(faulty.address, name, tell=lambda _: None)

    def weather(number: int) -> None:
        if number == 1:
            callback._outbox.background.wait(300)
            faulty.fault("down")
        if number == 4:
            callback._outbox.background.wait(300)
            faulty.fault("none")

    study = tuned(callback, weather)
    assert callback.finish(study, timeout=300) == 0, "it comes back by itself"
    check_exactly_once(faulty.address, name, study)


def test_one_that_answers_with_500_now_and_then(faulty: FaultyMLflow, name: str) -> None:
    faulty.fault("errors")
    callback = MLflowCallback(faulty.address, name, tell=lambda _: None)
    study = tuned(callback)
    callback.finish(study, timeout=300)
    del callback
    assert sync(name) == 0
    assert faulty.calls.count("POST /api/2.0/mlflow/runs/create") > N_TRIALS + 1, "some were asked for again"
    faulty.fault("none")
    check_exactly_once(faulty.address, name, study)


def test_one_that_makes_runs_and_does_not_say_so(faulty: FaultyMLflow, name: str) -> None:
    faulty.fault("unheard")
    callback = MLflowCallback(faulty.address, name, weights=Weights(lambda _: Path(__file__), register=name[:20]))
    study = tuned(callback)
    contents = Contents(weights=Path(__file__))
    assert callback.finish(study, timeout=300, contents=contents) == 0
    assert faulty.calls.count("POST /api/2.0/mlflow/runs/create") == N_TRIALS + 1, "none was asked for twice"
    faulty.fault("none")
    check_exactly_once(faulty.address, name, study)
    assert len(MlflowClient(faulty.address).search_model_versions(f"name='{name[:20]}'")) == 1


def test_one_that_hangs(faulty: FaultyMLflow, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    faulty.fault("hang")
    callback = MLflowCallback(faulty.address, name, tell=lambda _: None)
    study = tuned(callback)
    assert len(faulty.calls) <= 1, "nobody waits for it"
    assert callback.finish(study, timeout=0.1) == N_TRIALS + 1
    faulty.fault("none")
    callback._outbox.background.wait(300)
    assert callback.sync(study, timeout=300) == 0
    check_exactly_once(faulty.address, name, study)


def test_one_that_is_slow(faulty: FaultyMLflow, name: str) -> None:
    faulty.fault("slow")
    callback = MLflowCallback(faulty.address, name, tell=lambda _: None)
    study = tuned(callback)
    assert callback.finish(study, timeout=0.5) >= N_TRIALS
    callback._outbox.background.submit(partial(faulty.fault, "none"))
    faulty.seconds, seconds = 0.0, faulty.seconds
    try:
        assert callback.sync(study, timeout=300) == 0
    finally:
        faulty.seconds = seconds
    check_exactly_once(faulty.address, name, study)


def test_a_replay_changes_nothing(faulty: FaultyMLflow, name: str) -> None:
    faulty.fault("down")
    callback = MLflowCallback(faulty.address, name, tell=lambda _: None)
    study = tuned(callback)
    callback.finish(study, timeout=300)
    del callback
    faulty.fault("none")
    (file,) = files(Path("mlflow-spool"))
    content = file.read_bytes()
    assert sync(name) == 0
    client, parent, _ = tree(faulty.address, name)
    client.set_tag(parent.info.run_id, "mlflow.note.content", "of a later end")
    client.set_tag(parent.info.run_id, "ww_opt.as_of", str(2**50))
    n = len(faulty.calls)
    file.parent.mkdir()
    file.write_bytes(content)
    assert sync(name) == 0
    check_exactly_once(faulty.address, name, study)
    assert tree(faulty.address, name)[1].data.tags["mlflow.note.content"] == "of a later end"
    assert not [call for call in faulty.calls[n:] if "create" in call or "PUT" in call]


def test_a_run_takes_up_what_an_earlier_one_left(faulty: FaultyMLflow, name: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    faulty.fault("down")
    first = MLflowCallback(faulty.address, name, tell=lambda _: None)
    study = tuned(first, storage=storage, study_name="s")
    del first
    other = MLflowCallback(faulty.address, "other", tell=lambda _: None)
    tuned(other)
    del other
    let_go()
    assert len(files(Path("mlflow-spool"))) == 2
    faulty.fault("none")
    second = MLflowCallback(faulty.address, name)
    assert second.prepare(300) is None
    study.optimize(objective, 1, callbacks=[second])
    assert second.finish(study, timeout=300) == 0
    check_exactly_once(faulty.address, name, study)
    assert len(files(Path("mlflow-spool"))) == 1, "what is for elsewhere stays"


def test_a_torn_record_is_told_and_costs_no_other(faulty: FaultyMLflow, name: str) -> None:
    faulty.fault("down")
    callback = MLflowCallback(faulty.address, name, tell=lambda _: None)
    study = tuned(callback)
    callback._outbox.background.wait(300)
    del callback
    let_go()
    faulty.fault("none")
    (file,) = files(Path("mlflow-spool"))
    file.write_bytes(file.read_bytes()[:-100])
    said: list[str] = []
    header = headers(Path("mlflow-spool"))[0]
    found = replay(Path("mlflow-spool"), header, Target(faulty.address, name), 300.0, said.append)
    assert (found.n_sent, found.n_left) == (N_TRIALS - 1, 0)
    assert said == [f"1 damaged record in {file} cannot be read."]
    assert MLflowCallback(faulty.address, name).finish(study, timeout=300) == 0, "Optuna's storage has it"
    check_exactly_once(faulty.address, name, study)


def test_workers_that_begin_at_once_share_one_parent(
    faulty: FaultyMLflow, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = optuna.create_study(storage=storage, study_name="s")
    study.optimize(objective, 1)
    meeting, created = threading.Barrier(3), Runs._created

    def at_once(self: Runs, tags: dict[str, str], *how: Any) -> Run:
        if tags.get("ww_opt.role") == "study":
            meeting.wait(60)
        return created(self, tags, *how)

    monkeypatch.setattr(Runs, "_created", at_once)

    def work(number: int) -> None:
        own = optuna.load_study(storage=storage, study_name="s")
        callback = MLflowCallback(faulty.address, name, spool=tmp_path / str(number), tell=said.append)
        own.optimize(objective, 2, callbacks=[callback])
        left.append(callback.finish(own, timeout=300))

    left: list[int] = []
    said: list[str] = []
    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert (left, said) == ([0, 0, 0], [])
    assert MLflowCallback(faulty.address, name).finish(study, timeout=300) == 0
    check_exactly_once(faulty.address, name, study)


@pytest.mark.parametrize("start", [0, 2**45])
def test_a_trial_that_two_workers_wrote_is_made_one(faulty: FaultyMLflow, name: str, start: int) -> None:
    callback = MLflowCallback(faulty.address, name)
    study = tuned(callback)
    assert callback.finish(study, timeout=300) == 0
    client, _, children = tree(faulty.address, name)
    tags = {key: value for key, value in children[2].data.tags.items() if key != "ww_opt.best"}
    client.create_run(children[2].info.experiment_id, start, tags)  # not whole, in front of the other or behind it
    assert MLflowCallback(faulty.address, name).finish(study, timeout=300) == 0
    check_exactly_once(faulty.address, name, study)


def test_a_full_disk_is_told_once_and_the_server_gets_all(
    faulty: FaultyMLflow, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "spool")

    said: list[str] = []
    callback = MLflowCallback(faulty.address, name, tell=said.append)
    faulty.fault("down")
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", full)
        study = tuned(callback)
        assert callback.finish(study, timeout=300) == N_TRIALS + 1
        assert callback.n_lost_at_exit == N_TRIALS + 1
    told = [sentence for sentence in said if "No space left" in sentence]
    assert len(told) == 1
    assert "The study goes on" in told[0]
    callback._outbox.close()
    assert callback.n_lost_at_exit == 0, "once there is room they are kept"
    faulty.fault("none")
    assert callback.sync(study, timeout=300) == 0
    check_exactly_once(faulty.address, name, study)


KILLED = """
import os, signal, sys
import optuna
sys.path.insert(0, {root!r})
from tests.tracking.test_faults import objective
from ww_opt.tracking.mlflow import MLflowCallback
callback = MLflowCallback({address!r}, {name!r}, tell=print)
study = optuna.create_study()  # in memory: nothing else has the records
def kill(study, trial):
    if trial.number == 2:
        {end}
study.optimize(objective, 5, callbacks=[callback, kill])
"""


def left_to_itself(faulty: FaultyMLflow, name: str, end: str) -> subprocess.CompletedProcess[str]:
    """Three trials in a process that never calls ``finish``."""
    code = KILLED.format(root=str(ROOT), address=faulty.address, name=name, end=end)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_what_a_process_leaves_needs_no_storage(faulty: FaultyMLflow, name: str, how: str) -> None:
    faulty.fault("down")
    done = left_to_itself(faulty, name, "os.kill(os.getpid(), 9)" if how == "killed" else "sys.exit(3)")
    assert done.returncode == (-signal.SIGKILL if how == "killed" else 3), done.stderr
    told = f"3 records are not in MLflow yet: `ww-opt mlflow sync {Path('mlflow-spool').resolve()}`"
    assert (told in done.stdout) is (how == "ended")
    faulty.fault("none")
    assert sync(name) == 0
    _, parent, children = tree(faulty.address, name)
    assert [run.info.status for _, run in sorted(children.items())] == ["FINISHED", "KILLED", "FINISHED"]
    assert parent.data.tags["ww_opt.best_trial"] == "2"


def test_an_interpreter_that_exits_sends_what_waits(faulty: FaultyMLflow, name: str) -> None:
    done = left_to_itself(faulty, name, "sys.exit(3)")
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert not Path("mlflow-spool").exists()
    assert sorted(tree(faulty.address, name)[2]) == [0, 1, 2]


FORKED = """
import os, sys
import optuna
sys.path.insert(0, {root!r})
from tests.tracking.test_faults import objective
from ww_opt.study.storages import open_storage
from ww_opt.tracking.mlflow import MLflowCallback
callback = MLflowCallback({address!r}, {name!r})
study = optuna.create_study(storage=open_storage("s.journal"))
study.optimize(objective, 1, callbacks=[callback])
if not os.fork():
    study.optimize(objective, 2, callbacks=[callback])
    os._exit(0)
assert os.wait()[1] == 0
sys.exit(callback.finish(study, timeout=300))
"""


def test_a_forked_worker_leaves_its_records_to_who_forked_it(faulty: FaultyMLflow, name: str) -> None:
    code = FORKED.format(root=str(ROOT), address=faulty.address, name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(tree(faulty.address, name)[2]) == [0, 1, 2]


def test_the_best_weights_take_the_place_of_the_ones_before(faulty: FaultyMLflow, name: str, tmp_path: Path) -> None:
    def weights(number: int) -> Path:
        return tmp_path / f"trial-{number}.pt"

    def keep(trial: optuna.Trial) -> float:
        weights(trial.number).write_bytes(b"w" * (500 if trial.number == 5 else trial.number + 1))
        return objective(trial)

    callback = MLflowCallback(faulty.address, name, weights=Weights(weights, max_bytes=100, register="net"))
    study = optuna.create_study()
    study.optimize(keep, N_TRIALS, callbacks=[callback])
    assert callback.sync(study, timeout=300) == 0
    client, parent, _ = tree(faulty.address, name)

    def content(place: str) -> bytes:
        return Path(client.download_artifacts(parent.info.run_id, place, str(tmp_path / "down"))).read_bytes()

    (tmp_path / "down").mkdir()
    assert content("best/weights.pt") == b"w" * 4, "of trial 3: those of the best, 5, are too large"
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "best")] == ["best/weights.pt"]
    for _ in range(2):
        assert callback.finish(study, timeout=300, contents=Contents(weights=weights(5))) == 0
    assert content("best/weights.pt") == b"w" * 500, "asked for by its name, it is sent"
    (version,) = client.search_model_versions("name='net'")
    assert (version.run_id, version.tags["ww_opt.trial"]) == (parent.info.run_id, "5")
    folder = version.source.rpartition("/registered/")[2]
    weights(5).write_bytes(b"v" * 9)
    assert callback.finish(study, timeout=300, contents=Contents(weights=weights(5))) == 0
    assert content("best/weights.pt") == b"v" * 9
    assert content(f"registered/{folder}/weights.pt") == b"w" * 500, "a version stays what it was"
    assert len(client.search_model_versions("name='net'")) == 2


def test_a_file_is_sent_once_for_each_content(faulty: FaultyMLflow, name: str, tmp_path: Path) -> None:
    callback = MLflowCallback(faulty.address, name)
    study, page = optuna.create_study(), tmp_path / "report.html"
    page.write_text("<p>one")
    with pytest.raises(ValueError, match="must have a finished trial"):
        callback.log_artifact(study, page)
    study.optimize(objective, 1, callbacks=[callback])
    with pytest.raises(ValueError, match="there is none at"):
        callback.log_artifact(study, tmp_path / "none.html")
    for text in ("<p>one", "<p>one", "<p>two"):
        page.write_text(text)
        callback.log_artifact(study, page, "report")
        assert callback.sync(study, timeout=300) == 0
    assert sum(call.startswith("PUT") and call.endswith("report/report.html") for call in faulty.calls) == 2
    client, parent, _ = tree(faulty.address, name)
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "report")] == ["report/report.html"]
    callback.log_artifact(study, page, "gone")
    page.unlink()
    callback.log_artifact(study, __file__)
    assert callback.sync(study, timeout=300) == 0
    tags = client.get_run(parent.info.run_id).data.tags
    assert tags["ww_opt.file.gone/report.html"] in ("gone before it was sent", tags["ww_opt.file.report/report.html"])


def test_passwords_are_written_nowhere(
    faulty: FaultyMLflow, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = faulty.address.replace("//", "//me:hunter2@")
    faulty.fault("down")
    said: list[str] = []

    def failing(trial: optuna.Trial) -> float:
        trial.suggest_categorical("data", ["postgresql://me:hunter2@db/x"])
        records.write(trial, reason=f"OSError: {address}/data?token=hunter2 is away")
        raise optuna.TrialPruned

    callback = MLflowCallback(address, name, tell=said.append)
    study = optuna.create_study()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study.optimize(failing, 2, callbacks=[callback])
    finally:
        optuna.logging.set_verbosity(optuna.logging.INFO)
    callback.finish(study, timeout=300)
    (file,) = files(Path("mlflow-spool"))
    assert "hunter2" not in file.read_text() + "".join(said) + "".join(capfd.readouterr())
    del callback
    let_go()
    faulty.fault("none")
    (header,) = headers(Path("mlflow-spool"))
    assert header["uri"] == address.replace("me:hunter2", "***")
    assert replay(Path("mlflow-spool"), header, Target(address, name), 300.0, print).n_left == 0
    _, parent, children = tree(faulty.address, name)
    assert children[0].data.tags["ww_opt.reason"].endswith("/data?token=*** is away")
    assert "hunter2" not in json.dumps([run.to_dictionary() for run in (parent, *children.values())])
