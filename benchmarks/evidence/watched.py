"""``python -m benchmarks.evidence.watched``: runs as a pruner watches them, look by look.

From a twentieth of the run to its end, where the records of `run.py` begin at a quarter or at half.

Three kinds, all with the case's own number of steps:

* ``late``: the late runs of ``run.py`` once more; at each look also what those say who are still to join;
* ``split``: a tenth of the training set is a validation split that is asked at each look;
* ``planted``: settings that work, but for one fault in one layer (``faults.py``), with late entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from benchmarks.evidence.ensemble import Ensemble, Settings
from benchmarks.evidence.faults import HEALTHY, IN_ONE_LAYER
from benchmarks.evidence.kept import DATA, Record, append, pack, read, rounded
from benchmarks.evidence.run import all_examples, sealed_accuracies, unused_examples
from benchmarks.evidence.tasks import CASES, LOOKS, Case, configurations
from ww_opt.search.records import layer_records
from ww_opt.spectral import diagnose
from ww_opt.spectral.scores import judged, score
from ww_opt.training.judging import Judgement, judge, late_loss
from ww_opt.training.late_entry import LateEntry
from ww_opt.training.layerwise import LayerSettings, layers
from ww_opt.training.task import Task

__all__ = ["NAME", "Watched", "units", "watch", "watch_all"]

NAME = "watched"
"""Of the file that they are kept in."""
SPLIT_SHARE = 0.1
HUGE_AT = 25
"""Percent of the run after which the huge entry is planted."""
_DIAGNOSED = (10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
_COLUMNS = ("name", "role", "N", "M", "n_eigenvalues", "spikes", "traps", "rank_loss", "stable_rank", "spectral_norm")
_N_LAYERS = 4
_PART = 250


class Watched(NamedTuple):
    """What is trained at once. ``numbers``: configurations; of planted ones, those of the first fault on."""

    case: str
    kind: str
    seed: int
    numbers: tuple[int, ...]


class _Cause(NamedTuple):
    fault: str
    layer: str


def units() -> Iterator[Watched]:
    """List all units: the late runs of all tasks come first."""
    for kind in ("late", "planted", "split"):
        for case in CASES:
            if kind == "planted":
                yield from (Watched(case.name, kind, seed, (0,)) for seed in (0, 1))
                continue
            for start in range(0, 60, case.together):
                yield Watched(case.name, kind, 0, tuple(range(start, start + case.together)))


def watch_all(folder: Path = DATA) -> Iterator[tuple[Watched, int]]:
    """Train what is missing; yield each unit when it is kept, with the number of those still to come."""
    done = {(own["case"], own["kind"], own["seed"], own["configuration"]) for own in read(NAME, folder)}
    todo = [unit for unit in units() if (unit.case, unit.kind, unit.seed, unit.numbers[0]) not in done]
    for n_left, unit in zip(reversed(range(len(todo))), todo, strict=True):
        append(NAME, watch(unit), folder)
        yield unit, n_left


def watch(unit: Watched) -> list[Record]:
    """Train a unit and return one record per run."""
    torch.set_num_threads(1)
    case = next(case for case in CASES if case.name == unit.case)
    causes, settings = _drawn(case, unit)
    task, examples = case.task(), all_examples(case.task())
    entry, split = None, None
    if unit.kind == "split":
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
        n_split = round(SPLIT_SHARE * len(examples))
        split, rest = examples.take(order[:n_split]), examples.take(order[n_split:])
        task = _over(
            task, lambda: (rest.take(part) for part in torch.split(torch.randperm(len(rest)), case.batch_size))
        )
    else:
        entry = LateEntry(len(examples), case.batch_size, case.n_steps)
        task = _over(task, lambda: (examples.take(index) for index in entry))
    label = case.label if unit.kind != "planted" else None
    ensemble = Ensemble(task, settings, label, unit.seed) if label else Ensemble(task, settings, seed=unit.seed)
    found: list[Record] = [
        {**unit._asdict(), **cause._asdict(), "configuration": number, "n_steps": case.n_steps, "looks": []}
        for number, cause in zip(unit.numbers if unit.kind != "planted" else range(len(causes)), causes, strict=True)
    ]
    for record in found:
        del record["numbers"]
    model = task.build_model()
    before = {name: own.clone() for name, own in ensemble._parameters.items()}
    late: list[list[Judgement]] = [[] for _ in found]
    for look in ensemble.train(case.n_steps, case.n_steps // LOOKS):
        percent = 100 * look.step // case.n_steps
        asked: dict[str, list[Judgement]] = {}
        if split is not None and percent:
            asked["split"] = _judged(ensemble, split, look.step)
        if entry is not None and percent:
            waiting = [own for own, first in zip(entry.cohorts, entry.steps, strict=True) if first >= look.step]
            for k in range(len(waiting)):
                asked[f"ahead{k + 1}"] = _judged(ensemble, examples.take(torch.cat(waiting[: k + 1])), look.step)
            if look.step in entry.steps:
                for own, said in zip(late, asked["ahead1"], strict=True):
                    own.append(said)
        for k, record in enumerate(found):
            seen: Record = {
                "percent": percent,
                "train_loss": rounded(float(look.train_loss[k])),
                "running_loss": rounded(float(look.running_loss[k])),
            }
            seen |= {name: _number(said[k : k + 1]) for name, said in asked.items()}
            if late[k]:
                seen["late"] = _number(late[k])
            if unit.kind != "split" and percent in _DIAGNOSED:
                model.load_state_dict(ensemble.state(k))
                seen |= _diagnosed(model)
            record["looks"].append(seen)
        _plant(ensemble, causes, percent, before)
    for record, accuracy in zip(found, sealed_accuracies(ensemble, case, unused_examples(case), model), strict=True):
        record["test"] = rounded(accuracy)
    return found


def _over(task: Task, batches: Any) -> Task:
    return replace(task, batches=batches)


def _drawn(case: Case, unit: Watched) -> tuple[list[_Cause], list[Settings]]:
    if unit.kind != "planted":
        drawn = configurations(case, max(unit.numbers) + 1)
        return [_Cause("", "")] * len(unit.numbers), [drawn[number].settings for number in unit.numbers]
    model = case.task().build_model()
    healthy = dict.fromkeys((layer.name for layer in layers(model)), HEALTHY[case.name])
    names = [row.name for row in judged(diagnose(model))]
    names = names[:: max(len(names) // _N_LAYERS, 1)][:_N_LAYERS]
    causes = [_Cause("healthy", ""), *(_Cause(fault, name) for fault in IN_ONE_LAYER for name in names)]
    settings = [
        {**healthy, cause.layer: _broken(healthy[cause.layer], cause.fault)} if cause.layer else dict(healthy)
        for cause in causes
    ]
    return causes, settings


def _broken(own: LayerSettings, fault: str) -> LayerSettings:
    lr, weight_decay = own.lr or 0.0, own.weight_decay or 0.0
    lr = {"lr x100": 100 * lr, "lr 0": 0.0}.get(fault, lr)
    return replace(own, lr=lr, weight_decay=100 * weight_decay if fault == "weight decay x100" else weight_decay)


@torch.no_grad()
def _plant(ensemble: Ensemble, causes: Sequence[_Cause], percent: int, before: dict[str, torch.Tensor]) -> None:
    for k, (fault, layer) in enumerate(causes):
        name = f"{layer}.weight"
        if fault == "huge entry" and percent == HUGE_AT:
            weight = ensemble._parameters[name].detach()[k]
            weight.view(-1)[7] = 40 * weight.std()  # one step without clipping
        if fault == "frozen at init":
            ensemble._parameters[name].detach()[k].copy_(before[name][k])


def _judged(ensemble: Ensemble, examples: Any, step: int) -> list[Judgement]:
    parts = [examples.take(index) for index in torch.split(torch.arange(len(examples)), _PART)]
    logits = ensemble.logits(part.x for part in parts)
    return [judge(own, examples.y, step) for own in logits]


def _number(said: Sequence[Judgement]) -> list[float | None]:
    """Late loss, accuracy and number of examples."""
    n = sum(own.n for own in said)
    accuracy = sum(own.n * own.accuracy for own in said) / n
    return [rounded(float(late_loss(said))), rounded(accuracy), sum(own.n_examples for own in said)]


def _diagnosed(model: torch.nn.Module) -> Record:
    rows = diagnose(model)
    kept = [asdict(layer) for layer in layer_records(rows)]
    columns = {name: [rounded(own[name]) for own in kept] for name in (*_COLUMNS, "findings")}
    value = float(score(rows)) if all(math.isfinite(own["spectral_norm"]) for own in kept) else math.nan
    return {"score": rounded(value), "rows": columns}


@click.command()
def main() -> None:
    """Train what is missing, one unit after the other, and pack it; an hour on one core."""
    for unit, n_left in watch_all():
        click.echo(f"{unit.case} {unit.kind} {unit.seed}: {n_left} units left", err=True)
    pack(NAME)


if __name__ == "__main__":
    main()
