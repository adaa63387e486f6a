"""What processes of one machine do one after the other: look at a study's budget, and take a trial."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["turn"]

_KERNELS: Any = importlib.import_module("fcntl") if os.name == "posix" else None


@contextlib.contextmanager
def turn(name: str) -> Iterator[None]:
    """Wait until nobody else on this machine is inside under the same name; a killed process is out at once.

    Where the machine has no such locks, nobody waits: what is done inside must bear that, as it must between machines.

    Args:
        name: any text.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    digest = hashlib.sha256(name.encode()).hexdigest()[:24]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, AttributeError):
            file = Path(tempfile.gettempdir()) / f"ww_opt-{user}-{digest}.turn"
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
            stack.callback(os.close, descriptor)
            _KERNELS.flock(descriptor, _KERNELS.LOCK_EX)
        yield
