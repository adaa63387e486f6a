"""MLflow's store is whole from the first moment, and its troubles are told by their cause."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ww_opt.tracking.mlflow import MLflowCallback
from ww_opt.tracking.stores import Deleted, make_whole, trouble

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where spools lie by default."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that this package made."""
    folder = tmp_path_factory.mktemp("store")
    make_whole(f"sqlite:///{folder / 'mlflow.db'}")
    assert [file.name for file in folder.iterdir()] == ["mlflow.db"], "nothing is left aside"
    return folder / "mlflow.db"


def told(database: Path | str) -> str:
    """What is said before the first trial."""
    return str(MLflowCallback(f"sqlite:///{database}", tell=lambda _: None).prepare(600))


def test_what_it_made_is_all_that_mlflow_needs(store: Path) -> None:
    with sqlite3.connect(store) as connection:
        before = connection.execute("select sql from sqlite_master order by name").fetchall()
    assert told(store) == "None"
    with sqlite3.connect(store) as connection:
        assert connection.execute("select sql from sqlite_master order by name").fetchall() == before
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("ww_opt")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.artifact_location == (store.parent / "mlartifacts").as_uri()


class TestLasting:
    """What somebody has to mend is told before the first trial, and how."""

    @pytest.fixture
    def copy(self, store: Path, tmp_path: Path) -> Path:
        copied = tmp_path / "mlflow.db"
        copied.write_bytes(store.read_bytes())
        return copied

    def test_a_half_made_file_is_moved_away(self, copy: Path) -> None:
        with sqlite3.connect(copy) as connection:  # as after a kill: an early version, half of whose step was done
            connection.execute("drop table trace_info")
            connection.execute("update alembic_version set version_num = '7ac759974ad8'")
        said = told(copy)
        assert f"{copy} is half-made" in said
        assert f"`mv '{copy}' '{copy}.old'`" in said
        copy.rename(f"{copy}.old")
        # by another address, for MLflow keeps a file open that it could not use as long as the process lives
        assert told(f"{copy.parent}/./{copy.name}") == "None", "the remedy works"

    def test_one_of_another_version(self, copy: Path) -> None:
        with sqlite3.connect(copy) as connection:
            connection.execute("update alembic_version set version_num = '7ac759974ad8'")
        assert "made by another version of MLflow" in told(copy)
        assert f"mlflow db upgrade sqlite:///{copy}" in told(copy)

    def test_a_damaged_one(self, copy: Path) -> None:
        copy.write_bytes(b"hello" * 1000)
        assert "is damaged, or is no database" in told(copy)

    def test_a_deleted_experiment_comes_back_or_another_is_named(self, copy: Path) -> None:
        assert told(copy) == "None"
        client = MlflowClient(f"sqlite:///{copy}")
        number = client.get_experiment_by_name("ww_opt").experiment_id
        client.delete_experiment(number)
        said = told(copy)
        assert "experiment 'ww_opt' was deleted" in said
        assert f"mlflow experiments restore --experiment-id {number}" in said
        assert "--experiment" in said
        other = MLflowCallback(f"sqlite:///{copy}", "other", tell=lambda _: None)
        assert other.prepare(600) is None
        client.restore_experiment(number)
        assert told(copy) == "None"

    def test_a_place_that_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "None" not in told(tmp_path / "file" / "mlflow.db")


@pytest.mark.parametrize(
    ("text", "message", "is_passing"),
    [
        ("(sqlite3.OperationalError) database is locked", "another program holds", True),
        ("OSError: [Errno 28] No space left on device", "the disk is full", True),
        ("attempt to write a readonly database", "cannot be written", False),
        ("API request failed with error code 401 != 200", "refuses the login", False),
        ("error code 403 != 200. Permission denied", "refuses the login", False),
        ("error code 404 != 200. Response body: ''", "there is no MLflow server", False),
        ("error code 500 != 200", "500", True),
        ("Max retries exceeded (Caused by NewConnectionError: Connection refused)", "no server answers at", True),
        ("Read timed out", "does not answer in time", True),
        ("too many 503 error responses", "is not well (503)", True),
        ("Failed to resolve 'nohost' ([Errno -2] Name or service not known)", "host of", False),
        ("SSLError: certificate verify failed", "cannot be trusted", False),
        ("No module named 'boto3'", "driver", False),
        ("FATAL: password authentication failed", "refuses the login", False),
    ],
)
def test_what_lasts_and_what_passes(text: str, message: str, is_passing: bool) -> None:
    found = trouble(RuntimeError(text), "http://me:secret@host:5000", "mine")
    assert message in str(found)
    assert found.is_passing is is_passing
    assert "secret" not in str(found)


def test_an_experiment_whose_files_cannot_be_written() -> None:
    error = PermissionError(13, "Permission denied", "/home/other/mlruns")
    found = trouble(error, "sqlite:///a.db", "mine")
    assert "/home/other/mlruns cannot be written" in str(found)
    assert "--experiment" in found.remedy
    assert not found.is_passing
    assert not trouble(Deleted("mine", "3"), "sqlite:///a.db", "mine").is_passing
