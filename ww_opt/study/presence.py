"""Which process this is, and whether another one is still there: asked of the machine where it is ours."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Process", "is_gone", "place", "place_name", "this_process"]


@dataclass(frozen=True)
class Process:
    """One process of one machine: its number is given again, the moment it started is not.

    Attributes:
        place: see :func:`place`.
        pid: its number there.
        started: when it started, in the machine's own words; empty where those cannot be read.
    """

    place: str
    pid: int
    started: str


@cache
def place() -> str:
    """Name the machine as far as its process numbers reach: host, boot, and the container's own numbering."""
    boot, numbering = "", ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        pass
    return f"{socket.gethostname()}|{boot}|{numbering}"


def place_name() -> str:
    """Return a short name of :func:`place` for files: letters and digits."""
    return hashlib.sha256(place().encode()).hexdigest()[:12]


def this_process() -> Process:
    """Return this process. It is asked anew each time, for a process may have been forked."""
    pid = os.getpid()
    return Process(place(), pid, _stat(pid)[1])


def is_gone(process: Process) -> bool | None:
    """Whether a process has ended; ``None`` where this machine cannot tell, for it is another one's."""
    if process.place != place() or sys.platform == "win32":  # where signal 0 is one that ends processes
        return None
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    state, started = _stat(process.pid)
    if state == "Z":  # killed, and its parent has not looked yet
        return True
    return bool(started and process.started) and started != process.started


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process; empty where they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
