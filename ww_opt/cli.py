"""The command ``ww-opt``: wires study, tracking and report together.

Exit codes: 0 done; 1 the user's own code failed; 2 bad input; 3 no trial completed; 130 interrupted.
Heavy imports stand inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ww_opt import __version__

if TYPE_CHECKING:
    import optuna

    from ww_opt.spectral.rows import Diagnosis
    from ww_opt.study import Observer, Study
    from ww_opt.tracking import MLflowCallback
    from ww_opt.workers import Job

FAILED, BAD_INPUT, NOTHING_COMPLETED, INTERRUPTED = 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ww-opt")
def cli() -> None:
    r"""Tune neural networks without a test set.

    \b
    ww-opt run studies/digits.py      search a study's space, log to MLflow, show what was found
    ww-opt analyze model.pt           read the spectra of a checkpoint, layer by layer
    """


@cli.command()
@click.argument("study_file", metavar="STUDY")
@click.option("--n-trials", type=int, help="Trials in all, those of earlier runs included. Default: the study's own.")
@click.option("--timeout", type=float, help="Seconds after which no new trial starts.")
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

    from ww_opt.study import open_study
    from ww_opt.workers import Job

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    signal.signal(signal.SIGTERM, _interrupt)
    if options["workers"] < 1:
        raise ValueError(f"`workers >= 1` must hold, but got workers={options['workers']}.")
    given = {"n_trials": options["n_trials"], "timeout": options["timeout"], "seed": options["seed"]}
    changes = {key: value for key, value in {**given, "name": options["study_name"]}.items() if value is not None}
    directory: Path = options["directory"]
    directory.mkdir(parents=True, exist_ok=True)
    storage = options["storage"] or f"sqlite:///{directory}/studies.db"
    job = Job(study_file, storage, directory, changes)
    study = job.study()
    job = replace(job, directory=directory / study.name)
    host = _checked("--storage", storage, lambda: open_study(study, storage))
    tracker = None if options["no_mlflow"] else _tracker(options["tracking_uri"], directory)
    try:
        _run(study, host, job, options["workers"], tracker)
    except KeyboardInterrupt:
        _finish(tracker, host)
        click.echo(f"\nStopped; every finished trial is recorded. To go on: {_resume_command()}", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        _finish(tracker, host)
        if _is_ours(error):
            raise
        traceback.print_exc()
        click.echo(f"A trial failed in the study's own code. To go on once it is mended: {_resume_command()}", err=True)
        sys.exit(FAILED)
    _close(study, host, job.directory, tracker)


def _run(study: Study, host: optuna.Study, job: Job, n_workers: int, tracker: MLflowCallback | None) -> None:
    from tqdm import tqdm

    from ww_opt.study import n_finished
    from ww_opt.study import run as run_here
    from ww_opt.terminal import Progress
    from ww_opt.workers import run_workers

    done = n_finished(host)
    if done:
        click.echo(
            f"Study {study.name!r} has {done} of {study.n_trials} trials already; going on from there.", err=True
        )
        if tracker is not None:
            tracker.sync(host)
    n_pruned = sum(trial.state.name == "PRUNED" for trial in host.get_trials(deepcopy=False))
    line = "{desc}: {n_fmt}/{total_fmt} trials |{bar:20}| {elapsed}<{remaining} left{postfix}"
    with tqdm(total=max(study.n_trials, done), initial=done, desc=study.name, bar_format=line) as bar:
        observers: list[Observer] = [Progress(bar, n_pruned), *([tracker] if tracker is not None else [])]
        if n_workers > 1:
            run_workers(job, host, n_workers, observers)
        else:
            run_here(study, host, job.directory, observers)


def _close(study: Study, host: optuna.Study, directory: Path, tracker: MLflowCallback | None) -> None:
    from ww_opt.closing import closing, open_test_set
    from ww_opt.records import read
    from ww_opt.study import weights_file
    from ww_opt.terminal import closing_text

    result = closing(study, host)
    settings = read(result.pick, "settings", {}) if result.pick is not None else {}
    click.echo(closing_text(result, open_test_set(study, host, directory), settings))
    if result.pick is not None:
        click.echo(f"Weights of the pick: {weights_file(directory, result.pick.number)}")
    _finish(tracker, host)
    if tracker is not None:
        click.echo(f"MLflow runs: {tracker.uri}\n  to look at them: {tracker.show_command}")
    if result.pick is None:
        sys.exit(NOTHING_COMPLETED)


def _tracker(uri: str | None, directory: Path) -> MLflowCallback:
    import os

    from ww_opt.tracking import MLflowCallback

    default = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(directory / 'mlflow.db').resolve().as_posix()}"
    return MLflowCallback(uri or default)


def _finish(tracker: MLflowCallback | None, host: optuna.Study) -> None:
    if tracker is not None and (missing := tracker.finish(host)):
        click.echo(f"{missing} trials are not in MLflow yet; the same command, run again, writes them.", err=True)


def _is_ours(error: Exception) -> bool:
    """Whether a check of this package raised the error; what the user's own code raises keeps its traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, ValueError | TypeError) and Path(last.filename).is_relative_to(Path(__file__).parent)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _resume_command() -> str:
    import shlex

    return shlex.join(["ww-opt", *sys.argv[1:]])


def _checked(option: str, value: str, action: Any) -> Any:
    """Run what depends on an outside address; what it raises becomes one line that names the option."""
    try:
        return action()
    except ValueError:
        raise
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{option} must be reachable, but {value!r} gives: {first_line}") from error


@cli.command()
@click.argument("source", metavar="SOURCE")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as a JSON list.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
@click.option(
    "--convention", type=click.Choice(["default", "weightwatcher"]), default="default", show_default=True,
    help="Ours, or the numbers that WeightWatcher gives.",
)  # fmt: skip
def analyze(source: str, as_json: bool, as_csv: bool, convention: Any) -> None:
    """Read the spectra of a model, layer by layer. No data is needed.

    SOURCE is a checkpoint (.pt, .pth, .th, .bin, .safetensors, a folder of them) or module:factory, a function without
    arguments that returns a model.
    """
    from ww_opt.spectral.diagnostics import diagnose

    diagnosis = diagnose(_source(source), convention=convention)
    if as_json:
        click.echo(json.dumps([_json_row(row) for row in diagnosis.records()], indent=1))
    elif as_csv:
        click.echo(diagnosis.to_frame().to_csv(index=False), nl=False)
    else:
        _print_analysis(diagnosis)


def _source(source: str) -> Any:
    if Path(source).exists() or ":" not in source:
        return source
    from ww_opt.references import BadReference, load

    factory = load(source)
    if not callable(factory):
        raise BadReference(
            f"SOURCE must name a function that returns a model, but {source!r} is a {type(factory).__name__}."
        )
    return factory()


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _print_analysis(diagnosis: Diagnosis) -> None:
    from ww_opt.spectral.scores import SCORES
    from ww_opt.terminal import layer_table, legend, number

    click.echo(layer_table(diagnosis))
    if words := legend(diagnosis):
        click.echo(words)
    better = {"minimize": "lower", "maximize": "higher"}
    scores = [f"{item.name} {number(item(diagnosis))} ({better[item.direction]} is better)" for item in SCORES.values()]
    click.echo("Scores, to compare models of one architecture only: " + "; ".join(scores))


def main() -> None:
    """Run the command; bad input ends in one line and exit code 2."""
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.ClickException, ValueError, FileNotFoundError, TypeError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"Error: {message}", err=True)
        sys.exit(BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
