"""``ww-opt report``: a study on one page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ww_opt.cli.stored import place_of, stored, study_and_place

if TYPE_CHECKING:
    import optuna

    from ww_opt.study.study import Study

__all__ = ["report"]


@click.command()
@click.argument("study_file", metavar="[STUDY]", required=False)
@click.option("--storage", help="As for `ww-opt run`. Default: sqlite in --directory.")
@click.option("--study-name", help="Name in the storage. Default: the study's own.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: report.html in the study's folder.")
@click.option("--json", "as_json", is_flag=True, help="The numbers as JSON; printed unless -o says where to.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Text and tables; printed unless -o says where to.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where files lie."
)
def report(
    study_file: str | None,
    storage: str | None,
    study_name: str | None,
    output: Path | None,
    as_json: bool,
    as_markdown: bool,
    directory: Path,
) -> None:
    """Write what is known of a study on one HTML page that needs no network.

    The study may be finished, running or interrupted; nothing is trained. STUDY is as for `ww-opt run`. Without it any
    study of Optuna is reported that --storage and --study-name name, as far as its records go.
    """
    import optuna

    from ww_opt.reporting.page import gather, report_of, write_text

    if as_json and as_markdown:
        raise click.UsageError("Only one of --json and --markdown can be given.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, host, place = _found(study_file, storage, study_name, directory)
    folder = directory / _folder_name(host.study_name)
    found = report_of(gather(host, study, folder=folder, storage=place))
    if as_json or as_markdown:
        text = found.to_json() if as_json else found.to_markdown()
        if output is None:
            click.echo(text)
            return
    else:
        text = found.to_html()
    target = output or folder / "report.html"
    write_text(text, target)
    click.echo(f"Report: {target}")


def _found(
    study_file: str | None, storage: str | None, study_name: str | None, directory: Path
) -> tuple[Study | None, optuna.Study, str]:
    """The study, its records, and where they lie."""
    from ww_opt.study.storages import shown

    if study_file is not None:
        study, place = study_and_place(study_file, storage, study_name, directory)
        name = study.name
    else:
        study, place = None, place_of(storage, directory, study_name)
        name = study_name or _only_name(place)
    if (host := stored(name, place)) is None:
        raise ValueError(
            f"A study must have been run before it is reported, but there is no {name!r} in {shown(place)}: "
            "`ww-opt run` it first, or name another --directory, --storage or --study-name."
        )
    return study, host, place


def _only_name(place: str) -> str:
    """The name of the study in a storage that has one alone."""
    import optuna

    from ww_opt.study.storages import file_of, open_storage, reading, shown

    file = file_of(place)
    opened = None if file is not None and not file.is_file() else open_storage(place)
    names = [] if opened is None else reading(place, lambda: optuna.get_all_study_names(opened))
    if len(names) == 1:
        return names[0]
    have = f"has {', '.join(map(repr, sorted(names)[:5]))}" if names else "has none"
    raise click.UsageError(
        f"A study must be named by STUDY, the file that defines it, or by --study-name, but got neither, and "
        f"{shown(place)} {have}."
    )


def _folder_name(name: str) -> str:
    """A study's name as that of a folder; ``ww-opt run`` takes no other names."""
    return re.sub(r"[^\w. -]", "_", name).strip(". ")[:100] or "study"
