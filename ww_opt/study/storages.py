"""Where Optuna keeps a study: opened by its address, made whole at its first use, and errors told by their cause."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ww_opt.study.first_use import database_file, place_whole
from ww_opt.study.journals import Journal, NoJournal
from ww_opt.study.patience import Patience
from ww_opt.study.remote import REMOTE, open_remote
from ww_opt.study.secrets import shown, without_password
from ww_opt.study.shared_storage import PatientStorage, SharedStorage

T = TypeVar("T")

__all__ = ["StorageError", "file_of", "open_behind_proxy", "open_storage", "reading", "shown"]

_SQLITE_SECONDS = 60
_TRIES = 3
_ALIVE = {"connect_timeout": 10, "keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 4}
_MADE_MEANWHILE = re.compile(r"already exists|duplicate key|UNIQUE constraint", re.IGNORECASE)


class StorageError(ValueError):
    """The storage cannot be used; the message says why, and what to do."""


def open_storage(storage: str | BaseStorage | None) -> str | BaseStorage | None:
    """Open Optuna's storage: a database URL, a file that ends in ``.journal`` or ``.log``, a storage, or ``None``.

    A new SQLite file is made aside and moved into place, so that a kill leaves no half of it and two processes that
    come at once do not both make its tables.

    Raises:
        StorageError: see :func:`reading`.
    """
    if not isinstance(storage, str):
        return storage
    return reading(storage, lambda: _opened(storage))


def open_behind_proxy(storage: str) -> BaseStorage:
    """Open a database for the gRPC proxy: patient, but the stamps on trials are those of the clients.

    Raises:
        StorageError: see :func:`reading`.
    """
    opened = open_storage(storage)
    assert isinstance(opened, SharedStorage)
    return PatientStorage(opened.backend, storage, opened.patience)  # type: ignore[abstract]


def file_of(storage: str) -> Path | None:
    """Return the file that a storage is, a journal or an SQLite database; ``None`` for what is no file."""
    return Path(storage) if _is_journal(storage) else database_file(storage)


def _is_journal(storage: str) -> bool:
    return storage.endswith((".journal", ".log")) and "://" not in storage


def reading(storage: object, action: Callable[[], T]) -> T:
    """Do what reads or writes the storage, and tell what goes wrong there by its cause.

    Raises:
        StorageError: the address is wrong, the place cannot be written, the server refuses, or what lies there is no
            storage of this Optuna.
    """
    try:
        return action()
    except (
        SQLAlchemyError,
        OSError,
        RuntimeError,
        ImportError,
        ValueError,
        KeyError,
        optuna.exceptions.OptunaError,
    ) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(without_password(_told(shown(storage), error), storage)) from error


def _opened(storage: str) -> BaseStorage:
    if _is_journal(storage):
        try:
            backend: BaseStorage = JournalStorage(Journal(Path(storage)))
        except NoJournal as error:
            raise StorageError(f"--storage must be a journal, but {error}") from error
        return _shared(backend, storage)
    if "://" not in storage:
        raise StorageError(
            f"--storage must be a database URL or a file NAME.journal, but got {shown(storage)}: "
            f"write sqlite:///{storage} for an SQLite file."
        )
    if storage.startswith(REMOTE):
        return _shared(open_remote(storage), storage)
    file = database_file(storage)
    if file is not None:
        place_whole(file, lambda aside: _made(f"sqlite:///{aside.as_posix()}"))
    return _shared(get_storage(_database(storage)), storage)


def _shared(backend: BaseStorage, storage: str) -> SharedStorage:
    is_remote = file_of(storage) is None
    patience = Patience(shown(storage))
    return SharedStorage(backend, storage, patience, is_remote=is_remote)  # type: ignore[abstract]


def _made(url: str) -> None:
    RDBStorage(url).engine.dispose()


def _database(url: str) -> RDBStorage:
    for left in reversed(range(_TRIES)):
        try:
            return RDBStorage(url, engine_kwargs=_engine_options(url))
        except SQLAlchemyError as error:
            if not left or not _MADE_MEANWHILE.search(str(error)):
                raise
            time.sleep(0.5)  # another process makes the tables just now
    raise AssertionError("unreachable")


def _engine_options(url: str) -> dict[str, Any]:
    parsed = make_url(url)
    name = parsed.get_backend_name()
    if name == "sqlite":
        # workers write one after the other, and a busy disk makes them wait longer than the default of 5 seconds
        return {"connect_args": {"timeout": _SQLITE_SECONDS}}
    # servers drop idle connections, and Optuna asks whether one still holds with MySQL alone
    options: dict[str, Any] = {"pool_pre_ping": True}
    if name == "postgresql" and parsed.get_driver_name() in ("psycopg", "psycopg2"):
        # one that does not answer is given up after some 40 seconds, not after hours; what the URL says goes first
        asked = {**_ALIVE, **parsed.query}
        options["connect_args"] = {key: asked[key] for key in _ALIVE}
    return options


def _told(where: str, error: BaseException) -> str:
    text = str(error).strip()
    first = next(iter(text.splitlines()), "") or type(error).__name__
    cause = f"--storage must be a place that can be written, but {where} gives: {first}"
    if isinstance(error, ArgumentError):
        return f"--storage must be a database URL or a file NAME.journal, but {where} gives: {first}"
    if isinstance(error, ImportError):
        return (
            f"--storage needs the database's driver, but {where} gives: {first} Install it (`pip install "
            "'ww_opt[dist]'` has those of PostgreSQL, Redis and gRPC), or take sqlite:///."
        )
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{cause}. {remedy}"
    return f"{cause} ({type(error).__name__})."


_REMEDIES = (
    (
        r"no longer compatible with the table schema",
        "Another version of Optuna, or another program, made it: run `optuna storage upgrade --storage URL`, install "
        "that version, or choose another --storage.",
    ),
    (
        r"not a database|malformed|Extra data|Expecting value|Unterminated string|codec can't decode|KeyError|op_code",
        "What lies there is damaged, or is no storage of Optuna: move it away or choose another --storage.",
    ),
    (
        r"no such table|no such column|has no column|UndefinedTable|UndefinedColumn",
        "Its tables are not Optuna's, or were made by another version: move it away or choose another --storage.",
    ),
    (
        r"password|authentication|access denied|role .* does not exist|permission denied for",
        "The server refuses the login: check user and password in --storage.",
    ),
    (
        r"could not translate host|failed to resolve host|name or service not known|connection refused|"
        r"could not connect|can't connect|error -?\d+ connecting|timed? ?out|no route to host|network is unreachable",
        "The server cannot be reached: check host and port in --storage, and that it runs.",
    ),
    (r"database .* does not exist|unknown database", "Create the database, or name another in --storage."),
    (r"database is locked", "Another program holds it: run the command again once that is done."),
    (
        r"readonly|read-only|unable to open|permission denied|no such file|is a directory|not a directory",
        "Check that the folder exists and can be written, or choose another --storage.",
    ),
    (r"disk is full|no space left", "Free some space, or choose another --storage."),
)
