"""A storage that cannot be reached is waited for: tried again, ever more rarely, for a bounded time."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

__all__ = ["Patience", "is_lost"]

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_FIRST_PAUSE, _TOLD_AFTER = 0.1, 2.0
# PostgreSQL's states: connection lost, shutdown or start, too many clients, deadlock and the like
_PASSING_STATES = ("08", "57P", "53300", "40")
_NO_USE = re.compile(r"password|authentication|does not exist|permission denied|no such|readonly|full", re.IGNORECASE)
_OF_SQLITE = re.compile(r"locked|busy", re.IGNORECASE)
_OF_REDIS = ("ConnectionError", "TimeoutError", "BusyLoadingError", "ReadOnlyError")
_OF_GRPC = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclass(frozen=True)
class Patience:
    """How long a storage is waited for.

    Args:
        where: the storage as it may be told, without a password.
        seconds: after which the error is raised.
        longest_pause: seconds between two attempts, at most; they begin with a tenth and double, with some chance in
            them, so that many workers do not come back at once.
    """

    where: str
    seconds: float = 300.0
    longest_pause: float = 5.0

    def tried(self, action: Callable[[bool], T]) -> T:
        """Do it until the connection holds.

        Args:
            action: told whether it was tried before, and so may have been done although nobody heard of it.

        Raises:
            Exception: what ``action`` raises, if that is no lost connection, or the time is up.
        """
        started, pause, is_told = time.monotonic(), _FIRST_PAUSE, False
        is_again = False
        while True:
            try:
                found = action(is_again)
            except Exception as error:
                waited = time.monotonic() - started
                if not is_lost(error) or waited >= self.seconds:
                    raise
                if waited > _TOLD_AFTER and not is_told:
                    is_told = True
                    _LOG.warning(
                        "The storage %s cannot be reached (%s). It is tried again for %.0f seconds.",
                        self.where,
                        _words(error),
                        self.seconds,
                    )
                is_again = True
                time.sleep(min(pause * random.uniform(0.5, 1.0), max(self.seconds - waited, 0.0)))
                pause = min(2 * pause, self.longest_pause)
                continue
            if is_told:
                _LOG.warning("The storage %s is back after %.0f seconds.", self.where, time.monotonic() - started)
            return found


def is_lost(error: BaseException) -> bool:
    """Whether an error says that the storage could not be reached for now, and nothing else is wrong."""
    return any(_is_passing(own) for own in _chain(error))


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        return _is_passing_of_database(error)
    if isinstance(error, PendingRollbackError):  # the connection was lost, and Optuna asked again in another way
        return True
    kind = type(error)
    if kind.__module__.startswith("redis."):
        return kind.__name__ in _OF_REDIS
    code = getattr(error, "code", None)
    if callable(code) and any(own.__module__.startswith("grpc") for own in kind.__mro__):
        return getattr(code(), "name", "") in _OF_GRPC
    return isinstance(error, ConnectionError | TimeoutError)


def _is_passing_of_database(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    text = str(error.orig)
    if type(error.orig).__module__.startswith("sqlite3"):
        return bool(_OF_SQLITE.search(text))
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if state:
        return str(state).startswith(_PASSING_STATES)
    return isinstance(error, OperationalError | InterfaceError) and not _NO_USE.search(text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _words(error: BaseException) -> str:
    last = list(_chain(error))[-1]
    return next(iter(str(last).strip().splitlines()), "") or type(last).__name__
