"""Twenty trials of a made-up network with six layers, whose best learning rate rises with depth; a few seconds."""

import math

import optuna
import optunahub

module = optunahub.load_module(package="samplers/layerwise_sampler")
LAYERS = 6


def objective(trial: optuna.Trial) -> float:
    """Say how far each layer's rate is from its best, in decades."""
    rates = [trial.suggest_float(f"lr/{layer}", 1e-5, 1e-1, log=True) for layer in range(LAYERS)]
    return sum((math.log10(rate) + 4.0 - 0.3 * layer) ** 2 for layer, rate in enumerate(rates)) / LAYERS


if __name__ == "__main__":
    study = optuna.create_study(sampler=module.LayerwiseSampler(seed=0))
    study.optimize(objective, n_trials=20)
    print(study.best_value, study.best_params)
