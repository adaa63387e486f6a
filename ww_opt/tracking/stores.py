"""Where MLflow keeps things: the store made whole at its first use, and its troubles told by their cause."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from ww_opt.study.first_use import database_file, place_whole
from ww_opt.tracking.secrets import scrubbed

__all__ = ["HTTP_DEFAULTS", "Deleted", "Trouble", "check", "files_beside", "make_whole", "trouble"]

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
HTTP_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # with MLflow's own values one call blocks for 4 to 20 minutes
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines and one more request a trial
}


_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)


class Deleted(RuntimeError):
    """The experiment is in MLflow's bin, where nothing can be written to it."""

    def __init__(self, name: str, experiment_id: str) -> None:
        super().__init__(f"experiment {name!r} (number {experiment_id}) was deleted")
        self.experiment_id = experiment_id


@dataclass(frozen=True)
class Trouble:
    """Why MLflow could not be written, and what to do. ``is_passing``: the same command may well write it later."""

    what: str
    remedy: str
    is_passing: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


def check(uri: str) -> None:
    """Refuse an address that MLflow has no store for; set time limits for servers. No connection is tried.

    Raises:
        ValueError: see above.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _DATABASES:  # a database may be away just now, and SQLite takes seconds at first: the thread's job
        try:
            MlflowClient(uri)
        except MlflowException as error:
            raise ValueError(
                f"`tracking_uri` must name a store that MLflow can write, but got {scrubbed(uri)!r}: "
                f"{scrubbed(str(error.message))} Use an address such as 'sqlite:///mlflow.db' or 'http://localhost:5000'."
            ) from None  # its own message has the password
        for name, value in HTTP_DEFAULTS.items():
            os.environ.setdefault(name, value)


def files_beside(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside an SQLite file; elsewhere what the server chooses."""
    file = database_file(uri)
    return None if file is None else (file.resolve().parent / "mlartifacts").as_uri()


def make_whole(uri: str) -> None:
    """Make a new SQLite file with all of MLflow's tables under another name, and move it into place.

    MLflow makes its tables one by one, and what a kill in between leaves can neither be used nor mended.
    """
    file = database_file(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        place_whole(file, _make)


def _make(aside: Path) -> None:
    SqlAlchemyStore(f"sqlite:///{aside.as_posix()}", "./mlruns").engine.dispose()  # type: ignore[no-untyped-call]


def trouble(error: BaseException, uri: str, experiment: str) -> Trouble:
    """Tell a cause that lasts until somebody mends it from one that passes, and how to mend it.

    Args:
        error: what MLflow, a driver or a file system raised.
        uri: MLflow's address.
        experiment: the experiment's name.
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    file = database_file(uri)
    where = scrubbed(uri)
    if isinstance(error, Deleted):
        return Trouble(
            f"experiment {experiment!r} was deleted",
            f"bring it back with `MLFLOW_TRACKING_URI={where} mlflow experiments restore --experiment-id "
            f"{error.experiment_id}`, or name another with --experiment",
            False,
        )
    if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename:
        return Trouble(
            f"{error.filename} cannot be written",
            "make it writable, or name a new experiment with --experiment, or another place with --tracking-uri",
            False,
        )
    for pattern, what, remedy, is_passing in _TROUBLES:
        if re.search(pattern, text, re.IGNORECASE):
            names = {"uri": where, "file": str(file or where), "experiment": experiment}
            return Trouble(what.format(**names), remedy.format(**names), is_passing)
    if status := re.search(r"error code (5\d\d)|too many (5\d\d) error|(5\d\d) Server Error", text):
        code = next(filter(None, status.groups()))
        return Trouble(f"{where} answers that it is not well ({code})", "wait until it is, or see its log", True)
    return Trouble(scrubbed(text)[:300], f"check MLflow at {where}", True)


_MOVE = (
    "move it away (`mv '{file}' '{file}.old'`); Optuna's storage has all records, and the same command writes them "
    "into a new one"
)
_HALF = "{file} is half-made, as a run leaves it that is killed while MLflow makes its tables"
_OTHER = "take another --tracking-uri"
_TROUBLES = (
    # pattern, what, remedy, whether it passes
    (r"found version None", _HALF, _MOVE, False),
    (
        r"out-of-date database schema",
        "{file} was made by another version of MLflow, or its making was interrupted",
        f"run `mlflow db upgrade {{uri}}`, or, where that fails, {_MOVE}",
        False,
    ),
    (r"Can't locate revision", "{file} was made by a newer MLflow", f"install that version, or {_OTHER}", False),
    (r"duplicate column|already exists \[SQL|table \S+ already exists|no such (table|column)", _HALF, _MOVE, False),
    (r"not a database|malformed", "{file} is damaged, or is no database", _MOVE, False),
    (
        r"Connection refused|NewConnectionError|Connection reset|RemoteDisconnected|Connection aborted",
        "no server answers at {uri}",
        "start it, or check the address",
        True,
    ),
    (r"timed? ?out|timeout", "{uri} does not answer in time", "wait until it does, or check the address", True),
    (r"disk is full|No space left|Errno 28|quota exceeded", "the disk is full", "free some space", True),
    (r"database is locked", "another program holds {file}", "wait until it is done", True),
    (
        r"\b40[137]\b|Unauthorized|Forbidden|UNAUTHENTICATED|PERMISSION_DENIED|password|authentication|access denied",
        "{uri} refuses the login",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or mend the address",
        False,
    ),
    (
        r"readonly database|read-only|unable to open database|Permission denied|Errno 13|Errno 30",
        "{file} cannot be written",
        "make the file and its folder writable, or " + _OTHER,
        False,
    ),
    (
        r"must be in the active state|lifecycle_stage|deleted experiment",
        "experiment {experiment!r} was deleted",
        "restore it in MLflow's pages, or name another with --experiment",
        False,
    ),
    (
        r"\b404\b|ENDPOINT_NOT_FOUND|expecting value|JSONDecode|405",
        "there is no MLflow server at {uri}",
        "check the address given by --tracking-uri",
        False,
    ),
    (
        r"certificate|SSLError|WRONG_VERSION_NUMBER",
        "{uri} cannot be trusted or speaks another protocol",
        "check https or http, and its certificate",
        False,
    ),
    (
        r"getaddrinfo|name resolution|Name or service not known|nodename|translate host",
        "the host of {uri} is not known",
        "check its name in --tracking-uri, and the network",
        False,
    ),
    (
        r"No module named|ImportError|ModuleNotFound|NoSuchModule|DBAPI",
        "the driver for {uri}, or for its files, is not installed",
        "install it, or " + _OTHER,
        False,
    ),
    (r"does not exist", "{uri} has no such database", "create it, or " + _OTHER, False),
)  # fmt: skip
