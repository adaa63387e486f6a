"""``python -m benchmarks.evidence``: train what is missing, then judge every score."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from benchmarks.evidence.faults import plant_all
from benchmarks.evidence.figures import draw
from benchmarks.evidence.generate import Settings, generate, units
from benchmarks.evidence.kept import pack
from benchmarks.evidence.refresh import refresh
from benchmarks.evidence.search import search_all, searches
from benchmarks.evidence.tables import report
from benchmarks.evidence.tasks import CASES

NAMES = tuple(case.name for case in CASES)
QUICK = Settings(("mlp_sgd_0", "digits_sgd_20", "digits_adamw_40"), n=20, n_reseeded=3, folder=Path("build/evidence"))


@click.command(context_settings={"max_content_width": 100})
@click.argument(
    "step",
    type=click.Choice(("all", "generate", "search", "faults", "judge", "figures", "refresh", "pack")),
    default="all",
)
@click.option("--quick", is_flag=True, help="Three small tasks, 20 configurations each, kept apart: minutes.")
@click.option("--tasks", help="Names of tasks, with commas; all by default.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="one a core",
    help="Processes that train.",
)
@click.option("--weights", type=click.Path(path_type=Path), help="Where state dicts are left, for `refresh`.")
def main(step: str, quick: bool, tasks: str | None, workers: int, weights: Path | None) -> None:
    """Train each task's configurations once, keep what judges need, and judge every score and rival.

    \b
    all       generate, then judge (default)
    generate  train what is missing; resumes
    search    run the end-to-end searches that are missing; resumes
    faults    plant the faults that are missing; resumes
    figures   draw what the README shows
    judge     print the tables, from the kept runs alone
    refresh   diagnose the state dicts in --weights again, when the instrument has changed
    pack      compress what an interrupted generation left loose
    """
    settings = QUICK if quick else Settings(weights=weights)
    if tasks is not None:
        chosen = tuple(tasks.split(","))
        unknown = sorted(set(chosen) - set(NAMES))
        if unknown:
            raise click.BadParameter(f"there is no {unknown[0]!r}; tasks: {', '.join(NAMES)}", param_hint="--tasks")
        settings = Settings(chosen, settings.n, settings.n_reseeded, settings.folder, settings.weights)
    if step in ("all", "generate"):
        _generate(settings, workers)
    if step in ("all", "search") and not quick:
        for record, n_left in search_all(searches(), workers):
            click.echo(
                f"{record['case']} {record['method']} {record['seed']}, {record['n_trials']} trials: "
                f"{record['pick']:.3f}; {n_left} searches left",
                err=True,
            )
    if step in ("all", "faults") and not quick:
        for record, n_left in plant_all(workers):
            click.echo(f"{record['case']} {record['fault']} {record['layer']}; {n_left} faults left", err=True)
    if step == "refresh":
        if weights is None:
            raise click.UsageError("`refresh` reads state dicts: say where they are, with --weights.")
        for line in refresh(weights):
            click.echo(line)
    if step in ("all", "generate", "pack"):
        for name in settings.cases:
            pack(name, settings.folder)
    if step == "figures":
        for path in draw(Path("docs"), settings.folder):
            click.echo(path)
    if step in ("all", "judge"):
        click.echo(report(settings.folder))


def _generate(settings: Settings, workers: int) -> None:
    started = time.monotonic()
    click.echo(f"{len(list(units(settings)))} units to train, into {settings.folder}", err=True)
    for unit, n_left in generate(settings, workers):
        seconds = time.monotonic() - started
        click.echo(
            f"{seconds:6.0f} s  {unit.case} {unit.kind} {unit.seed}: {len(unit.numbers)} runs; {n_left} units left",
            err=True,
        )


if __name__ == "__main__":
    main()
