"""``python -m benchmarks.evidence.pruned``: the same study with and without pruning, end to end.

A study as users run it: 60 trials with repeats of the leaders, late entry, the default sampler. Its pick is trained
afresh with seeds that no search saw, in the plain way, and only then is the sealed set opened. Resumes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import click
import optuna
import torch
from optuna.pruners import BasePruner, NopPruner

from benchmarks.evidence.kept import DATA, Record, append, read, rounded
from benchmarks.evidence.search import Sealed, plain_accuracy
from benchmarks.evidence.tasks import CASES
from ww_opt import Ranks, SpectralObjective, SpectralPruner, Study
from ww_opt.search.ranking import ranking
from ww_opt.study.closing import closing
from ww_opt.study.study import open_study, run

__all__ = ["PRUNERS", "Pruned", "report", "search", "units"]

NAME = "pruned"
TASKS = ("digits_adamw_40", "mlp_sgd_0", "mlp_sgd_40", "cnn_sgd_20", "mlp_adamw_20", "cnn_adamw_0")
FRESH = (101, 102)
"""Seeds that picks are trained with."""
PRUNERS: Mapping[str, Callable[[], BasePruner]] = {
    "nothing": NopPruner,
    "SpectralPruner()": SpectralPruner,
    "share 1/4": lambda: SpectralPruner(ranks=Ranks(share=1 / 4)),
}


class Pruned(NamedTuple):
    """One study."""

    case: str
    pruner: str
    seed: int


def units(n_seeds: int = 1) -> list[Pruned]:
    """List the studies: with our pruner and without for each task, seed after seed."""
    names = ("nothing", "SpectralPruner()")
    return [Pruned(case, name, seed) for seed in range(n_seeds) for case in TASKS for name in names]


def search(unit: Pruned) -> Record:
    """Run one study and train its pick afresh."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    case = next(case for case in CASES if case.name == unit.case)
    objective = SpectralObjective(case.task(), case.space, case.n_steps, guard="late")
    pruner = PRUNERS[unit.pruner]()
    study = Study(name="pruned", objective=objective, n_trials=60, pruner=pruner, seed=unit.seed, keep_weights="best")
    host = open_study(study)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run(study, host, Path(folder))
    seconds = time.perf_counter() - started
    pick = ranking(host).best
    assert pick is not None
    found = closing(study, host)
    sealed = Sealed(case)
    tested = [plain_accuracy(case, pick.params, sealed, seed) for seed in FRESH]
    return {
        **unit._asdict(),
        "saved": rounded(found.saved),
        "seconds": rounded(seconds),
        "tested": [rounded(own) for own in tested],
        "pick": pick.number,
        "ended_by": dict(found.ended_by),
        "n_complete": found.n_complete,
    }


def search_all(todo: Sequence[Pruned], folder: Path = DATA) -> Iterator[Record]:
    """Run what is missing; yield each study when it is kept."""
    done = {Pruned(*(record[name] for name in Pruned._fields)) for record in read(NAME, folder)}
    for unit in todo:
        if unit not in done:
            record = search(unit)
            append(NAME, [record], folder)
            yield record


def report(folder: Path = DATA) -> str:
    """Return the table of what was run: steps saved, and accuracy of the pick with seeds that no search saw."""
    lines = [f"{'task':20}{'seed':>5}  {'pruner':20}{'saved':>6}{'seconds':>9}{'pick, %':>9}  rules"]
    for own in sorted(read(NAME, folder), key=lambda own: (own["case"], own["seed"], own["pruner"] != "nothing")):
        accuracy = 100 * fmean(own["tested"])
        lines.append(
            f"{own['case']:20}{own['seed']:5}  {own['pruner']:20}{own['saved']:6.0%}{own['seconds']:9.0f}"
            f"{accuracy:9.1f}  {own['ended_by'] or ''}"
        )
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default=0, show_default=True, help="Run what is missing of so many seeds a task first.")
def main(seeds: int) -> None:
    """Print the table."""
    for record in search_all(units(seeds)):
        click.echo(f"{record['case']} {record['pruner']} {record['seed']}: {record['saved']:.0%}", err=True)
    click.echo(report())


if __name__ == "__main__":
    main()
