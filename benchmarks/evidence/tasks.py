"""The development tasks as data: what is trained, in which space, for how long."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from torch.optim import SGD, AdamW

from benchmarks.evidence.ensemble import Settings
from objectives import characters, digits, mnist1d_cnn, mnist1d_mlp
from ww_opt.search.space import LayerwiseSpace
from ww_opt.training.labels import Label, by_block, by_layer
from ww_opt.training.task import Task

__all__ = ["CASES", "LOOKS", "N_CONFIGURATIONS", "Case", "Configuration", "configurations"]

N_CONFIGURATIONS = 60
LOOKS = 20
"""Looks at a run, evenly spaced; 25, 50, 75, 90 and 100 % of every schedule are among them."""

# fused: the same numbers with fewer calls
_OPTIMIZERS = {"sgd": partial(SGD, lr=0.05, momentum=0.9, fused=True), "adamw": partial(AdamW, lr=1e-3, fused=True)}


def _space(optimizer: str, dropout: float, label: Label) -> LayerwiseSpace:
    adamw = optimizer == "adamw"
    return LayerwiseSpace(
        lr=FloatDistribution(2e-4, 5e-2, log=True) if adamw else FloatDistribution(1e-3, 3e-1, log=True),
        weight_decay=FloatDistribution(1e-4, 1.0, log=True) if adamw else FloatDistribution(1e-6, 1e-2, log=True),
        dropout=FloatDistribution(0.0, dropout),
        label=label,
    )


@dataclass(frozen=True)
class Case:
    """One development task.

    Args:
        name: of its file and in tables.
        make: ``make_task`` of an objective.
        options: passed to ``make``; the share of wrong labels among them.
        optimizer: ``sgd`` or ``adamw``.
        n_steps: length of a run, a multiple of ``LOOKS``.
        dropout: largest dropout in the space.
        n_test: examples in the objective's sealed part; 0: it is large, and the unused ones are not judged on.
        label: which layers share their settings.
        together: configurations trained at once; as many as the processor's cache likes.
    """

    name: str
    make: Callable[..., Task]
    options: dict[str, Any]
    optimizer: str
    n_steps: int
    dropout: float = 0.5
    n_test: int = 1000
    label: Label = by_layer
    together: int = 15

    @property
    def label_noise(self) -> float:
        """Share of wrong training labels."""
        return float(self.options.get("label_noise", 0.0))

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        return int(self.options.get("batch_size", 32))

    @property
    def n_epochs(self) -> float:
        """Epochs of a run."""
        return self.n_steps * self.batch_size / int(self.options["n_train"])

    @property
    def space(self) -> LayerwiseSpace:
        """What the configurations are drawn from."""
        return _space(self.optimizer, self.dropout, self.label)

    def task(self) -> Task:
        """Build the task."""
        return self.make(**self.options, optimizer=_OPTIMIZERS[self.optimizer])

    def whole(self) -> Task:
        """Build the task with all its training examples, clean: those that no run uses make the test sharper."""
        return self.make(**{**self.options, "n_train": None, "label_noise": 0.0})


_MLP = {"n_train": 1500, "batch_size": 64, "width": 128}
_CNN = {"n_train": 1000, "batch_size": 64}
_BATCH_NORM = {"n_train": 800, "batch_size": 64, "batch_norm": True}
_DIGITS = {"n_train": 600, "batch_size": 64, "width": 96}
_TEXT = {"n_train": 800, "width": 48}

CASES: Sequence[Case] = (
    Case("mlp_sgd_0", mnist1d_mlp.make_task, {**_MLP, "n_train": 1000}, "sgd", 640),
    Case("mlp_adamw_20", mnist1d_mlp.make_task, {**_MLP, "label_noise": 0.2}, "adamw", 640, 0.3),
    Case("mlp_sgd_40", mnist1d_mlp.make_task, {**_MLP, "label_noise": 0.4}, "sgd", 800, 0.2),
    Case("cnn_adamw_0", mnist1d_cnn.make_task, _CNN, "adamw", 400),
    Case("cnn_sgd_20", mnist1d_cnn.make_task, {**_CNN, "label_noise": 0.2}, "sgd", 400, 0.3),
    Case("cnn_bn_adamw_40", mnist1d_cnn.make_task, {**_BATCH_NORM, "label_noise": 0.4}, "adamw", 400, 0.2),
    Case("digits_sgd_0", digits.make_task, {**_DIGITS, "n_train": 400}, "sgd", 600, n_test=450),
    Case("digits_sgd_20", digits.make_task, {**_DIGITS, "label_noise": 0.2}, "sgd", 600, 0.3, n_test=450),
    Case("digits_adamw_40", digits.make_task, {**_DIGITS, "label_noise": 0.4}, "adamw", 600, 0.2, n_test=450),
    Case("characters_adamw_0", characters.make_task, _TEXT, "adamw", 240, 0.3, 0, by_block(), 5),
)  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """One draw from a case's space: what a run is trained with, and the parameters that say so."""

    number: int
    parameters: dict[str, float]
    settings: Settings


def configurations(case: Case, n: int = N_CONFIGURATIONS) -> list[Configuration]:
    """Draw ``n`` configurations at random; the first ones do not depend on ``n``."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=zlib.crc32(case.name.encode())))
    model, found = case.task().build_model(), []
    for number in range(n):
        trial = study.ask()
        settings = case.space.suggest(trial, model)
        found.append(Configuration(number, dict(trial.params), settings))
    return found
