"""What early freezing saves and costs, ``python -m benchmarks.freezing``: the tasks' own settings, twelve looks a run.

Times are of the process's CPU, one thread, looks and watching included; of the plain run the looks are counted too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import click
import torch

from objectives import digits, mnist1d_cnn, mnist1d_mlp
from ww_opt import FreezeSchedule, Task
from ww_opt.spectral import diagnose
from ww_opt.training.freezing import Freeze
from ww_opt.training.layerwise import LayerSettings, labelled, parameter_groups
from ww_opt.training.randomness import seeded, undisturbed
from ww_opt.training.run import first_batch, train

__all__ = ["CASES", "Outcome", "outcome"]

CASES: dict[str, tuple[Callable[[], Task], int]] = {
    "digits": (digits.make_task, digits.N_STEPS),
    "digits, twice as long": (digits.make_task, 2 * digits.N_STEPS),
    "mnist1d_cnn": (mnist1d_cnn.make_task, mnist1d_cnn.N_STEPS),
    "mnist1d_cnn, batch norm, twice as long": (
        partial(mnist1d_cnn.make_task, batch_norm=True),
        2 * mnist1d_cnn.N_STEPS,
    ),
    "mnist1d_mlp": (mnist1d_mlp.make_task, mnist1d_mlp.N_STEPS),
}
_N_LOOKS = 12


@dataclass(frozen=True)
class Outcome:
    """One run: seconds of CPU in all, sealed accuracy, and what was frozen when."""

    seconds: float
    accuracy: float
    events: tuple[Freeze, ...] = ()


def outcome(task: Task, n_steps: int, seed: int, *, freeze: bool) -> Outcome:
    """Train once, looking every twelfth of the run."""
    assert task.evaluate is not None
    with seeded(seed, "cpu"):
        model = task.build_model()
        groups = parameter_groups(model, dict.fromkeys(labelled(model), LayerSettings()))
        with undisturbed():
            batch = first_batch(task, n_steps)
        started = time.process_time()
        schedule = FreezeSchedule(model, lambda net: task.loss(net, batch)) if freeze else None
        for checkpoint in train(model, task, groups, n_steps=n_steps, interval_steps=n_steps // _N_LOOKS):
            rows = diagnose(model)
            if schedule is not None and checkpoint.step < n_steps:
                schedule.update(rows, checkpoint.step)
        seconds = time.process_time() - started
        return Outcome(seconds, task.evaluate(model), schedule.events if schedule is not None else ())


@click.command()
@click.option("--seeds", "n_seeds", default=3, show_default=True, help="Seeds of each task.")
def main(n_seeds: int) -> None:
    """Print a row for each task and seed, and the mean of each task."""
    torch.set_num_threads(1)
    click.echo(
        "| task | seed | plain | frozen early | saved | points lost | which layers after which share of the run |"
    )
    click.echo("|---" * 7 + "|")
    for name, (make_task, n_steps) in CASES.items():
        task = replace(make_task(), late_entry=None)
        outcome(task, n_steps // 10, 0, freeze=False)  # data and libraries are loaded once
        saved, lost = [], []
        for seed in range(n_seeds):
            plain, frozen = (outcome(task, n_steps, seed, freeze=own) for own in (False, True))
            saved.append(1 - frozen.seconds / plain.seconds)
            lost.append(100 * (plain.accuracy - frozen.accuracy))
            when = ", ".join(f"{' '.join(own.layers)} {own.step / n_steps:.2f}" for own in frozen.events) or "none"
            times = f"{plain.seconds:.2f} s | {frozen.seconds:.2f} s"
            click.echo(f"| {name} | {seed} | {times} | {saved[-1]:.0%} | {lost[-1]:.1f} | {when} |")
        click.echo(f"| {name} | mean | | | {sum(saved) / n_seeds:.0%} | {sum(lost) / n_seeds:.2f} | |")


if __name__ == "__main__":
    main()
