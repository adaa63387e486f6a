"""Eight short trainings, each pruned by its weights, its loss and the other trials; a few seconds."""

import optuna
import optunahub
import torch
from torch import nn

module = optunahub.load_module(package="pruners/spectral_pruner")
N_STEPS = 60

generator = torch.Generator().manual_seed(0)
x = torch.randn(256, 64, generator=generator)
y = x[:, :4].argmax(dim=1)


def objective(trial: optuna.Trial) -> float:
    """Train a small network with one learning rate, and report its spectra five times."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 3e1, log=True))
    value, first_loss = float("nan"), None
    for step in range(1, N_STEPS + 1):
        loss = nn.functional.cross_entropy(model(x), y)
        first_loss = loss.item() if first_loss is None else first_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 12 == 0:  # raises optuna.TrialPruned where the pruner says so
            value = module.report(trial, model, step, n_steps=N_STEPS, train_loss=loss.item(), first_loss=first_loss)
    return value


if __name__ == "__main__":
    study = optuna.create_study(pruner=module.SpectralPruner(), sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=8)
    for trial in study.trials:
        print(trial.number, trial.state.name, *(decision.words for decision in module.decisions(trial)), sep="; ")
