"""What looks cost: their share of the training time on every development objective, ``python -m benchmarks.overhead``.

Each row is the median over trials of a fresh study with late examples, at the cadence named. Looks are timed as a
trial does it: the clean loss, the diagnosis, the record, the report and the pruner; the rest is training.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from importlib import import_module

import click
import optuna
import torch

from ww_opt.search import records
from ww_opt.search.objective import SpectralObjective

__all__ = ["OBJECTIVES", "shares"]

OBJECTIVES = ("digits", "mnist1d_mlp", "mnist1d_cnn", "characters")


def shares(objective: SpectralObjective, n_trials: int) -> list[tuple[int, float, float]]:
    """Run trials of random settings, the first one uncounted.

    Returns:
        Number of looks, seconds of training, and seconds of looks, of each trial.
    """
    study = optuna.create_study(
        direction=objective.direction,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    study.optimize(objective, n_trials=n_trials + 1)
    spent = [(trial, records.read(trial, "seconds")) for trial in study.trials[1:]]
    return [(len(records.looks(trial)), own["training"], own["looks"]) for trial, own in spent]


@click.command()
@click.option("--trials", "n_trials", default=3, show_default=True, help="Trials of each row.")
@click.option("--threads", default=1, show_default=True, help="Threads of torch.")
def main(n_trials: int, threads: int) -> None:
    """Print the table: a look every tenth of the run, as it was, and the default cadence."""
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    click.echo("| objective | cadence | looks | training | a look | share of training |\n" + "|---" * 6 + "|")
    for name in OBJECTIVES:
        module = import_module(f"objectives.{name}")
        default = SpectralObjective(module.make_task(), module.SPACE, n_steps=module.N_STEPS, guard="late")
        for cadence, interval in (("every tenth", module.N_STEPS // 10), ("default", None)):
            found = shares(replace(default, interval_steps=interval), n_trials)
            n_looks, training, looks = (statistics.median(column) for column in zip(*found, strict=True))
            share = statistics.median(own[2] / own[1] for own in found)
            cells = [name, cadence, f"{n_looks:.0f}", f"{training:.2f} s", f"{looks / n_looks * 1e3:.1f} ms"]
            click.echo(f"| {' | '.join([*cells, f'{share:.1%}'])} |")


if __name__ == "__main__":
    main()
