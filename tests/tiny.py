"""What does a study need at least? A task of random data that trains in milliseconds, for tests of the machinery."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from torch import Tensor, nn

from ww_opt import LayerwiseSpace, SpectralObjective, Study, Task

N_STEPS, INTERVAL_STEPS = 20, 5
N_LOOKS = N_STEPS // INTERVAL_STEPS
SPACE = LayerwiseSpace(lr=FloatDistribution(1e-3, 1e-1, log=True), weight_decay=1e-4)


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 40, generator=generator)
    y = (x[:, :3] + 0.1 * torch.randn(96, 3, generator=generator)).argmax(dim=1)
    return zip(torch.split(x, 32), torch.split(y, 32), strict=True)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def evaluate(model: nn.Module) -> float:
    with torch.no_grad():
        return sum(float((model(x).argmax(dim=1) == y).float().mean()) for x, y in batches()) / 3


TASK = Task(build_model, batches, loss, evaluate=evaluate, name="tiny", steps_per_epoch=3)
OBJECTIVE = SpectralObjective(TASK, SPACE, n_steps=N_STEPS, interval_steps=INTERVAL_STEPS)
# no start: tests of the machinery count what the sampler is asked; `test_beginning.py` is about the start
STUDY = Study(name="tiny", objective=OBJECTIVE, n_trials=3, pruner=NopPruner(), start=False)
