"""``ww-opt run``: wires study, tracking and report together."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ww_opt.cli.exit_codes import FAILED, INTERRUPTED, NOTHING_COMPLETED

if TYPE_CHECKING:
    import optuna

    from ww_opt.study.study import Observer, Study
    from ww_opt.study.workers import Job
    from ww_opt.tracking.mlflow import MLflowCallback

T = TypeVar("T")

__all__ = ["run"]


@click.command()
@click.argument("study_file", metavar="STUDY")
@click.option("--n-trials", type=int, help="Trials in all, those of earlier runs included. Default: the study's own.")
@click.option("--timeout", type=float, help="Seconds after which no new trial starts. Default: the study's own.")
@click.option(
    "--storage", help="Optuna storage: a database URL or a file NAME.journal. Default: sqlite in --directory."
)
@click.option("--study-name", help="Name in the storage. An existing one is gone on with. Default: the study's own.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that share the trials.")
@click.option("--seed", type=int, help="Seed of the sampler. Default: the study's own.")
@click.option(
    "--tracking-uri", help="MLflow server or database. Default: MLFLOW_TRACKING_URI, else sqlite in --directory."
)
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

    from ww_opt.reporting.terminal import command_line
    from ww_opt.study.study import is_bad_input, open_study
    from ww_opt.study.workers import WorkerFailed

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are told below, once
    signal.signal(signal.SIGTERM, _interrupt)
    study, job, tracker = _prepared(study_file, options)
    host = _checked("--storage", job.storage, lambda: open_study(study, job.storage))
    go_on = command_line("ww-opt", *sys.argv[1:])
    try:
        _run(study, host, job, options["workers"], tracker)
    except KeyboardInterrupt:
        click.echo(f"\nStopped; what was done is recorded. To go on:\n  {go_on}", err=True)
        _finish(tracker, host)
        sys.exit(INTERRUPTED)
    except Exception as error:
        _finish(tracker, host)
        if is_bad_input(error):
            raise
        click.echo(str(error) if isinstance(error, WorkerFailed) else traceback.format_exc(), err=True)
        click.echo(
            f"A trial failed; what was done is recorded. To go on once the fault is mended:\n  {go_on}", err=True
        )
        sys.exit(FAILED)
    sys.exit(_close(study, host, job.directory, tracker))


def _prepared(study_file: str, options: dict[str, Any]) -> tuple[Study, Job, MLflowCallback | None]:
    """Check all that can be checked before anything is written."""
    from ww_opt.study.workers import Job

    if options["workers"] < 1:
        raise ValueError(f"`workers >= 1` must hold, but got workers={options['workers']}.")
    given = {"n_trials": options["n_trials"], "timeout": options["timeout"], "seed": options["seed"]}
    changes = {key: value for key, value in {**given, "name": options["study_name"]}.items() if value is not None}
    directory: Path = options["directory"]
    storage = options["storage"] or f"sqlite:///{(directory / 'studies.db').as_posix()}"
    job = Job(study_file, storage, directory, changes)
    study = job.study()
    tracker = None if options["no_mlflow"] else _tracker(options["tracking_uri"], directory)
    directory.mkdir(parents=True, exist_ok=True)
    return study, replace(job, directory=directory / study.name), tracker


def _tracker(uri: str | None, directory: Path) -> MLflowCallback:
    from ww_opt.tracking.mlflow import MLflowCallback

    default = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(directory / 'mlflow.db').resolve().as_posix()}"
    return MLflowCallback(uri or default)


def _checked(option: str, value: str, action: Callable[[], T]) -> T:
    """Run what depends on an outside address; what it raises becomes one line that names the option."""
    from ww_opt.study.study import is_bad_input

    try:
        return action()
    except Exception as error:
        if is_bad_input(error):
            raise
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{option} must be a place that can be written, but {value!r} gives: {first_line}") from error


def _run(study: Study, host: optuna.Study, job: Job, n_workers: int, tracker: MLflowCallback | None) -> None:
    from ww_opt.reporting.terminal import Progress
    from ww_opt.study.study import n_finished
    from ww_opt.study.study import run as run_here
    from ww_opt.study.workers import run_workers

    done = n_finished(host)
    if done:
        left = "going on from there" if done < study.n_trials else "more with a higher --n-trials"
        click.echo(f"Study {study.name!r} has {done} of {study.n_trials} trials already; {left}.", err=True)
        if tracker is not None:
            tracker.sync(host)
    n_pruned = sum(trial.state.name == "PRUNED" for trial in host.get_trials(deepcopy=False))
    with Progress(study.name, study.n_trials, n_done=done, n_pruned=n_pruned) as progress:
        observers: list[Observer] = [progress, *([tracker] if tracker is not None else [])]
        if n_workers > 1:
            run_workers(job, host, n_workers, observers)
        else:
            run_here(study, host, job.directory, observers)


def _close(study: Study, host: optuna.Study, directory: Path, tracker: MLflowCallback | None) -> int:
    """Tell what was found, open the test set, and return the exit code."""
    from ww_opt.reporting.terminal import accuracy_text, closing_text, mlflow_text
    from ww_opt.search.records import read
    from ww_opt.study.closing import closing, open_test_set, train_pick
    from ww_opt.study.weights_folder import weights_file

    code, again, announce = 0, None, partial(click.echo, err=True)
    try:
        result = closing(study, host, repeat=True, announce=announce)
        if result.pick is not None:
            again = train_pick(study, host, result.pick, directory, announce)
    except KeyboardInterrupt:  # the noise of the score stays unknown, the pick as its trial left it
        result = closing(study, host)
    settings = read(result.pick, "settings", {}) if result.pick is not None else {}
    click.echo(f"\n{closing_text(result, settings)}\n")
    if result.pick is None:
        code = NOTHING_COMPLETED
    try:
        if (accuracy := open_test_set(study, host, directory)) is not None:
            click.echo(f"{accuracy_text(accuracy)}\n")
    except Exception:  # the user's own code; what was found stands all the same
        click.echo(f"{traceback.format_exc()}\nThe test set could not be evaluated; the study is complete.\n", err=True)
        code = FAILED
    if again is not None:
        click.echo(f"Weights of the pick, trained again with all examples from the start: {again}")
    elif result.pick is not None and (weights := weights_file(directory, result.pick.number)).is_file():
        click.echo(f"Weights of the pick: {weights}")
    _finish(tracker, host)
    if tracker is not None:
        click.echo(mlflow_text(tracker.uri))
    return code


def _finish(tracker: MLflowCallback | None, host: optuna.Study) -> None:
    if tracker is not None and (missing := tracker.finish(host)):
        click.echo(f"{missing} trials are not in MLflow yet; the same command, run again, writes them.", err=True)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
