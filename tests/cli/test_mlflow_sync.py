"""What `ww-opt run` says of records that wait, and `ww-opt mlflow sync`, which sends them."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cli.test_commands import TINY, Answer, Runner, ww
from ww_opt.tracking.stores import HTTP_DEFAULTS, make_whole

__all__ = ["ww"]

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where no server answers."""
    for name, value in HTTP_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{closed.getsockname()[1]}"


def printed(answer: Answer) -> list[str]:
    """Arguments of the command that an answer ends with."""
    return shlex.split(answer.err.splitlines()[-1])[1:]


def test_the_printed_command_sends_what_waits(ww: Runner, away: str) -> None:
    answer = ww("run", TINY, "--n-trials", 2, "--tracking-uri", f"http://{away}")
    assert answer.code == 0
    assert f"MLflow could not be written, since no server answers at http://{away}." in answer.err
    assert f"3 records are not in MLflow yet, since no server answers at http://{away}. To send" in answer.err
    again = ww(*printed(answer), "--timeout", 1)
    assert again.code == 1
    assert f"3 records left, since no server answers at http://{away}: call this again later." in again.err
    store = f"sqlite:///{ww.folder / 'elsewhere.db'}"
    make_whole(store)
    sent = ww(*printed(answer), "--tracking-uri", store, "--experiment", "mine")
    assert sent.code == 0
    assert sent.out == f"3 records sent to {store}, experiment 'mine'.\n"
    runs = MlflowClient(store).search_runs([MlflowClient(store).get_experiment_by_name("mine").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["tiny", "trial 0", "trial 1"]
    none = ww(*printed(answer))
    assert (none.code, none.out) == (0, "Nothing waits in runs/mlflow-spool.\n")
    assert not Path("runs/mlflow-spool").exists()


def test_the_password_is_in_no_file_and_is_asked_for(ww: Runner, away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ww("run", TINY, "--n-trials", 1, "--tracking-uri", f"http://me:hunter2@{away}")
    assert answer.code == 0
    everything = [path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()]
    assert not [content for content in everything if b"hunter2" in content]
    assert "hunter2" not in answer.out + answer.err
    refused = ww(*printed(answer))
    assert refused.code == 2
    assert f"The password for http://***@{away} must be known, and it is kept in no file" in refused.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@{away}")
    asked = ww(*printed(answer), "--timeout", 1)
    assert asked.code == 1
    assert f"2 records left, since no server answers at http://***@{away}" in asked.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timeout", 0], "`timeout > 0` must hold, but got timeout=0.0."),
        (["--timeout", "nan"], "`timeout > 0` must hold, but got timeout=nan."),
        (["--tracking-uri", "foo://me:secret@bar"], "must name a store that MLflow can write, but got 'foo://***@bar'"),
        ([], "A spool must say where its records go, but one in spool is damaged: give --tracking-uri."),
    ],
)
def test_bad_input_gets_one_line(ww: Runner, arguments: list[object], message: str) -> None:
    (ww.folder / "spool").mkdir()
    (ww.folder / "spool" / "a.jsonl").write_text("00000000 {}\n")
    answer = ww("mlflow", "sync", "spool", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert "secret" not in answer.err
    assert len(answer.err.splitlines()) == 1


def test_large_weights_stay_where_they_are(ww: Runner) -> None:
    store = f"sqlite:///{ww.folder / 'mlflow.db'}"
    make_whole(store)
    assert ww("run", TINY, "--n-trials", 1, "--tracking-uri", store, "--log-weights", 0).code == 0
    client = MlflowClient(store)
    (parent,) = client.search_runs(
        [client.get_experiment_by_name("ww_opt").experiment_id], "tags.`ww_opt.role` = 'study'"
    )
    sent = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert sent == {"pick.json", "study.png", "report.html"}
    assert parent.data.tags["ww_opt.pick.weights"].startswith("not sent: 0 MB, and no more than 0 MB")
    assert ww("run", TINY, "--n-trials", 1, "--tracking-uri", store, "--register", "net").code == 0
    (version,) = client.search_model_versions("name='net'")
    assert version.tags["ww_opt.trial"] == "0"
    refused = ww("run", TINY, "--log-weights", -1, "--tracking-uri", store)
    assert refused.code == 2
    assert "`max_bytes >= 0` must hold" in refused.err
