"""``ww-opt worker`` and ``ww-opt storage-proxy``: one study on many machines."""

from __future__ import annotations

import signal
import sys
import traceback
import uuid
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ww_opt.cli.exit_codes import FAILED, INTERRUPTED
from ww_opt.cli.going_on import going_on
from ww_opt.cli.stored import STORAGE_VARIABLE

__all__ = ["storage_proxy", "worker"]

_HOST, _PORT = "localhost", 13000


@click.command()
@click.argument("study_file", metavar="STUDY")
@click.option(
    "--storage", envvar=STORAGE_VARIABLE, required=True, help="The storage that all workers share: see `run`."
)
@click.option("--study-name", help="Name in the storage. Default: the study's own.")
@click.option(
    "--n-trials", type=int, help="Trials of all workers. Default: what `ww-opt run` said, else the study's own."
)
@click.option("--timeout", type=float, help="Seconds after which no new trial starts. Default: the study's own.")
@click.option("--timeout-per-trial", type=float, help="Seconds after which a trial fails. Default: the study's own.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes on this machine.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where weights go."
)
def worker(study_file: str, storage: str, study_name: str | None, **options: Any) -> None:
    """Take trials of a study until none is left, on any machine that reaches its storage.

    Start as many as you like, before or beside `ww-opt run`, which tells at the end what was found. One that is killed
    loses nothing: its trial is done again by another.
    """
    import optuna

    from ww_opt.study.budget import n_finished, remembered_budget
    from ww_opt.study.faults import is_bad_input
    from ww_opt.study.study import open_study, run
    from ww_opt.study.workers import Job, run_workers

    if options["workers"] < 1:
        raise ValueError(f"`workers >= 1` must hold, but got workers={options['workers']}.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    signal.signal(signal.SIGTERM, _interrupt)
    given = {"name": study_name, **{key: options[key] for key in ("n_trials", "timeout", "timeout_per_trial")}}
    changes = {key: value for key, value in given.items() if value is not None}
    job = Job(study_file, storage, options["directory"], changes)
    study = job.study()
    host = open_study(study, storage, worker=uuid.uuid4().int % 2**32)
    if options["n_trials"] is None and (known := remembered_budget(host)) is not None:
        job = replace(job, changes={**changes, "n_trials": known})
        study = job.study()
    job = replace(job, directory=options["directory"] / study.name)
    options["directory"].mkdir(parents=True, exist_ok=True)
    try:
        if options["workers"] > 1 or study.timeout_per_trial is not None:
            ended = run_workers(job, host, options["workers"])
        else:
            ended = run(study, host, job.directory, on_stuck=_tell_stopped)
    except KeyboardInterrupt:
        _tell_stopped()
        sys.exit(INTERRUPTED)
    except Exception as error:
        if is_bad_input(error):
            raise
        click.echo(f"{traceback.format_exc()}\nTo go on once the fault is mended:\n  {going_on()}", err=True)
        sys.exit(FAILED)
    click.echo(f"{ended} {n_finished(host)} of {study.n_trials} trials of {study.name!r} are finished.".strip())


@click.command("storage-proxy")
@click.option(
    "--storage", envvar=STORAGE_VARIABLE, required=True, help="The database behind it: postgresql://, mysql://."
)
@click.option("--host", default=_HOST, show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=int, default=_PORT, show_default=True, help="Port to listen on.")
def storage_proxy(storage: str, host: str, port: int) -> None:
    """Stand between many workers and a database, which then has one client: `--storage grpc://HOST:PORT` for workers.

    Worth it beyond some hundred workers. Nobody is asked for a password and nothing is encrypted: keep the port inside
    your network.
    """
    import warnings

    import optuna

    from ww_opt.study.remote import refusal_of_proxy
    from ww_opt.study.secrets import shown
    from ww_opt.study.storages import open_behind_proxy

    if why := refusal_of_proxy(storage):
        raise ValueError(f"--storage must be a database, but got {shown(storage)}: {why}.")
    signal.signal(signal.SIGTERM, _interrupt)
    opened = open_behind_proxy(storage)
    click.echo(f"Workers reach {shown(storage)} by --storage grpc://{host}:{port}. Ctrl-C ends it.", err=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.run_grpc_proxy_server(opened, host=host, port=port)


def _tell_stopped() -> None:
    click.echo(f"\nStopped; what was done is recorded. To go on:\n  {going_on()}", err=True)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
