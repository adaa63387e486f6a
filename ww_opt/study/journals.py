"""A journal file that bears a kill, a power cut and a full disk: what was half written is cut off before more follows.

Optuna 5.0 loads a journal whose last line is half written, and its next write makes the file unreadable for ever.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from ww_opt.study.presence import place_name

__all__ = ["Journal", "JournalLock", "NoJournal", "mend"]

_KERNELS: Any = importlib.import_module("fcntl") if os.name == "posix" else None
_LOG = logging.getLogger(__name__)
_GRACE_SECONDS = 30.0  # as in Optuna: after that a lock that does not move is taken for a dead process's
_LONGEST_SLEEP = 0.05
_BEGINNING = b'{"op_code":'
_CHUNK = 1 << 16


class NoJournal(ValueError):
    """What lies there is a text that no journal begins with; it is left as it is."""


class Journal(JournalFileBackend):
    """Optuna's journal file, mended when it is opened and before each write, and whole after a write that failed.

    Args:
        file: its path. Stock Optuna may read and write it at the same time: the lock is Optuna's.

    Raises:
        NoJournal: the file is another one's.
    """

    def __init__(self, file: Path) -> None:
        self._own_lock = JournalLock(file)
        super().__init__(str(file), self._own_lock)
        with self._own_lock:
            _mend_and_tell(file)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records in one go, and on the disk; none of them where that fails."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._own_lock:
            if not _is_whole(self._file_path):  # another process died in the middle of a write, or its disk was full
                _mend_and_tell(Path(self._file_path))
            with open(self._file_path, "ab", buffering=0) as file:
                before = file.seek(0, os.SEEK_END)
                try:
                    _write_all(file.fileno(), text)
                    os.fsync(file.fileno())
                except BaseException:
                    os.ftruncate(file.fileno(), before)
                    raise


def mend(file: Path) -> int:
    """Cut a journal back to its last newline; the lock must be held.

    Returns:
        Bytes that were cut off; 0 where it was whole.

    Raises:
        NoJournal: what would be cut is no part of a journal.
    """
    if _is_whole(file):
        return 0
    with open(file, "r+b") as journal:
        size = journal.seek(0, os.SEEK_END)
        end = _after_last_newline(journal, size)
        journal.seek(0)
        first = journal.read(len(_BEGINNING))
        # a file that is zeros alone is what a power cut leaves of a first record
        if not first.startswith(_BEGINNING[: len(first)]) and first.strip(b"\0"):
            raise NoJournal(
                f"{file} is no journal: its first line does not begin with {_BEGINNING.decode()!r}. Choose another "
                "--storage."
            )
        journal.truncate(end)
        journal.flush()
        os.fsync(journal.fileno())
    return size - end


def _mend_and_tell(file: Path) -> None:
    if cut := mend(file):
        _LOG.warning(
            "The journal %s ended in half a record, which was cut off (%d bytes): whoever wrote it was killed, or the "
            "disk was full. All records before it are there.",
            file,
            cut,
        )


def _is_whole(file: Path | str) -> bool:
    with open(file, "rb", buffering=0) as journal:
        size = journal.seek(0, os.SEEK_END)
        if not size:
            return True
        journal.seek(size - 1)
        return journal.read(1) == b"\n"


def _after_last_newline(journal: Any, size: int) -> int:
    end = size
    while end:
        start = max(end - _CHUNK, 0)
        journal.seek(start)
        found = journal.read(end - start).rfind(b"\n")
        if found >= 0:
            return int(start + found + 1)
        end = start
    return 0


def _write_all(descriptor: int, text: bytes) -> None:
    while text:
        text = text[os.write(descriptor, text) :]


class JournalLock(JournalFileOpenLock):
    """Optuna's lock on a journal, let go at once when its owner is killed.

    Two locks, one inside the other. The outer is the kernel's, on the journal itself: it queues the processes of this
    machine and dies with its owner. The inner is the file ``<journal>.lock``, which stock Optuna and other machines
    respect; it is a hard link to a file of this machine's, so whoever holds the outer lock and finds that link knows
    that its owner is dead. Any other is broken once it has not moved for 30 seconds, as Optuna does.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file.absolute()  # Optuna links to the path as it was given, from the journal's own folder
        self._lock = self._file.with_name(f"{file.name}.lock")
        self._own = self._file.with_name(f".{file.name}.{place_name()}")
        self._descriptor: int | None = None
        self._is_held = False

    def __enter__(self) -> JournalLock:
        try:
            self.acquire()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> bool:
        """Wait for the lock; what an interrupted call left behind is released first."""
        self.release()
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        has_kernels = self._take_kernels(self._descriptor)
        seen, since, pause = (0, 0), time.monotonic(), 0.001
        while not self._link(may_inherit=has_kernels):
            with contextlib.suppress(OSError):
                at = self._lock.lstat()
                if (at.st_ino, at.st_mtime_ns) != seen:
                    seen, since = (at.st_ino, at.st_mtime_ns), time.monotonic()
                elif time.monotonic() - since > _GRACE_SECONDS:
                    _LOG.warning("The lock %s has not moved for %g seconds and is broken.", self._lock, _GRACE_SECONDS)
                    aside = self._lock.with_name(f"{self._lock.name}{uuid.uuid4().hex}.rename")
                    self._lock.rename(aside)
                    aside.unlink()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_SLEEP)
        self._is_held = True
        return True

    def release(self) -> None:
        """Let go of what is held; nothing is no error, for another machine may have broken a lock that hung."""
        if self._is_held:
            self._is_held = False
            with contextlib.suppress(OSError):
                if not self._own.exists() or self._own.samefile(self._lock):
                    self._lock.unlink()
            self._own.unlink(missing_ok=True)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)  # and with it the kernel's lock

    @staticmethod
    def _take_kernels(descriptor: int) -> bool:
        try:
            _KERNELS.flock(descriptor, _KERNELS.LOCK_EX)
        except (OSError, AttributeError):  # a file system without locks, or Windows
            return False
        return True

    def _link(self, *, may_inherit: bool) -> bool:
        """Make the lock file; whether it is ours now."""
        if not self._own.exists():  # to touch it would touch the lock of one who died, which must not seem to move
            self._own.touch()
        try:
            os.link(self._own, self._lock)
        except FileExistsError:
            with contextlib.suppress(OSError):
                return may_inherit and self._own.samefile(self._lock)
            return False
        except OSError:  # a file system without links
            try:
                os.close(os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                return False
            self._own.unlink(missing_ok=True)
        return True
