"""Planted faults, one layer at a time: how often is the right layer named, and how often is a healthy one?

Every run trains a task with settings that work, but for one fault in one judged layer. A layer is named when one of its
findings is an alarm. Nothing is compared with another run: the last weights are all there is.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.evidence.kept import DATA, Record
from benchmarks.evidence.tasks import CASES
from ww_opt.spectral import Finding, diagnose
from ww_opt.spectral.scores import judged
from ww_opt.training.layerwise import LayerSettings, layers, parameter_groups
from ww_opt.training.run import train

__all__ = ["ALARMS", "FAULTS", "HEALTHY", "Planted", "named", "plant", "plant_all", "read_faults", "table", "units"]

ALARMS = (
    Finding.RANDOM,
    Finding.UNDER_TRAINED,
    Finding.OVER_TRAINED,
    Finding.TRAP,
    Finding.RANK_COLLAPSE,
    Finding.OVERGROWN,
    Finding.SHRUNK,
    Finding.QUANTISED,
)
"""Findings that say that a layer is broken."""
HEALTHY: Mapping[str, LayerSettings] = {
    "mlp_sgd_0": LayerSettings(lr=0.05, weight_decay=1e-3),
    "mlp_adamw_20": LayerSettings(lr=2e-3, weight_decay=0.05),
    "cnn_adamw_0": LayerSettings(lr=2e-3, weight_decay=0.05),
    "cnn_sgd_20": LayerSettings(lr=0.1, weight_decay=1e-3),
    "digits_sgd_0": LayerSettings(lr=0.05, weight_decay=1e-3),
    "digits_sgd_20": LayerSettings(lr=0.05, weight_decay=1e-3),
}
"""Settings that work, by task."""
FAULTS = ("healthy", "lr x100", "lr 0", "weight decay x100", "huge entry", "frozen at init", "int4")


class Planted(NamedTuple):
    """One run with one fault; ``layer`` is empty where there is none."""

    case: str
    fault: str
    layer: str
    seed: int


def plant(unit: Planted) -> Record:
    """Train with the fault and return the findings of all judged layers."""
    torch.set_num_threads(1)
    torch.manual_seed(unit.seed)
    case = next(case for case in CASES if case.name == unit.case)
    task = replace(case.task(), late_entry=None)
    model = task.build_model()
    settings = dict.fromkeys((layer.name for layer in layers(model)), HEALTHY[unit.case])
    if unit.layer:
        settings[unit.layer] = _broken(settings[unit.layer], unit.fault)
    weight = model.get_parameter(f"{unit.layer}.weight") if unit.layer else None
    frozen = weight.detach().clone() if weight is not None else None
    loss = math.nan
    for checkpoint in train(
        model, task, parameter_groups(model, settings), n_steps=case.n_steps, interval_steps=max(case.n_steps // 40, 1)
    ):
        loss = checkpoint.train_loss
        with torch.no_grad():
            if weight is not None and unit.fault == "huge entry" and 2 * checkpoint.step == case.n_steps:
                weight.flatten()[7] = 40 * weight.std()  # one step without clipping
            if weight is not None and frozen is not None and unit.fault == "frozen at init":
                weight.copy_(frozen)
    if weight is not None and unit.fault == "int4":
        with torch.no_grad():
            step = weight.flatten(1).abs().amax(dim=1).clamp_min(1e-12).view(-1, *[1] * (weight.ndim - 1)) / 7
            weight.copy_((weight / step).round() * step)
    rows = diagnose(model)
    looked_at = {row.name for row in judged(rows)} | {row.name for row in rows if row.M > 0 and not row.is_analysed}
    found = {row.name: [item.name for item in row.findings] for row in rows if row.name in looked_at}
    return {**unit._asdict(), "loss": loss if math.isfinite(loss) else None, "findings": found}


def _broken(own: LayerSettings, fault: str) -> LayerSettings:
    lr, weight_decay = own.lr or 0.0, own.weight_decay or 0.0
    changed = {"lr x100": 100 * lr, "lr 0": 0.0}
    decays = {"weight decay x100": 100 * weight_decay}
    return replace(own, lr=changed.get(fault, lr), weight_decay=decays.get(fault, weight_decay))


def units(n_seeds: int = 3) -> list[Planted]:
    """List all runs: the healthy ones of each task, and each fault in each judged layer."""
    found = []
    for case in CASES:
        if case.name not in HEALTHY:
            continue
        names = [row.name for row in judged(diagnose(case.task().build_model()))]
        for seed in range(n_seeds):
            found.append(Planted(case.name, "healthy", "", seed))
            found += [Planted(case.name, fault, name, seed) for fault in FAULTS[1:] for name in names]
    return found


def plant_all(workers: int, folder: Path = DATA) -> Iterator[tuple[Record, int]]:
    """Run what is missing; yield each run when it is kept, with the number of those still to come."""
    done = {Planted(*(record[name] for name in Planted._fields)) for record in read_faults(folder)}
    todo = [unit for unit in units() if unit not in done]
    with ProcessPoolExecutor(max_workers=workers) as pool:
        for n_left, record in zip(reversed(range(len(todo))), pool.map(plant, todo), strict=True):
            with (folder / "faults.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
            yield record, n_left


def read_faults(folder: Path = DATA) -> list[Record]:
    """Read what was kept; a torn last line is left out."""
    path = folder / "faults.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def named(record: Record) -> list[str]:
    """Layers with an alarm, or with weights that are not finite."""
    alarms = {item.name for item in ALARMS}
    return [
        layer
        for layer, found in record["findings"].items()
        if alarms.intersection(found) or (found == ["NOT_FITTED"] and record["loss"] is None)
    ]


def table(folder: Path = DATA) -> list[tuple[str, int, float, float, float]]:
    """Return, by fault: runs, share in which the layer is named, in which no other is, and in which any is named."""
    by_fault: dict[str, list[Record]] = defaultdict(list)
    for record in read_faults(folder):
        by_fault[record["fault"]].append(record)
    rows = []
    for fault in FAULTS:
        own = by_fault[fault]
        if own:
            right = [record["layer"] in named(record) for record in own]
            alone = [named(record) == [record["layer"]] for record in own]
            anyone = [bool(named(record)) for record in own]
            shares = [sum(part) / len(own) for part in (right, alone, anyone)]
            rows.append((fault, len(own), shares[0], shares[1], shares[2]))
    return rows
