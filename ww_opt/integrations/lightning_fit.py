"""A Lightning fit that is about to run -> its plan: how long it is, on how many ranks, and its examples by number."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ww_opt.integrations.hosted import Plan, Team, steps_of
from ww_opt.training.late_entry import LateExamples

__all__ = ["check_fit", "plan_of", "training_loss"]

_SHARDING = ("FSDP", "ModelParallel", "DeepSpeed")


def check_fit(trainer: Any, module: Any) -> None:
    """Refuse a fit that cannot be a trial.

    Raises:
        ValueError: weights are sharded, ranks are started from inside the fit, or optimization is manual.
    """
    strategy = trainer.strategy
    if any(word in type(strategy).__name__ for word in _SHARDING):
        raise ValueError(
            f"A trial reads whole weights and has groups per layer, but {type(strategy).__name__} shards them: train "
            "trials on one device or with `strategy='ddp'`."
        )
    if trainer.world_size > 1 and getattr(strategy, "_start_method", "popen") != "popen":
        raise ValueError(
            "A trial and its records live in the process that runs the study, but this strategy starts others for the "
            "fit: take `strategy='ddp'`, and start the script with `torchrun`."
        )
    if not module.automatic_optimization:
        raise ValueError(
            f"A trial counts the steps of one optimizer, but {type(module).__name__} optimizes by hand: use "
            "`ww_opt.Run` in its `training_step`, or automatic optimization."
        )


def plan_of(trainer: Any, source: DataLoader[Any] | None, options: Mapping[str, Any]) -> Plan:
    """Return how Lightning cuts the fit into steps, and what examples it has by number.

    Args:
        trainer: about to fit.
        source: the loader of training, as one rank has it; ``None``: no late entry.
        options: of the late examples.

    Raises:
        TypeError, ValueError: as :meth:`ww_opt.LateExamples.from_loader`; or the length of the run is not known.
    """
    team = Team(int(trainer.world_size), int(trainer.global_rank), trainer.strategy.broadcast)
    team = team if team.n > 1 else Team()
    accumulate = int(trainer.accumulate_grad_batches)
    if source is None:
        n_steps = trainer.estimated_stepping_batches
        return Plan(steps_of(None, accumulate, None, 0 if math.isinf(n_steps) else int(n_steps)), 0, accumulate, team)
    assert source.batch_size is not None
    n_parts = accumulate * team.n
    batches = -(-len(source) // n_parts) * accumulate
    limit = trainer.limit_train_batches
    n_batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epochs = None if trainer.max_epochs in (None, -1) else int(trainer.max_epochs)
    whole: DataLoader[Any] = DataLoader(
        source.dataset,
        batch_size=source.batch_size * n_parts,
        collate_fn=source.collate_fn,
        drop_last=source.drop_last or n_parts > 1,  # parts of a step are as large as each other
    )
    late = LateExamples.from_loader(whole, **options)
    late = replace(late, take=partial(_take, trainer, late.take))
    if late.logits is not None:
        late = replace(late, logits=partial(_logits, trainer, late.logits))
    return Plan(steps_of(n_batches, accumulate, epochs, int(trainer.max_steps)), batches, accumulate, team, late)


def _take(trainer: Any, take: Callable[[torch.Tensor], Any], index: torch.Tensor) -> Any:
    """Return a batch as the fit has it: with the hooks of the module, on its device."""
    batch = trainer.precision_plugin.convert_input(take(index))
    batch = trainer.lightning_module.on_before_batch_transfer(batch, 0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _logits(trainer: Any, logits: Callable[..., Any], module: nn.Module, batch: Any) -> Any:
    with trainer.precision_plugin.forward_context():
        return logits(module, batch)


def training_loss(module: Any, batch: Any) -> torch.Tensor:
    """Return the loss of ``training_step``, with nothing logged."""
    takes_number = len(inspect.signature(module.training_step).parameters) > 1
    with _silent(module), module.trainer.precision_plugin.forward_context():
        found = module.training_step(batch, 0) if takes_number else module.training_step(batch)
    loss: torch.Tensor = found["loss"] if isinstance(found, Mapping) else found
    return loss


@contextmanager
def _silent(module: Any) -> Iterator[None]:
    for name in ("log", "log_dict"):
        vars(module)[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            del vars(module)[name]
