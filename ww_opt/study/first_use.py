"""Shared files at their first use: made aside and moved into place, so that there is never half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

__all__ = ["database_file", "place_new", "place_whole"]

_ASIDE = ".being-made-"
_STALE_SECONDS = 600.0


def database_file(url: str) -> Path | None:
    """Return the file of an SQLite URL; ``None`` for what is no SQLite, in memory, or a URI of SQLite's own."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    name = parsed.database
    if parsed.get_backend_name() != "sqlite" or name in (None, "", ":memory:") or str(name).startswith("file:"):
        return None
    return Path(str(name))


def place_whole(target: Path, make: Callable[[Path], object]) -> bool:
    """Make a file under another name in the same folder, and move it into place once it is whole.

    Of several processes that come at once one wins, and the others take its file. An empty file counts as none. What
    a killed process left aside is removed after ten minutes.

    Args:
        target: where the file shall be; its folder must exist.
        make: called with the path to make it under.

    Returns:
        Whether this call made the file; ``False`` where it was there.

    Raises:
        OSError: the folder cannot be written.
        Exception: what ``make`` raises.
    """
    if target.exists() and (not target.is_file() or target.stat().st_size):
        return False
    _tidy(target.parent)
    aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=target.parent))
    try:
        own = aside / target.name
        make(own)
        if target.exists() and not target.stat().st_size:
            own.replace(target)
            return True
        return place_new(own, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def place_new(own: Path, target: Path) -> bool:
    """Move a file to where none is yet, in one step; ``False`` where there is one, which then stays."""
    try:
        os.link(own, target)  # unlike a rename it fails where the other was quicker
    except FileExistsError:
        return False
    except OSError:  # a file system without links: between the two lines another process could come first
        if target.exists():
            return False
        own.replace(target)
    return True


def _tidy(folder: Path) -> None:
    for left in folder.glob(f"{_ASIDE}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
