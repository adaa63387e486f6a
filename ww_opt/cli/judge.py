"""``ww-opt judge``: how good is the pick of a study, by the sealed test set?"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from ww_opt.cli.stored import stored, study_and_place

__all__ = ["judge"]


@click.command()
@click.argument("study_file", metavar="STUDY")
@click.option("--storage", help="As for `ww-opt run`. Default: sqlite in --directory.")
@click.option("--study-name", help="Name in the storage. Default: the study's own.")
@click.option("--seeds", "n_seeds", type=int, default=3, show_default=True, help="Trainings of each setting.")
@click.option(
    "--ceiling/--no-ceiling",
    default=True,
    show_default=True,
    help="Also search on the test set itself, with the same sampler and budget: what dishonesty would have found.",
)
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where files lie."
)
def judge(
    study_file: str, storage: str | None, study_name: str | None, n_seeds: int, ceiling: bool, directory: Path
) -> None:
    """Judge the pick of a study that was run, by the sealed test set.

    What you came with, the best shared setting and the pick are trained afresh, on all examples, with seeds that no
    trial had. Nothing is written. A test set that chooses is sealed no longer: look once, at the end.
    """
    import optuna

    from ww_opt.reporting.judged_text import judged_text
    from ww_opt.reporting.progress import Progress
    from ww_opt.search.repeats import start_of
    from ww_opt.study.judging import ceiling as search_on_the_test_set
    from ww_opt.study.judging import judged, rivals

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, place = study_and_place(study_file, storage, study_name, directory)
    if (host := stored(study.name, place)) is None:
        raise ValueError(
            f"A study must have been run before it is judged, but there is no {study.name!r} in {place}: "
            "`ww-opt run` it first, or name another --directory, --storage or --study-name."
        )
    announce = partial(click.echo, err=True)
    rows = judged(study.objective, rivals(host), n_seeds, announce)
    if ceiling:
        announce("Searching on the test set itself, to judge by; nothing of it is kept")
        with Progress("on the test set", study.n_trials) as progress:
            found = search_on_the_test_set(study, start_of(host), [progress])
        if found is not None:
            rows += judged(study.objective, [found], n_seeds, announce)
    click.echo(f"\n{judged_text(rows, study.objective.task.metric)}")
