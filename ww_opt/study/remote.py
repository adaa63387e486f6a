"""Storages that are no database: Redis, and the gRPC proxy in front of a database; both by URL."""

from __future__ import annotations

import warnings
from urllib.parse import urlsplit

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage
from optuna.storages.journal import JournalRedisBackend

from ww_opt.study.patience import is_lost

__all__ = ["REMOTE", "open_remote", "refusal_of_proxy"]

REMOTE = ("redis://", "rediss://", "grpc://")
_PORT = 13000
_SECONDS = 30


class _Log(JournalRedisBackend):
    """Optuna's log in Redis without its snapshots: those are pickles, and whoever can write there could run code."""

    def save_snapshot(self, snapshot: bytes) -> None:
        """Keep none."""

    def load_snapshot(self) -> bytes | None:
        """Read the log from its beginning."""
        return None


def open_remote(storage: str) -> BaseStorage:
    """Open ``redis://[user:password@]host[:port][/number]`` or ``grpc://host[:port]``.

    Raises:
        ImportError: the driver is not installed.
        OSError: the server cannot be reached.
        ValueError: the URL is none of these.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if storage.startswith("grpc://"):
            parts = urlsplit(storage)
            proxy = GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or _PORT)
            proxy.wait_server_ready(timeout=_SECONDS)
            return proxy
        # a server that does not answer would be waited for without end
        asked = "" if "socket_timeout=" in storage else f"{'&' if '?' in storage else '?'}socket_timeout={_SECONDS}"
        try:
            return JournalStorage(_Log(storage + asked))
        except Exception as error:
            if is_lost(error):  # the driver's own kind of error
                raise ConnectionError(str(error)) from error
            raise


def refusal_of_proxy(storage: str) -> str:
    """Why a storage cannot stand behind the gRPC proxy; empty where it can."""
    if storage.startswith("grpc://"):
        return "it is a proxy itself: give the database behind it"
    if storage.startswith(REMOTE) or "://" not in storage:
        return (
            "it is a journal, which the proxy does not carry: it takes all clients for one worker, so that two get the "
            "same queued trial (optuna issue 6084). Give a database (postgresql://, mysql://), or let workers open the "
            "journal themselves"
        )
    if storage.startswith("sqlite"):
        return (
            "SQLite locks no rows, so that two workers get the same queued trial. Give a database server "
            "(postgresql://, mysql://)"
        )
    return ""
