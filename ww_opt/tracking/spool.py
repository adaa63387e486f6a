"""Records on their way to MLflow: first of all they stand in a file of this machine.

A file belongs to one process, which holds it locked; it begins with a header and has one record a line::

    1f2e3d4c {"kind": "trial", ...}

The mark before a record is the CRC-32 of its bytes, so that a line that a kill or a full disk cut short is told from a
whole one, and costs no other. What is in MLflow is cut off again, so a file is as long as what waits.

A record stands in the system's memory of the file when :meth:`Spool.append` returns, which a killed process does not
take with it; :meth:`Spool.sync` brings it to the disk, which the writing thread does before it sends anything: a power
cut costs what was written since, a fraction of a second.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ww_opt.tracking.secrets import scrubbed

try:
    import fcntl
except ImportError:  # Windows: two processes may replay one file, which costs time and no record
    fcntl = None  # type: ignore[assignment]

__all__ = ["MAX_BYTES", "Place", "Spool", "decoded", "encoded", "files", "header_of"]

MAX_BYTES = 512 * 2**20
"""Of all files in a folder. A trial of 100 layers and 20 looks takes about half of a million."""
_SUFFIX = ".jsonl"


class Place(NamedTuple):
    """Where a record stands in its file, in bytes."""

    start: int
    length: int


def encoded(record: Mapping[str, Any]) -> bytes:
    """One line, without passwords: a checksum, JSON in ASCII, a newline. NaN is refused."""
    body = scrubbed(json.dumps(record, allow_nan=False, separators=(",", ":"))).encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decoded(line: bytes) -> dict[str, Any] | None:
    """The record of a line; ``None`` where it is damaged."""
    mark, _, body = line.removesuffix(b"\n").partition(b" ")
    if mark != b"%08x" % zlib.crc32(body):
        return None
    found: dict[str, Any] = json.loads(body)
    return found


def files(folder: Path) -> list[Path]:
    """All spool files of a folder, the oldest first."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a file and its length in bytes; an empty one and 0 where it is damaged."""
    with path.open("rb") as file:
        first = file.readline()
    found = decoded(first)
    return (found, len(first)) if found is not None and found.get("kind") == "header" else ({}, 0)


class Spool:
    """A file of records that one process holds. Thread-safe.

    Args:
        folder: where the file is made, at the first record.
        header: its first line.
        max_bytes: of all files in the folder together; beyond it nothing is taken.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], max_bytes: int = MAX_BYTES) -> None:
        self.header = dict(header)
        self.path = _fresh(folder)
        self._max_bytes = max_bytes
        self._others = 0
        self._first = self._end = 0
        self._file: io.FileIO | None = None
        self._lock = threading.Lock()

    @classmethod
    def adopted(cls, path: Path) -> Spool | None:
        """Take over what another process left; ``None`` where it still holds it, or another took it first."""
        try:
            file = _opened(path)
        except FileNotFoundError:
            return None
        if not _is_locked(file) or not os.fstat(file.fileno()).st_nlink:
            _closed(file)
            return None
        own = cls(path.parent, {})
        own.path, own._file = path, file
        own.header, own._first = header_of(path)
        own._end = os.fstat(file.fileno()).st_size
        return own

    def __del__(self) -> None:
        if (file := getattr(self, "_file", None)) is not None:
            _closed(file)  # the file stays, for who comes next

    def append(self, record: Mapping[str, Any]) -> Place:
        """Take a record, which a kill of this process does not undo.

        Raises:
            OSError: the disk is full, the folder cannot be written, or it holds ``max_bytes`` already; what stood there
                before still does.
        """
        line = encoded(record)
        with self._lock:
            file = self._file or self._made()
            if self._others + self._end + len(line) > self._max_bytes:
                raise OSError(errno.EDQUOT, f"{self._max_bytes / 2**20:g} MB wait in it already", str(self.path.parent))
            try:
                _write(file, self._end, line)
            except OSError:
                with contextlib.suppress(OSError):  # the next record overwrites what is left of this one
                    file.truncate(self._end)
                raise
            place = Place(self._end, len(line))
            self._end += len(line)
            return place

    def read(self, place: Place) -> dict[str, Any] | None:
        """The record at a place; ``None`` where it is damaged."""
        with self._lock:
            if self._file is None:
                return None
            self._file.seek(place.start)
            return decoded(self._file.read(place.length))

    def records(self) -> Iterator[tuple[Place, dict[str, Any] | None]]:
        """All records behind the header, as they lie on the disk; ``None`` for a damaged one."""
        start = self._first
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                yield Place(start, len(line)), decoded(line)
                start += len(line)

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        file = self._file  # without the lock: who appends must not wait for a disk
        if file is not None:
            with contextlib.suppress(OSError, ValueError):
                os.fsync(file.fileno())

    def clear(self) -> None:
        """Cut off all records: they are in MLflow."""
        with self._lock:
            if self._file is not None:
                self._file.truncate(self._first)
                self._end = self._first

    def close(self, *, remove: bool) -> None:
        """Let the file go, or remove it, and its folder where that is empty then; the next record makes a new file."""
        with self._lock:
            if self._file is None:
                return
            if remove:
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
                    self.path.parent.rmdir()
            _closed(self._file)
            self._file, self._first, self._end = None, 0, 0
            self.path = _fresh(self.path.parent)

    def _made(self) -> io.FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._others = sum(_size(other) for other in files(self.path.parent) if other != self.path)
        file = _opened(self.path, os.O_CREAT | os.O_EXCL)
        try:
            _is_locked(file)
            header = encoded(self.header)
            _write(file, 0, header)
        except OSError:
            _closed(file)
            self.path.unlink(missing_ok=True)
            raise
        self._first = self._end = len(header)
        self._file = file
        return file


def _opened(path: Path, flags: int = 0) -> io.FileIO:
    """Open a file to read and write; it is not the object's to close, which would complain where it is collected."""
    return io.FileIO(os.open(path, os.O_RDWR | flags | getattr(os, "O_BINARY", 0), 0o600), "r+", closefd=False)


def _closed(file: io.FileIO) -> None:
    if not file.closed:
        descriptor = file.fileno()
        file.close()
        os.close(descriptor)


def _fresh(folder: Path) -> Path:
    return folder / f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}{_SUFFIX}"


def _write(file: io.FileIO, start: int, line: bytes) -> None:
    file.seek(start)
    left = memoryview(line)
    while left:  # a disk that is nearly full takes a part
        left = left[file.write(left) :]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_locked(file: io.FileIO) -> bool:
    """Lock a file for this process until it is closed; ``False`` where another one has."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):  # no `fcntl`, or a file system without locks
        return True
    return True
