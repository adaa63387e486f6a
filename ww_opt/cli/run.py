"""``ww-opt run``: wires study, tracking and report together."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ww_opt.cli.ending import close, draw, finish, write_page
from ww_opt.cli.exit_codes import FAILED, INTERRUPTED
from ww_opt.cli.going_on import going_on
from ww_opt.cli.mlflow import SPOOL
from ww_opt.cli.stored import STORAGE_VARIABLE, place_of

if TYPE_CHECKING:
    import optuna

    from ww_opt.study.study import Observer, Study
    from ww_opt.study.workers import Job
    from ww_opt.tracking.mlflow import MLflowCallback

__all__ = ["run"]

_OF_THE_STUDY = ("n_trials", "timeout", "timeout_per_trial", "seed", "start", "carry_over", "changed_space")


@click.command()
@click.argument("study_file", metavar="STUDY")
@click.option("--n-trials", type=int, help="Trials in all, those of earlier runs included. Default: the study's own.")
@click.option("--timeout", type=float, help="Seconds after which no new trial starts. Default: the study's own.")
@click.option(
    "--timeout-per-trial",
    type=float,
    help="Seconds after which a trial fails. Default: the study's own, which has none.",
)
@click.option(
    "--storage",
    envvar=STORAGE_VARIABLE,
    help="Optuna storage: a database URL, redis://, grpc:// or a file NAME.journal. Default: WW_OPT_STORAGE, else a "
    "file in --directory: sqlite, or with several workers a journal.",
)
@click.option("--study-name", help="Name in the storage. An existing one is gone on with. Default: the study's own.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that share the trials.")
@click.option(
    "--catch/--no-catch",
    default=None,
    help="Go on after a trial that raises, unless it is the first or the third in a row. Default: the study's own, "
    "which does unless it says otherwise.",
)
@click.option("--seed", type=int, help="Seed of the sampler. Default: the study's own.")
@click.option(
    "--start/--no-start",
    default=None,
    help="Try the present configuration first: what optimizer and model have as they are. Default: the study's own, "
    "which does unless it says otherwise.",
)
@click.option(
    "--from",
    "carry_over",
    metavar="NAME[@STORAGE]",
    help="Let a new study try the best settings of an earlier one early, fitted to its own layers. STORAGE as for "
    "--storage; default: the same. Default: the study's own.",
)
@click.option(
    "--changed-space",
    type=click.Choice(["refuse", "rescale"]),
    help="Where a stored study was run in other bounds: refuse, or go on with the new ones. Default: the study's own.",
)
@click.option(
    "--tracking-uri", help="MLflow server or database. Default: MLFLOW_TRACKING_URI, else sqlite in --directory."
)
@click.option("--experiment", default="ww_opt", show_default=True, help="MLflow experiment; made where there is none.")
@click.option(
    "--log-weights",
    "weights_mb",
    type=float,
    default=100.0,
    show_default=True,
    help="Send the best weights to MLflow where they are no larger than so many MB; 0: never.",
)
@click.option("--register", default="", metavar="NAME", help="Make the pick a version of this registered model.")
@click.option("--no-mlflow", is_flag=True, help="Log nothing to MLflow.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where files go."
)
def run(study_file: str, **options: Any) -> None:
    """Run a study, or go on with it where it stopped.

    STUDY is a file or a module that defines STUDY = ww_opt.Study(...): studies/digits.py, my_package.my_study, or
    path/to/file.py:OTHER_NAME. Ctrl-C stops cleanly; the same command goes on.
    """
    import optuna

    from ww_opt.study.budget import remember_budget
    from ww_opt.study.faults import is_bad_input
    from ww_opt.study.study import open_study
    from ww_opt.study.workers import WorkerFailed

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are told below, once
    signal.signal(signal.SIGTERM, _interrupt)
    study, job, tracker = _prepared(study_file, options)
    host = open_study(study, job.storage)
    remember_budget(host, study.n_trials)
    go_on = going_on()
    try:
        _run(study, host, job, options["workers"], tracker)
    except KeyboardInterrupt:
        _tell_stopped()
        draw(host, job.directory)
        write_page(study, host, job)
        finish(tracker, host)
        sys.exit(INTERRUPTED)
    except Exception as error:
        finish(tracker, host)
        if is_bad_input(error):
            raise
        is_worker = isinstance(error, WorkerFailed)
        click.echo(str(error) if is_worker else traceback.format_exc(), err=True)
        what = "The workers died" if is_worker and "died" in str(error) else "A trial failed"
        mended = f"{what}; what was done is recorded. To go on once the fault is mended:"
        click.echo(f"{mended}\n  {go_on}", err=True)
        sys.exit(FAILED)
    sys.exit(close(study, host, job, tracker))


def _prepared(study_file: str, options: dict[str, Any]) -> tuple[Study, Job, MLflowCallback | None]:
    """Check all that can be checked before anything is written."""
    from ww_opt.study.workers import Job

    if options["workers"] < 1:
        raise ValueError(f"`workers >= 1` must hold, but got workers={options['workers']}.")
    given = {
        name: options[name]
        for name in ("n_trials", "timeout", "timeout_per_trial", "seed", "start", "carry_over", "changed_space")
    }
    changes = {key: value for key, value in {**given, "name": options["study_name"]}.items() if value is not None}
    if options["catch"] is not None:
        changes["catch"] = (Exception,) if options["catch"] else ()
    directory: Path = options["directory"]
    job = Job(study_file, "", directory, changes)
    study = job.study()
    job = replace(job, storage=place_of(options["storage"], directory, study.name, options["workers"]))
    tracker = None if options["no_mlflow"] else _tracker(options, directory, study.name)
    directory.mkdir(parents=True, exist_ok=True)
    return study, replace(job, directory=directory / study.name), tracker


def _tracker(options: dict[str, Any], directory: Path, name: str) -> MLflowCallback:
    from ww_opt.study.weights_folder import weights_file
    from ww_opt.tracking.mlflow import MLflowCallback, Weights

    default = f"sqlite:///{(directory / 'mlflow.db').resolve().as_posix()}"
    uri = options["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI") or default
    weights = Weights(partial(weights_file, directory / name), options["weights_mb"] * 1e6, options["register"])
    tell = partial(click.echo, err=True)
    return MLflowCallback(uri, options["experiment"], spool=directory / SPOOL, weights=weights, tell=tell)


def _run(study: Study, host: optuna.Study, job: Job, n_workers: int, tracker: MLflowCallback | None) -> None:
    from ww_opt.reporting.progress import Progress
    from ww_opt.search.starting import carried_of
    from ww_opt.study.closing import too_many_parameters
    from ww_opt.study.study import n_finished
    from ww_opt.study.study import run as run_here
    from ww_opt.study.workers import run_workers

    done = n_finished(host)
    if done:
        left = "going on from there" if done < study.n_trials else "more with a higher --n-trials"
        click.echo(f"Study {study.name!r} has {done} of {study.n_trials} trials already; {left}.", err=True)
    elif carried := carried_of(host):
        click.echo(carried.told, err=True)
    if many := too_many_parameters(study.objective, study.n_trials):
        click.echo(many, err=True)
    if tracker is not None and tracker.prepare() is None:
        tracker.sync(host, timeout=0.0)
    n_pruned = sum(trial.state.name == "PRUNED" for trial in host.get_trials(deepcopy=False))
    with Progress(study.name, study.n_trials, n_done=done, n_pruned=n_pruned) as progress:
        observers: list[Observer] = [progress, *([tracker] if tracker is not None else [])]
        # what hangs outside of Python can only be killed, and that from another process
        if n_workers > 1 or study.timeout_per_trial is not None:
            ended = run_workers(job, host, n_workers, observers)
        else:
            ended = run_here(study, host, job.directory, observers, on_stuck=_tell_stopped)
    if ended:
        click.echo(f"{ended} {n_finished(host)} of {study.n_trials} trials were run.", err=True)


def _tell_stopped() -> None:
    click.echo(f"\nStopped; what was done is recorded. To go on:\n  {going_on()}", err=True)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
