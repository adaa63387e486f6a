"""``ww-opt mlflow``: records that wait for MLflow."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from ww_opt.cli.exit_codes import FAILED

__all__ = ["SPOOL", "mlflow"]

SPOOL = "mlflow-spool"
"""Folder of the records that wait, below the one of `ww-opt run`."""


@click.group()
def mlflow() -> None:
    """Send to MLflow what could not be sent while a study ran."""


@mlflow.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs") / SPOOL, metavar="[FOLDER]")
@click.option("--tracking-uri", help="MLflow server or database. Default: where the records were to go.")
@click.option("--experiment", help="MLflow experiment; made where there is none. Default: as above.")
@click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds after which it gives up.")
def sync(folder: Path, tracking_uri: str | None, experiment: str | None, timeout: float) -> None:
    """Send the records that wait in FOLDER, by default runs/mlflow-spool. No study and no storage are needed.

    What MLflow has already stays as it is: it can be called at any time, and again. Exit code 1: some are left.
    """
    if not timeout > 0:
        raise ValueError(f"`timeout > 0` must hold, but got timeout={timeout}.")
    if not folder.is_dir():
        click.echo(f"Nothing waits in {folder}.")
        return
    from ww_opt.tracking.outbox import Target
    from ww_opt.tracking.replay import headers, replay
    from ww_opt.tracking.secrets import scrubbed

    n_left = n_sent = 0
    for header in headers(folder):
        uri = _address(header, tracking_uri, folder)
        name = experiment or str(header.get("experiment") or "ww_opt")
        target = Target(uri, name, None if tracking_uri else header.get("artifact_location"))
        found = replay(folder, header, target, timeout, lambda sentence: click.echo(sentence, err=True))
        n_sent, n_left = n_sent + found.n_sent, n_left + found.n_left
        if found.n_sent:
            click.echo(f"{_records(found.n_sent)} sent to {scrubbed(uri)}, experiment {name!r}.")
        if found.trouble is not None:
            wait = "call this again later" if found.trouble.is_passing else found.trouble.remedy
            click.echo(f"{_records(found.n_left)} left, since {found.trouble.what}: {wait}.", err=True)
    busy = f"; {_files(busy)} a process that runs holds" if (busy := len(list(folder.glob("*.jsonl")))) else ""
    if not n_left and (busy or not n_sent):
        click.echo(f"Nothing {'else ' * bool(n_sent)}waits in {folder}{busy}.")
    if n_left:
        sys.exit(FAILED)


def _address(header: Mapping[str, Any], given: str | None, folder: Path) -> str:
    """Where records go: passwords are in no file, so one that was in the address is asked for."""
    from ww_opt.tracking.secrets import HIDDEN, scrubbed

    uri = given or str(header.get("uri", ""))
    if not uri:
        raise ValueError(f"A spool must say where its records go, but one in {folder} is damaged: give --tracking-uri.")
    if HIDDEN not in uri:
        return uri
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    if scrubbed(own) == uri:
        return own
    if uri.startswith("http") and ("MLFLOW_TRACKING_USERNAME" in os.environ or "MLFLOW_TRACKING_TOKEN" in os.environ):
        return uri.replace(f"{HIDDEN}@", "")
    if not sys.stdin.isatty():
        raise ValueError(
            f"The password for {uri} must be known, and it is kept in no file: set MLFLOW_TRACKING_URI to the whole "
            "address, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server."
        )
    host = urlsplit(uri).hostname
    login = click.prompt(f"USER:PASSWORD for {host} (not shown)", hide_input=True, err=True)
    return uri.replace(HIDDEN, login, 1)


def _records(n: int) -> str:
    return f"{n} record{'s' * (n != 1)}"


def _files(n: int) -> str:
    return f"{n} file{'s' * (n != 1)}"
