"""A real PostgreSQL for tests, started by hand in a folder of its own; skipped where none is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

__all__ = ["Server"]


class Server:
    """A server on a free port of this machine, with an empty database; ``url`` is where Optuna finds it."""

    def __init__(self) -> None:
        pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed: pip install '.[dist]'")
        self._bin = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(self._folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._call("initdb", "--auth=trust", "--username=me", "--encoding=UTF8", "--no-sync")
        self.start()
        self.url = f"postgresql+psycopg://me:secret@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._call("pg_ctl", "-l", str(self._folder / "log"), "-o", options, "-w", "start")

    def stop(self, *, mode: str = "immediate") -> None:
        """Stop it; ``immediate`` is like a power cut."""
        self._call("pg_ctl", "-m", mode, "-w", "stop")

    def close(self) -> None:
        """Stop it and remove what it wrote."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), "-D", str(self._folder / "data"), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        subprocess.run(command, check=True, env=environment, cwd=self._folder, stdout=subprocess.DEVNULL)


def _programs() -> Path:
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]
    if own := shutil.which("initdb"):
        found.insert(0, Path(own))
    if not found:
        pytest.skip("no PostgreSQL is installed: apt-get install postgresql")
    return found[0].parent
