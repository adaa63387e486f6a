"""``python -m benchmarks.evidence.pruned``: the same study with and without pruning, end to end.

A study as users run it: 60 trials with repeats of the leaders, late entry, the default sampler. Its pick is trained
afresh with seeds that no search saw, in the plain way, and only then is the sealed set opened. Resumes.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import optuna
import torch
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from benchmarks.evidence.kept import DATA, Record, append, read, rounded
from benchmarks.evidence.search import Sealed, plain_accuracy
from benchmarks.evidence.tasks import CASES
from ww_opt import SpectralObjective, SpectralPruner, Study
from ww_opt.search.ranking import ranking
from ww_opt.search.records import column
from ww_opt.study.closing import closing
from ww_opt.study.study import open_study, run

__all__ = ["PRUNERS", "Pruned", "report", "search", "units"]

NAME = "pruned"
TASKS = ("digits_adamw_40", "mlp_sgd_0", "mlp_sgd_40", "cnn_sgd_20", "mlp_adamw_20", "cnn_adamw_0")
FRESH = (101, 102)
"""Seeds that picks are trained with."""


class OnTrainingLoss(BasePruner):
    """Optuna's ``MedianPruner`` where the training loss is what is reported, as whoever has no validation set does."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Ask it, with training losses for values."""
        others = [_with_losses(own) for own in study.get_trials(deepcopy=False)]
        shown: Any = SimpleNamespace(direction=StudyDirection.MINIMIZE, get_trials=lambda **_: others)
        return MedianPruner().prune(shown, _with_losses(trial))


def _with_losses(trial: FrozenTrial) -> FrozenTrial:
    own = copy.copy(trial)
    own.intermediate_values = {step: float(loss) for step, loss in column(trial, "train_loss").items()}
    return own


PRUNERS: Mapping[str, Callable[[], BasePruner]] = {
    "nothing": NopPruner,
    "SpectralPruner()": SpectralPruner,
    "MedianPruner, training loss": OnTrainingLoss,
}


class Pruned(NamedTuple):
    """One study."""

    case: str
    pruner: str
    seed: int


def units(n_seeds: int = 1) -> list[Pruned]:
    """List the studies: with each pruner and without for each task, seed after seed."""
    return [Pruned(case, name, seed) for seed in range(n_seeds) for case in TASKS for name in PRUNERS]


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
    """Return tables: every study, and what each pruner saves and loses beside the same studies without one.

    Accuracies are of picks trained with seeds that no search saw; intervals are of 95 %, over pairs of studies.
    """
    found = {Pruned(*(own[name] for name in Pruned._fields)): own for own in read(NAME, folder)}
    pruners = [name for name in PRUNERS if name != "nothing"]
    head = ("task", "seed", "pick without, %", *(f"{name}: saved, pick" for name in pruners))
    lines = [_line(head), _line(["---"] * len(head))]
    for case, _, seed in sorted(unit for unit in found if unit.pruner == "nothing"):
        cells = []
        for name in pruners:
            own = found.get(Pruned(case, name, seed))
            cells.append("" if own is None else f"{own['saved']:.0%}, {_accuracy(own):.1f}")
        lines.append(_line((case, str(seed), f"{_accuracy(found[Pruned(case, 'nothing', seed)]):.1f}", *cells)))
    for name in pruners:
        pairs = [
            (own["saved"], _accuracy(found[without]) - _accuracy(own))
            for unit, own in found.items()
            if unit.pruner == name and (without := unit._replace(pruner="nothing")) in found
        ]
        if len(pairs) > 1:
            saved, lost = zip(*pairs, strict=True)
            half = 1.96 * stdev(lost) / len(lost) ** 0.5
            lines.append(
                f"\n{name}, {len(pairs)} pairs: {fmean(saved):.0%} of the steps saved, {fmean(lost):.1f} ± {half:.1f} "
                f"points lost, {median(lost):.1f} in the median"
            )
    return "\n".join(lines)


def _accuracy(record: Record) -> float:
    return 100.0 * fmean(record["tested"])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--seeds", default=0, show_default=True, help="Run what is missing of so many seeds a task first.")
def main(seeds: int) -> None:
    """Print the table."""
    for record in search_all(units(seeds)):
        click.echo(f"{record['case']} {record['pruner']} {record['seed']}: {record['saved']:.0%}", err=True)
    click.echo(report())


if __name__ == "__main__":
    main()
