"""``ww-opt data-check``: will more data help?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ww_opt.cli.stored import stored, study_and_place

if TYPE_CHECKING:
    import optuna

    from ww_opt.study.study import Study

__all__ = ["data_check"]


@click.command("data-check")
@click.argument("study_file", metavar="STUDY")
@click.option("--storage", help="As for `ww-opt run`. Default: sqlite in --directory.")
@click.option("--study-name", help="Name in the storage. Default: the study's own.")
@click.option("--seeds", "n_seeds", type=int, default=2, show_default=True, help="Trainings of each part.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where files lie."
)
def data_check(study_file: str, storage: str | None, study_name: str | None, n_seeds: int, directory: Path) -> None:
    """Foresee what twice the data would give.

    The settings of the study's pick, or your own where it was not run yet, are trained on 25, 35, 50, 70 and 100 % of
    the examples, the same number of steps each. Some examples are kept out and judge them all.
    """
    from ww_opt.reporting.data_text import answer, data_text
    from ww_opt.reporting.plots import data_figure
    from ww_opt.study.data_check import data_check as check

    study, place = study_and_place(study_file, storage, study_name, directory)
    announce = partial(click.echo, err=True)
    parameters, whose = _settings(study, stored(study.name, place))
    announce(f"Settings: {whose}")
    found = check(study.objective, parameters, n_seeds=n_seeds, announce=announce)
    click.echo(f"\n{data_text(found)}\n")
    target = directory / study.name / "data.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    data_figure(found, answer(found)).savefig(target, dpi=120, format="png")
    click.echo(f"Figure: {target}")


def _settings(study: Study, host: optuna.Study | None) -> tuple[dict[str, Any], str]:
    """Settings of the pick and whose they are; of what is trained today where there is no pick."""
    from ww_opt.search.ranking import best

    pick = None if host is None else best(host)
    if pick is not None:
        return dict(pick.params), f"the pick, trial {pick.number}"
    task, space = study.objective.task, study.objective.space
    model = task.build_model()
    found: dict[str, Any] = space.present(model, task.optimizer)
    if missing := sorted(space.parameters(model).keys() - found.keys()):
        raise ValueError(
            f"Settings must be known before data are checked, but the study was not run and your optimizer and model "
            f"have no {missing[:3]}: `ww-opt run` it first."
        )
    return found, "your optimizer and model as they are"
