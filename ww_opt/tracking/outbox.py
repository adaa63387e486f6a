"""From the spool to MLflow: one thread takes records out of the files and writes them, as far as MLflow is well."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ww_opt.tracking.background import Background, Breaker
from ww_opt.tracking.documents import Document, Ended, from_json, to_json
from ww_opt.tracking.runs import Runs
from ww_opt.tracking.secrets import scrubbed
from ww_opt.tracking.spool import Place, Spool, decoded, encoded, files
from ww_opt.tracking.stores import Trouble, trouble
from ww_opt.tracking.writing import write

__all__ = ["Outbox", "Target"]

_VERSION = 1
_PATIENCE = 3  # failures in a row before nothing is tried for a while
_PAUSE = 20.0
_RACES = ("UNIQUE constraint", "No tag with name")
_MAX_MEMORY = 64 * 2**20


@dataclass(frozen=True)
class Target:
    """Where records go."""

    uri: str
    experiment: str
    artifact_location: str | None = None

    def header(self) -> dict[str, Any]:
        """First line of a spool."""
        own = {"uri": self.uri, "experiment": self.experiment, "artifact_location": self.artifact_location}
        shown = {name: scrubbed(value) if value else value for name, value in own.items()}
        return {"kind": "header", "version": _VERSION, **shown}


@dataclass(frozen=True)
class _Waiting:
    """A record on its way: in a file, or, where the disk took none, in memory."""

    spool: Spool | None
    place: Place
    line: bytes = b""


class Outbox:
    """Takes documents at once and sends them in the background.

    Args:
        target: where they go.
        folder: of the spool files.
        say: told in a sentence what went wrong, once each; must not raise.
        max_bytes: of all files in the folder.
    """

    def __init__(self, target: Target, folder: Path, say: Callable[[str, Trouble | None], object], max_bytes: int):
        self.runs = Runs(target.uri, target.experiment, target.artifact_location)
        self.background = Background(self._failed)
        self.breaker = Breaker(_PATIENCE, _PAUSE, self._failed)
        self.known: set[tuple[str, int]] = set()  # study and trial, of all that MLflow has or that waits
        self.trouble: Trouble | None = None
        self._target = target
        self._folder = folder
        self._say = say
        self._spool = Spool(folder, target.header(), max_bytes)
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._n_let_go = 0
        self._pid = os.getpid()

    def __len__(self) -> int:
        """How many records are not in MLflow yet, those included that :meth:`close` let go."""
        return len(self._waiting) + self._n_let_go

    @property
    def n_lost_at_exit(self) -> int:
        """How many of them no file has."""
        return sum(waiting.spool is None for waiting in list(self._waiting))

    def put(self, document: Document) -> None:
        """Keep a document on this machine, and send it when the thread comes to it."""
        if isinstance(document, Ended):
            self.known.add((document.parent.id, document.trial))
        value = to_json(document)
        with self._lock:
            try:
                waiting = _Waiting(self._spool, self._spool.append(value))
            except OSError as error:
                line = encoded(value)
                if sum(len(own.line) for own in self._waiting) + len(line) > _MAX_MEMORY:
                    return
                waiting = _Waiting(None, Place(0, 0), line)
                what = error.strerror or str(error)
                self._say(
                    f"Records for MLflow could not be kept in {self._folder}: {what}. The study goes on; they wait in "
                    "memory, and are lost where MLflow does not take them before the end. Free some space.",
                    None,
                )
            self._waiting.append(waiting)
        if os.getpid() == self._pid:  # MLflow's connections do not survive a fork: there the file has to do
            self.background.submit(self.send)

    def adopt(self, header: Mapping[str, Any] | None = None) -> None:
        """Queue what other processes left. Runs in the thread, or before it.

        Args:
            header: of the files to take; default: those for the same target.
        """
        wanted = self._target.header() if header is None else header
        self._n_let_go = 0
        for path in files(self._folder):
            if path != self._spool.path and (spool := Spool.adopted(path)) is not None:
                if spool.header == wanted:
                    self._take(spool)
                else:
                    spool.close(remove=False)

    def _take(self, spool: Spool) -> None:
        found, n_damaged = [], 0
        for place, value in spool.records():
            if value is None:
                n_damaged += 1
                continue
            if value.get("kind") == "trial":
                self.known.add((value["parent"]["id"], value["trial"]))
            found.append(_Waiting(spool, place))
        if n_damaged:
            self._say(f"{n_damaged} damaged record{'s' * (n_damaged > 1)} in {spool.path} cannot be read.", None)
        if found:
            self._waiting.extend(found)
        else:
            spool.close(remove=True)

    def send(self) -> None:
        """Send what waits, each once, unless MLflow is unwell. Runs in the thread."""
        self._spool.sync()
        for _ in range(len(self._waiting)):
            with self._lock:
                waiting = self._waiting[0] if self._waiting else None
            if waiting is None or self.breaker.is_open:
                return
            is_done = self.breaker.attempt(partial(_write, self.runs, waiting))
            with self._lock:
                if not self._waiting or self._waiting[0] is not waiting:
                    return  # it was let go meanwhile: who takes it up finds that it is there
                self._waiting.popleft()
                if not is_done:
                    self._waiting.append(waiting)  # others must not wait for one that is refused
                elif waiting.spool is not None and all(own.spool is not waiting.spool for own in self._waiting):
                    waiting.spool.clear() if waiting.spool is self._spool else waiting.spool.close(remove=True)

    def flush(self, timeout: float) -> int:
        """Send for at most ``timeout`` seconds, or until MLflow is found unwell; tell how many records are left."""
        deadline = time.monotonic() + timeout

        def work() -> None:
            self.breaker.try_again()
            self.trouble = None
            if self._n_let_go:
                self.adopt()
            while self._waiting and not self.breaker.is_open and time.monotonic() < deadline:
                self.send()

        self.background.submit(work)
        self.background.wait(timeout)
        return len(self)

    def close(self) -> None:
        """Let go of all files, so that others may send what is in them; once more try to keep what only memory has."""
        with self._lock:
            for waiting in [own for own in self._waiting if own.spool is None]:
                try:
                    kept = _Waiting(self._spool, self._spool.append(decoded(waiting.line) or {}))
                except OSError:
                    break
                self._waiting.remove(waiting)
                self._waiting.append(kept)
            in_files = [own for own in self._waiting if own.spool is not None]
            for waiting in in_files:
                self._waiting.remove(waiting)
            self._n_let_go += len(in_files)
            left = {id(own.spool): own.spool for own in in_files}
            for spool in left.values():
                assert spool is not None
                spool.close(remove=False)
            if id(self._spool) not in left:
                self._spool.close(remove=True)

    def _failed(self, error: Exception) -> bool:
        self.trouble = trouble(error, self._target.uri, self._target.experiment)
        self._say(f"MLflow could not be written, since {self.trouble.what}.", self.trouble)
        return self.trouble.is_passing


def _write(runs: Runs, waiting: _Waiting) -> None:
    value = decoded(waiting.line) if waiting.spool is None else waiting.spool.read(waiting.place)
    if value is not None:  # damaged since it was written: nothing can be done
        try:
            write(runs, from_json(value))
        except Exception as error:
            if not any(words in str(error) for words in _RACES):
                raise
            write(runs, from_json(value))  # another process wrote or removed the same just now: this time it is seen
