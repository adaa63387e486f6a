"""How ``ww-opt compare`` judges: false alarms on healthy pairs, and what it names of planted damage.

``python -m benchmarks.comparing`` trains ten small nets three times each, continues and fine-tunes them, and damages
one layer at a time (six minutes). ``--checkpoint PATH`` damages the layers of a checkpoint of yours as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from torch import nn

from benchmarks.damages import DAMAGES, HARMLESS, State, all_layers, damaged, healthy_update
from benchmarks.evidence.faults import HEALTHY
from benchmarks.evidence.kept import Record, diagnosis, read
from benchmarks.evidence.tasks import CASES, Case
from ww_opt.spectral import compare
from ww_opt.spectral.comparing.distances import Pair
from ww_opt.spectral.comparing.judging import judged_shifts
from ww_opt.spectral.comparing.shifts import Comparison, LayerShift
from ww_opt.training.layerwise import layers, parameter_groups
from ww_opt.training.run import train
from ww_opt.training.task import Task

__all__ = ["CHANGES", "Outcome", "of_checkpoint", "of_records"]

N_SEEDS, N_DAMAGED_SEEDS = 3, 2
_NOT_HERE = ("int4",)
COSTLY = 0.02
"""Accuracy from which a damage counts as costly."""


CHANGES = (
    "another seed", "half of it -> all", "trained on", "fine-tuned, a tenth of the rate", "fine-tuned, the full rate",
    *HARMLESS,
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One comparison: of what, the layer that was damaged (empty: none), what it cost, and what was said."""

    what: str
    layer: str
    cost: float
    said: Comparison

    @property
    def is_named(self) -> bool:
        """Whether the damaged layer was called broken; of a whole net, whether any was."""
        return any(not self.layer or item.name in (self.layer, f"{self.layer}.weight") for item in self.said.broken)

    @property
    def others(self) -> int:
        """How many other layers were."""
        return bool(self.layer) * sum(
            item.name not in (self.layer, f"{self.layer}.weight") for item in self.said.broken
        )


@dataclass(frozen=True)
class Trained:
    """What one training leaves: states by name, and their accuracy."""

    case: Case
    states: Mapping[str, State]
    accuracies: Mapping[str, float]


def _trained(case: Case, seed: int) -> Trained:
    torch.manual_seed(seed)
    task = replace(case.task(), late_entry=None)
    model = task.build_model()
    states: dict[str, State] = {}
    for share in _run(model, task, case, case.n_steps):
        if share == 0.5:
            states["half"] = _state(model)
    states["end"] = _state(model)
    others = replace(replace(case, options={**case.options, "seed": 1}).task(), late_entry=None)
    accuracies = {"end": _accuracy(model, task)}
    for name, own, n_steps, factor in (
        (CHANGES[2], task, case.n_steps // 2, 1.0),
        (CHANGES[3], others, case.n_steps // 4, 0.1),
        (CHANGES[4], others, case.n_steps // 2, 1.0),
    ):
        model.load_state_dict(states["end"])
        for _ in _run(model, own, case, n_steps, factor):
            pass
        states[name], accuracies[name] = _state(model), _accuracy(model, task)
    return Trained(case, states, accuracies)


def _run(model: nn.Module, task: Task, case: Case, n_steps: int, factor: float = 1.0) -> Iterator[float]:
    own = HEALTHY[case.name]
    settings = replace(own, lr=factor * (own.lr or 0.0))
    groups = parameter_groups(model, dict.fromkeys((layer.name for layer in layers(model)), settings))
    for checkpoint in train(model, task, groups, n_steps=n_steps, interval_steps=n_steps // 2):
        yield checkpoint.step / n_steps


def _state(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _accuracy(model: nn.Module, task: Task) -> float:
    assert task.evaluate is not None
    return task.evaluate(model)


def healthy_outcomes(trained: Mapping[tuple[str, int], Trained]) -> Iterator[Outcome]:
    """Compare the healthy pairs."""
    for (name, seed), own in trained.items():
        end = own.states["end"]
        task, model = own.case.task(), own.case.task().build_model()
        pairs = [(CHANGES[0], end, trained[name, other].states["end"]) for other in range(N_SEEDS) if other != seed]
        pairs += [(CHANGES[1], own.states["half"], end)]
        pairs += [(change, end, own.states[change]) for change in CHANGES[2:5]]
        pairs += [(what, end, all_layers(end, change)) for what, change in HARMLESS.items()]
        for what, old, new in pairs:
            cost = own.accuracies["end"] - own.accuracies[what] if what in own.accuracies else math.nan
            if what in HARMLESS:
                model.load_state_dict(new)
                cost = own.accuracies["end"] - _accuracy(model, task)
            yield Outcome(what, "", cost, compare(old, new))


def damaged_outcomes(trained: Iterable[Trained]) -> Iterator[Outcome]:
    """Compare an end with a fine-tune of it in which one layer is damaged."""
    for own in trained:
        old, base = own.states["end"], own.states[CHANGES[3]]
        task, model = own.case.task(), own.case.task().build_model()
        names = [name for name in base if base[name].ndim >= 2]
        for what, layer, new in damaged(base, _few(names)):
            model.load_state_dict(new)
            yield Outcome(what, layer, own.accuracies[CHANGES[3]] - _accuracy(model, task), compare(old, new))


def _few(names: list[str]) -> list[str]:
    """The layers of nets without blocks; of one with blocks the first block and the output layer."""
    return (
        [name for name in names if "blocks." not in name or name.startswith("blocks.0.")] if len(names) > 8 else names
    )


def of_records(records: Iterable[Record]) -> Iterator[Outcome]:
    """Compare the kept rows of trainings with a planted fault, each with the healthy one of the next seed.

    Rows alone are kept, so that rules on entries say nothing here.
    """
    records = list(records)
    healthy = {(own["case"], own["seed"]): own for own in records if own["fault"] == "healthy"}
    for own in records:
        beside = healthy.get((own["case"], own["seed"] + 1)) or healthy[own["case"], 0]
        if own["fault"] in _NOT_HERE:
            continue
        rows = [
            LayerShift(new.name, old, new, Pair(ratio=new.frobenius_norm / old.frobenius_norm))
            for old, new in zip(diagnosis(beside["rows"]), diagnosis(own["rows"]), strict=True)
        ]
        yield Outcome(own["fault"], own["layer"], beside["accuracy"] - own["accuracy"], Comparison(judged_shifts(rows)))


def of_checkpoint(path: Path) -> Iterator[Outcome]:
    """Damage each layer of a checkpoint after a stand-in for a fine-tune; accuracy is not known."""
    from ww_opt.spectral.reading.headers import headers

    opened = headers(path)
    state = {name: opened.state[header.key].clone() for name, header in opened.entries.items()}
    base = healthy_update(state)
    changes = {**HARMLESS, "int4, a step per channel, all layers": DAMAGES["int4, a step per channel"]}
    changes["int4, one step, all layers"] = DAMAGES["int4, one step"]
    yield Outcome("a stand-in for a fine-tune", "", math.nan, compare(state, base))
    for what, change in changes.items():
        yield Outcome(what, "", math.nan, compare(state, all_layers(state, change)))
    names = [name for name, tensor in state.items() if tensor.ndim >= 2]
    for what, layer, new in damaged(base, names):
        yield Outcome(what, layer, math.nan, compare(state, new))


def _print(outcomes: list[Outcome], rows: Iterable[str]) -> None:
    click.echo(
        "| planted | planted in | named | other layers named | accuracy lost, mean | costly | costly and named "
        "| rules |"
    )
    click.echo("|---" * 8 + "|")
    for what in rows:
        own = [item for item in outcomes if item.what == what]
        if not own:
            continue
        costs = [item.cost for item in own if not math.isnan(item.cost)]
        costly = [item for item in own if item.cost > COSTLY]
        found: dict[str, int] = {}
        for item in own:
            for broken in item.said.broken:
                for rule in broken.breaks:
                    found[rule.rule.label] = found.get(rule.rule.label, 0) + 1
        lost = f"{100 * statistics.fmean(costs):.1f}" if costs else ""
        told = ", ".join(f"{label} {n}" for label, n in sorted(found.items(), key=lambda item: -item[1])[:4])
        click.echo(
            f"| {what} | {len(own)} | {sum(item.is_named for item in own)} | {sum(item.others for item in own)} "
            f"| {lost} | {len(costly)} | {sum(item.is_named for item in costly)} | {told} |"
        )


def _print_healthy(outcomes: list[Outcome]) -> None:
    click.echo(
        "| pair | pairs | with a broken layer | layers | cosine | factor of the norm | change of alpha, 98 % "
        "| distance, 99 % |"
    )
    click.echo("|---" * 8 + "|")
    for what in dict.fromkeys(item.what for item in outcomes):
        own = [item for item in outcomes if item.what == what]
        rows = [row for item in own for row in item.said]
        wide = sorted(row.new.alpha - row.old.alpha for row in rows if row.new.is_judged and row.old.alpha > 0)
        alphas = (wide[len(wide) // 100], wide[-1 - len(wide) // 100]) if wide else (math.nan, math.nan)
        ratios = [row.pair.ratio for row in rows]
        cosines = [row.pair.cosine for row in rows]
        far = sorted(row.pair.distance for row in rows)[-1 - len(rows) // 100]
        click.echo(
            f"| {what} | {len(own)} | {sum(item.said.verdict == 'broken' for item in own)} | {len(rows)} "
            f"| {min(cosines):.2f} to {max(cosines):.2f} | {min(ratios):.2f} to {max(ratios):.2f} "
            f"| {alphas[0]:+.1f} to {alphas[1]:+.1f} | {far:.3f} |"
        )


@click.command()
@click.option("--checkpoint", "paths", multiple=True, type=click.Path(path_type=Path), help="Damage this one, too.")
@click.option("--first-seed", default=0, show_default=True, help="Bands were made on 0 to 2.")
@click.option("--trained/--no-trained", default=True, help="Train the small nets.")
def main(paths: tuple[Path, ...], first_seed: int, trained: bool) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if trained:
        own = {(case.name, seed): _trained(case, first_seed + seed) for case in CASES for seed in range(N_SEEDS)}
        click.echo("Healthy pairs\n")
        _print_healthy(list(healthy_outcomes(own)))
        click.echo("\nOne layer of a fine-tuned net damaged\n")
        few = [item for (_, seed), item in own.items() if seed < N_DAMAGED_SEEDS]
        _print(list(damaged_outcomes(few)), DAMAGES)
    click.echo("\nTrained anew with another seed and a fault (kept rows)\n")
    kept = list(of_records(read("faults")))
    _print(kept, dict.fromkeys(item.what for item in kept))
    for path in paths:
        click.echo(f"\n{path.name}\n")
        found = list(of_checkpoint(path))
        _print(found, dict.fromkeys(item.what for item in found))


if __name__ == "__main__":
    main()
