"""The same search on the spectral score and on a validation split: what does the pick of each lose on the test set?

Digits, clean and with wrong labels; TPE, the same budget of trials, a few seeds. The validation split is taken out of
the training set and shares its wrong labels. The sealed test set is opened to judge, for every trial.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import optuna
import torch
from torch import nn

from objectives import digits
from objectives._classification import Examples, accuracy
from ww_opt import SpectralObjective, Task

N_STEPS = 600


def _split(task: Task, share: float) -> tuple[Task, Examples]:
    """Take a validation set out of a task's training examples."""
    parts = list(task.epoch())
    whole = Examples(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
    n_held_out = round(share * len(whole))
    held_out = whole.take(torch.arange(n_held_out))
    rest = whole.take(torch.arange(n_held_out, len(whole)))

    def batches() -> Iterator[Examples]:
        return (rest.take(index) for index in torch.split(torch.randperm(len(rest)), 64))

    return replace(task, batches=batches), held_out


def _search(task: Task, held_out: Examples | None, guard: bool, seed: int, n_trials: int) -> tuple[float, float]:
    """Accuracy on the test set of the pick, and of the best trial in hindsight."""
    tested: dict[int, float] = {}
    validated: dict[int, float] = {}

    def on_trained(trial: optuna.Trial, model: nn.Module) -> None:
        assert task.evaluate is not None
        tested[trial.number] = task.evaluate(model)
        if held_out is not None:
            validated[trial.number] = accuracy(model, held_out)

    objective = SpectralObjective(task, digits.SPACE, N_STEPS, N_STEPS, guard=guard, on_trained=on_trained)

    def value(trial: optuna.Trial) -> float:
        score = objective(trial)
        return score if held_out is None else -validated[trial.number]

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(value, n_trials=n_trials)
    return tested[study.best_trial.number], max(tested.values())


def main(n_seeds: int, n_trials: int) -> None:
    """Print the table: mean accuracy of the picks, and the standard error over seeds."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"Test accuracy of the pick, %, mean of {n_seeds} searches of {n_trials} trials\n")
    print(
        "| wrong labels | spectral, weights alone | with the guard | 10 % validation split | best trial in hindsight |"
    )
    print("|---|---|---|---|---|")
    for noise in (0.0, 0.2, 0.4):
        full = digits.make_task(label_noise=noise, n_train=1000)
        reduced, held_out = _split(full, 0.1)
        cells: list[str] = []
        oracle: list[float] = []
        for task, validation, guard in ((full, None, False), (full, None, True), (reduced, held_out, False)):
            found = [_search(task, validation, guard, seed, n_trials) for seed in range(n_seeds)]
            picks = 100 * np.array([pick for pick, _ in found])
            oracle += [100 * best for _, best in found]
            cells.append(f"{picks.mean():.1f} ± {picks.std(ddof=1) / np.sqrt(n_seeds):.1f}")
        print(f"| {noise:.0%} | {' | '.join(cells)} | {np.mean(oracle):.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--trials", type=int, default=25)
    options = parser.parse_args()
    main(options.seeds, options.trials)
