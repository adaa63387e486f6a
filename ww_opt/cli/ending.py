"""How ``ww-opt run`` ends: what was found, the test set, the model, the figure, MLflow."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ww_opt.cli.exit_codes import FAILED, NOTHING_COMPLETED

if TYPE_CHECKING:
    import optuna

    from ww_opt.study.closing import Closing, TestAccuracy
    from ww_opt.study.study import Study
    from ww_opt.study.workers import Job
    from ww_opt.tracking.contents import Contents
    from ww_opt.tracking.mlflow import MLflowCallback

__all__ = ["close", "draw", "finish", "write_page"]


def close(study: Study, host: optuna.Study, job: Job, tracker: MLflowCallback | None) -> int:
    """Tell what was found, open the test set, keep pick and figure, and return the exit code."""
    from ww_opt.reporting.closing_text import accuracy_text, closing_text, mlflow_text
    from ww_opt.search.records import read
    from ww_opt.study.closing import closing, open_test_set
    from ww_opt.study.opened import remember
    from ww_opt.study.picking import train_pick
    from ww_opt.study.weights_folder import weights_file

    code, again, announce = 0, None, partial(click.echo, err=True)
    try:
        result = closing(study, host, repeat=True, announce=announce)
        if result.pick is not None:
            again = train_pick(study.objective, host, result.pick, job.directory, announce)
    except KeyboardInterrupt:  # the noise of the score stays unknown, the pick as its trial left it
        result = closing(study, host)
    settings = read(result.pick, "settings", {}) if result.pick is not None else {}
    click.echo(f"\n{closing_text(result, settings)}\n")
    if result.pick is None:
        code = NOTHING_COMPLETED
    accuracy = None
    try:
        if (accuracy := open_test_set(study, host, job.directory)) is not None:
            click.echo(f"{accuracy_text(accuracy)}\n")
            if result.pick is not None:
                remember(host, result.pick, accuracy)
    except Exception:  # the user's own code; what was found stands all the same
        click.echo(f"{traceback.format_exc()}\nThe test set could not be evaluated; the study is complete.\n", err=True)
        code = FAILED
    weights = again
    if again is not None:
        click.echo(f"Weights of the pick, trained again with all examples from the start: {again}")
    elif result.pick is not None and (own := weights_file(job.directory, result.pick.number)).is_file():
        click.echo(f"Weights of the pick: {own}")
        weights = own
    contents = _kept(study, host, job, (result, accuracy, weights))
    finish(tracker, host, contents)
    if tracker is not None:
        click.echo(mlflow_text(tracker.uri))
    return code


def _kept(
    study: Study, host: optuna.Study, job: Job, found: tuple[Closing, TestAccuracy | None, Path | None]
) -> Contents:
    """Write ``pick.json``, figure and report, and gather what MLflow gets."""
    from ww_opt.study.pick_card import pick_card, write_card
    from ww_opt.tracking.contents import of_study

    result, accuracy, weights = found
    card = pick_card(study, host, result, weights, _folder(job.reference))
    files: list[Path | None] = []
    if card is not None:
        files.append(write_card(card, job.directory))
        click.echo(f"Settings, score and versions of the pick: {files[-1]}")
    files += [draw(host, job.directory), write_page(study, host, job, result)]
    trials = [trial for trial in host.get_trials(deepcopy=False) if trial.state.is_finished()]
    return of_study(card, result, accuracy, trials, _existing(files), weights)


def _existing(files: Iterable[Path | None]) -> list[Path]:
    return [file for file in files if file is not None and file.is_file()]


def _folder(reference: str) -> Path:
    """Folder of a study's file; the current one where it is a module."""
    place = reference.rpartition(":")[0] or reference
    file = next((Path(name) for name in (reference, place) if Path(name).is_file()), None)
    return file.resolve().parent if file is not None else Path.cwd()


def draw(host: optuna.Study, directory: Path) -> Path | None:
    """Write the study's figure into its folder and say where; a figure that fails costs no result."""
    if not any(trial.state.is_finished() for trial in host.get_trials(deepcopy=False)):
        return None
    target = directory / "study.png"
    try:
        from ww_opt.reporting.plots import study_figure

        directory.mkdir(parents=True, exist_ok=True)
        aside = directory / ".study.png.part"
        study_figure(host).savefig(aside, dpi=120, format="png")
        aside.replace(target)
    except Exception as error:
        click.echo(f"The study's figure could not be drawn: {type(error).__name__}: {error}", err=True)
        return None
    click.echo(f"Figure of the study: {target}")
    return target


def write_page(study: Study, host: optuna.Study, job: Job, result: Closing | None = None) -> Path | None:
    """Write the study's report into its folder and say where; a report that fails costs no result."""
    if not any(trial.state.is_finished() for trial in host.get_trials(deepcopy=False)):
        return None
    target = job.directory / "report.html"
    try:
        from ww_opt.reporting.page import gather, report_of, write_text

        found = gather(host, study, folder=job.directory, storage=job.storage, result=result)
        write_text(report_of(found).to_html(), target)
    except (Exception, KeyboardInterrupt) as error:
        from ww_opt.study.secrets import without_logins

        why = without_logins(" ".join(f"{type(error).__name__}: {error}".split()).rstrip(": "))
        click.echo(f"The study's report could not be written: {why}; `ww-opt report` tries again.", err=True)
        return None
    click.echo(f"Report of the study: {target}")
    return target


def finish(tracker: MLflowCallback | None, host: optuna.Study, contents: Contents | None = None) -> None:
    """Write to MLflow what is not there yet, and say how to get there what could not be written."""
    from ww_opt.reporting.terminal import command_line

    if tracker is None or not (left := tracker.finish(host, contents=contents)):
        return
    trouble = tracker.trouble
    some = f"{left} record{'s are' if left > 1 else ' is'} not in MLflow yet"
    why = "" if trouble is None else f", since {trouble.what}"
    if lost := tracker.n_lost_at_exit:
        then = f"The disk took {lost} of them neither: the same command, run again, sends them."
        click.echo(f"{some}{why}. {then}", err=True)
        return
    first = "" if trouble is None or trouble.is_passing else f" First {trouble.remedy}."
    place = tracker.spool.relative_to(Path.cwd()) if tracker.spool.is_relative_to(Path.cwd()) else tracker.spool
    command = command_line("ww-opt", "mlflow", "sync", str(place))
    click.echo(f"{some}{why}.{first} To send what waits:\n  {command}", err=True)
