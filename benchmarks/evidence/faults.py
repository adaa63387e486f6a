"""Planted causes: a run of settings that work, but for one fault; what its last weights look like is kept, row by row.

Most faults sit in one judged layer, three in the whole net. One healthy run gives several: its weights rounded to four
bits, its weights after a twentieth of the steps, and its weights after 100 further steps on labels drawn at random.
Rows are kept, not decisions: findings and suggestions are judged from them again in seconds (`verdicts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.evidence.kept import DATA, Record, append, columns, read, rounded
from benchmarks.evidence.tasks import CASES, Case
from ww_opt.spectral import diagnose
from ww_opt.spectral.scores import judged
from ww_opt.training.layerwise import LayerSettings, layers, parameter_groups
from ww_opt.training.run import train
from ww_opt.training.task import Task, constant

__all__ = [
    "FAULTS",
    "HEALTHY",
    "IN_ONE_LAYER",
    "IN_THE_NET",
    "JUDGED_TASKS",
    "OTHER_TASKS",
    "Planted",
    "plant",
    "plant_all",
    "units",
]

HEALTHY: Mapping[str, LayerSettings] = {
    "mlp_sgd_0": LayerSettings(lr=0.05, weight_decay=1e-3),
    "mlp_adamw_20": LayerSettings(lr=2e-3, weight_decay=0.05),
    "cnn_adamw_0": LayerSettings(lr=2e-3, weight_decay=0.05),
    "cnn_sgd_20": LayerSettings(lr=0.1, weight_decay=1e-3),
    "digits_sgd_0": LayerSettings(lr=0.05, weight_decay=1e-3),
    "digits_sgd_20": LayerSettings(lr=0.05, weight_decay=1e-3),
    "cnn_bn_adamw_40": LayerSettings(lr=2e-3, weight_decay=0.05),
    "characters_adamw_0": LayerSettings(lr=1e-2, weight_decay=0.05),
    "mlp_sgd_40": LayerSettings(lr=0.05, weight_decay=1e-3),
    "digits_adamw_40": LayerSettings(lr=2e-3, weight_decay=0.05),
}
"""Settings that work, by task."""
JUDGED_TASKS = tuple(HEALTHY)[:6]
"""Tasks that the rules were made on."""
OTHER_TASKS = tuple(HEALTHY)[6:]
"""Tasks that the rules were only tried on, when they were made; the first two have norm layers."""
IN_ONE_LAYER = ("lr x100", "lr 0", "weight decay x100", "huge entry", "frozen at init")
"""Faults that take a run of their own for every judged layer."""
IN_THE_NET = ("all lr x30", "all lr /30", "all weight decay x100", "a tenth of the data")
"""Faults of the whole net, which take a run of their own."""
FAULTS = (
    "healthy", *IN_ONE_LAYER, "int4", *IN_THE_NET, "too little training", "wrong labels", "wrong labels later",
)  # fmt: skip
_FURTHER_STEPS = 100
_AT_RANDOM = 0.9
"""Share of labels replaced by another of ten classes, after which the right one is as frequent as any."""
N_SEEDS, N_HEALTHY_SEEDS = 3, 10


class Planted(NamedTuple):
    """One fault; ``layer`` is empty where it is in none or in the whole net."""

    case: str
    fault: str
    layer: str
    seed: int


def plant(unit: Planted) -> list[Record]:
    """Train with the fault and return the rows of all layers; of a healthy run also what is made of it."""
    torch.set_num_threads(1)
    torch.manual_seed(unit.seed)
    case = next(case for case in CASES if case.name == unit.case)
    task = replace(_task(case, unit.fault), late_entry=None)
    model = task.build_model()
    settings = dict.fromkeys((layer.name for layer in layers(model)), _in_the_net(HEALTHY[unit.case], unit.fault))
    if unit.layer:
        settings[unit.layer] = _broken(settings[unit.layer], unit.fault)
    weight = model.get_parameter(f"{unit.layer}.weight") if unit.layer else None
    frozen = weight.detach().clone() if weight is not None else None
    found, loss = [], math.nan
    for checkpoint in train(
        model, task, parameter_groups(model, settings), n_steps=case.n_steps, interval_steps=max(case.n_steps // 40, 1)
    ):
        loss = checkpoint.train_loss
        if unit.fault == "healthy" and 20 * checkpoint.step == case.n_steps:
            found.append(_record(unit._replace(fault="too little training"), model, task, loss))
        with torch.no_grad():
            if weight is not None and unit.fault == "huge entry" and 2 * checkpoint.step == case.n_steps:
                weight.flatten()[7] = 40 * weight.std()  # one step without clipping
            if weight is not None and frozen is not None and unit.fault == "frozen at init":
                weight.copy_(frozen)
    found.append(_record(unit, model, task, loss))
    return [*found, *_made_of(unit, model, case, loss)] if unit.fault == "healthy" else found


def _made_of(unit: Planted, model: nn.Module, case: Case, loss: float) -> Iterator[Record]:
    """Faults planted into the weights of a healthy run."""
    task = case.task()
    for row in judged(diagnose(model)):
        weight = model.get_parameter(row.parameter)
        before = weight.detach().clone()
        with torch.no_grad():
            step = weight.flatten(1).abs().amax(dim=1).clamp_min(1e-12).view(-1, *[1] * (weight.ndim - 1)) / 7
            weight.copy_((weight / step).round() * step)
        yield _record(unit._replace(fault="int4", layer=row.name), model, task, loss)
        with torch.no_grad():
            weight.copy_(before)
    later = replace(_labelled_at_random(case), late_entry=None, schedule=constant)
    settings = dict.fromkeys((layer.name for layer in layers(model)), HEALTHY[unit.case])
    groups = parameter_groups(model, settings)
    *_, last = train(model, later, groups, n_steps=_FURTHER_STEPS, interval_steps=_FURTHER_STEPS)
    yield _record(unit._replace(fault="wrong labels later"), model, task, last.train_loss)


def _task(case: Case, fault: str) -> Task:
    if fault == "wrong labels":
        return _labelled_at_random(case)
    if fault == "a tenth of the data":
        return replace(case, options={**case.options, "n_train": int(case.options["n_train"]) // 10}).task()
    return case.task()


def _labelled_at_random(case: Case) -> Task:
    return replace(case, options={**case.options, "label_noise": _AT_RANDOM}).task()


def _record(unit: Planted, model: nn.Module, task: Task, loss: float) -> Record:
    assert task.evaluate is not None
    accuracy = task.evaluate(model)
    return {**unit._asdict(), "loss": rounded(loss), "accuracy": accuracy, "rows": columns(diagnose(model))}


def _in_the_net(own: LayerSettings, fault: str) -> LayerSettings:
    """Settings of every layer where the fault is one of the whole net."""
    lr = {"all lr x30": 30.0, "all lr /30": 1 / 30}.get(fault, 1.0) * (own.lr or 0.0)
    decay = {"all weight decay x100": 100.0}.get(fault, 1.0) * (own.weight_decay or 0.0)
    return replace(own, lr=lr, weight_decay=decay)


def _broken(own: LayerSettings, fault: str) -> LayerSettings:
    lr, weight_decay = own.lr or 0.0, own.weight_decay or 0.0
    changed = {"lr x100": 100 * lr, "lr 0": 0.0}
    decays = {"weight decay x100": 100 * weight_decay}
    return replace(own, lr=changed.get(fault, lr), weight_decay=decays.get(fault, weight_decay))


def units() -> list[Planted]:
    """List the runs: healthy ones, nets on random labels, and each fault that takes a run in each judged layer."""
    found = []
    for case in CASES:
        n_healthy, n_broken = (N_HEALTHY_SEEDS, N_SEEDS) if case.name in JUDGED_TASKS else (N_SEEDS, 1)
        for seed in range(n_healthy if case.name in HEALTHY else 0):
            found += [Planted(case.name, fault, "", seed) for fault in ("healthy", "wrong labels")]
            if seed < n_broken:
                names = [row.name for row in judged(diagnose(case.task().build_model()))]
                found += [Planted(case.name, fault, name, seed) for fault in IN_ONE_LAYER for name in names]
                found += [Planted(case.name, fault, "", seed) for fault in IN_THE_NET]
    return found


def plant_all(workers: int, folder: Path = DATA) -> Iterator[tuple[Record, int]]:
    """Run what is missing; yield each run's first record when it is kept, with the number of runs still to come."""
    done = {Planted(*(record[name] for name in Planted._fields)) for record in read("faults", folder)}
    todo = [unit for unit in units() if unit not in done]
    with ProcessPoolExecutor(max_workers=workers) as pool:
        for n_left, records in zip(reversed(range(len(todo))), pool.map(plant, todo), strict=True):
            append("faults", records, folder)
            yield records[-1], n_left
