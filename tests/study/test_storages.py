"""What goes wrong while a study is opened is told by its cause."""

from __future__ import annotations

import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.samplers import TPESampler

from tests import tiny
from ww_opt.study.secrets import shown, without_logins
from ww_opt.study.storages import StorageError, open_storage, reading
from ww_opt.study.study import open_study
from ww_opt.study.weights_folder import claim


def of_another_version(file: Path) -> None:
    open_storage(f"sqlite:///{file}")
    with sqlite3.connect(file) as connection:
        connection.execute("update alembic_version set version_num = 'v2.6.0.a'")
        connection.execute("update version_info set schema_version = 11")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sqlite:///no/folder/x.db", r"--storage.*(unable to open|No such file).*folder exists and can be written"),
        ("no/folder/x.journal", r"--storage.*No such file.*folder exists and can be written"),
        ("foo://x", r"--storage must be a database URL"),
        ("x.db", r"write sqlite:///x\.db"),
        ("sqlite:///garbage.db", r"--storage.*not a database.*move it away or choose another"),
        ("text.log", r"--storage.*move it away or choose another"),
        ("postgresql+nodriver://me:secret@host/db", r"--storage"),
        ("sqlite:///old.db", r"--storage.*Another version of Optuna.*optuna storage upgrade"),
    ],
)
def test_a_storage_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("garbage.db").write_bytes(b"hello" * 500)
    Path("text.log").write_text("2030-01-01 a log of something else\n")
    of_another_version(Path("old.db"))
    with pytest.raises(StorageError, match=message) as caught:
        open_study(tiny.STUDY, name)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('(psycopg2.OperationalError) FATAL: password authentication failed for user "me"', "check user and password"),
        ("(psycopg2.OperationalError) could not translate host name", "check host and port"),
        ("(pymysql.err.OperationalError) (1045, \"Access denied for user 'me'\")", "check user and password"),
        ("(2003, \"Can't connect to MySQL server on 'host'\")", "check host and port"),
        ('FATAL: database "x" does not exist', "Create the database"),
        ("attempt to write a readonly database", "can be written"),
        ("database or disk is full", "Free some space"),
        ("database is locked", "Another program holds it"),
    ],
)
def test_what_servers_and_disks_say(text: str, message: str) -> None:
    def fail() -> None:
        raise RuntimeError(text)

    with pytest.raises(StorageError, match=message) as caught:
        reading("postgresql://me:secret@host/x", fail)
    assert "'postgresql://***@host/x'" in str(caught.value)


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("postgresql://me:secret@host/db", "'postgresql://***@host/db'"),
        ("postgresql://me:se/cr@et@host/db", "'postgresql://***@host/db'"),
        ("mysql://host/db?user=me&password=secret&x=1", "'mysql://host/db?user=me&password=***&x=1'"),
        ("sqlite:////runs/me@home/x.db", "'sqlite:////runs/me@home/x.db'"),
        ("my@own.journal", "'my@own.journal'"),
    ],
)
def test_no_password_is_shown(storage: str, told: str) -> None:
    assert shown(storage) == told


def test_passwords_inside_of_a_sentence_are_hidden() -> None:
    said = without_logins("tried 'a://me:secret@x/d', then b://y?password=secret and neither answers me@home")
    assert said == "tried 'a://***@x/d', then b://y?password=*** and neither answers me@home"


def test_the_fault_of_a_sampler_is_its_own_with_its_place() -> None:
    study = replace(tiny.STUDY, sampler=lambda seed: TPESampler(seed=seed, n_startup=3))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"Study\.sampler.*'n_startup'.*test_storages\.py, line \d+") as caught:
        open_study(study)
    assert "--storage" not in str(caught.value)
    with pytest.raises(TypeError, match=r"must return one of Optuna's samplers, but it returned 3"):
        open_study(replace(tiny.STUDY, sampler=lambda seed: 3))  # type: ignore[arg-type, return-value]


def test_a_stored_study_with_several_directions_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    optuna.create_study(study_name="tiny", storage=url, directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match=r"created to minimize and maximize: choose another --study-name"):
        open_study(tiny.STUDY, url)


def test_a_new_file_is_whole_and_alone(tmp_path: Path) -> None:
    open_study(tiny.STUDY, f"sqlite:///{tmp_path / 'studies.db'}")
    assert [file.name for file in tmp_path.iterdir()] == ["studies.db"]


def _open_and_claim(url: str, folder: str) -> None:
    claim(Path(folder), open_study(tiny.STUDY, url))


def test_processes_that_come_first_at_once_share_storage_and_folder(tmp_path: Path) -> None:
    url, folder = f"sqlite:///{tmp_path / 'studies.db'}", str(tmp_path / "kept")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_open_and_claim, args=(url, folder)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [file.name for file in Path(folder).iterdir()] == [".study"]
    claim(Path(folder), open_study(tiny.STUDY, url))
