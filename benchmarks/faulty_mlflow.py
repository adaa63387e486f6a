"""MLflow's own server on SQLite, with faults at hand: ``python -m benchmarks.faulty_mlflow FOLDER``.

It prints its address, and then takes the name of a fault a line: ``none``, ``down`` (connections are refused),
``errors`` (30 % of the calls are answered with 500, half of these after they were done), ``unheard`` (every second
call that makes something new is done and answered with 500), ``hang`` (no call is ever answered), ``slow`` (each takes
two seconds more).
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

__all__ = ["FAULTS", "FaultyMLflow"]

FAULTS = ("none", "down", "errors", "unheard", "hang", "slow")
_SHARE = 0.3

Start = Callable[..., Any]


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class FaultyMLflow:
    """The server, in threads of this process. Of MLflow's making, one process can have but one.

    Args:
        folder: where database and artifacts lie.
        seconds: how much slower ``slow`` is.
    """

    def __init__(self, folder: Path, seconds: float = 2.0) -> None:
        import mlflow
        from mlflow.server import handlers
        from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR as ROOT
        from mlflow.server.constants import ARTIFACTS_DESTINATION_ENV_VAR as FILES
        from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR as STORE
        from mlflow.server.constants import SERVE_ARTIFACTS_ENV_VAR as SERVE

        files = (folder / "files").resolve()
        files.mkdir(parents=True, exist_ok=True)
        self.store = f"sqlite:///{(folder / 'server.db').resolve().as_posix()}"
        os.environ |= {STORE: self.store, FILES: files.as_uri(), ROOT: "mlflow-artifacts:/", SERVE: "true"}
        with warnings.catch_warnings():  # Starlette's, of what MLflow uses of it
            warnings.simplefilter("ignore")
            import_module("mlflow.server.fastapi_app")  # else the first search does, with the warning
            from mlflow.server import app  # looks at the environment

        vars(handlers).update(_tracking_store=None, _model_registry_store=None, _artifact_repo=None)
        handlers._get_tracking_store()
        handlers._get_model_registry_store()
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # they make their stores those of the whole process
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        os.environ.pop("MLFLOW_REGISTRY_URI", None)
        self.seconds = seconds
        self.calls: list[str] = []
        self._app = app
        self._random = random.Random(0)
        self._fault = "none"
        self._n_made = 0
        self._release = threading.Event()
        self._server: BaseWSGIServer | None = None
        self._port = 0
        self.fault("none")

    @property
    def address(self) -> str:
        """Of the server, also while it is down."""
        return f"http://127.0.0.1:{self._port}"

    def fault(self, name: str) -> None:
        """Have one fault, or ``none``, from now on."""
        self._fault = name
        self._release.set()  # what hangs goes on
        self._release = threading.Event()
        if name == "down":
            self.stop()
        elif self._server is None:
            self._server = make_server("127.0.0.1", self._port, self, threaded=True, request_handler=_Silent)
            self._port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Answer one call, as WSGI has it."""
        self.calls.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self._fault == "slow":
            time.sleep(self.seconds)
        if self._fault == "hang":
            self._release.wait()
            return _unwell(start)
        is_made = environ["PATH_INFO"].endswith("create")
        self._n_made += is_made
        is_unheard = self._fault == "unheard" and is_made and self._n_made % 2 == 1
        if is_unheard or (self._fault == "errors" and self._random.random() < _SHARE):
            if is_unheard or self._random.random() < 0.5:  # it is done, but nobody hears of it
                b"".join(self._app(environ, _unheard))
            return _unwell(start)
        return self._app(environ, start)


def _unheard(*_: Any) -> Callable[[bytes], object]:
    return len


def _unwell(start: Start) -> Iterable[bytes]:
    start("500 Internal Server Error", [("Content-Length", "0")])
    return [b""]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Serve until the input ends."""
    server = FaultyMLflow(folder)
    click.echo(server.address)
    for line in sys.stdin:
        server.fault(line.strip())
        click.echo(line.strip())


if __name__ == "__main__":
    main()
