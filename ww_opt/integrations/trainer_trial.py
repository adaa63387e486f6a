"""A Trainer that is about to run -> a hosted trial: how long the run is, on how many ranks, its data, its optimizer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ww_opt.integrations.hosted import EntryBatches, Hosted, Plan, Team, steps_of
from ww_opt.integrations.trainer_data import late_examples, own_loss

__all__ = ["begin", "layerwise", "team_of"]

_OWN_GROUPS = {"params", "model", "optimizer_dict"}
"""Options by which an optimizer of transformers brings groups of its own."""


def team_of(trainer: Any) -> Team:
    """Return the processes that the Trainer runs on."""
    n, rank = int(trainer.args.world_size), int(trainer.args.process_index)
    return Team(n, rank, _broadcast) if n > 1 else Team()


def _broadcast(value: Any) -> Any:
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def begin(trainer: Any, loader: DataLoader[Any]) -> DataLoader[Any]:
    """Lay the trial over the run that the Trainer is about to make, and return the loader of it."""
    _check(trainer)
    args, asked = trainer.args, trainer.asked
    accumulate = int(args.gradient_accumulation_steps)
    n_batches = len(loader) if _has_length(loader) else None
    n_steps = steps_of(
        n_batches, accumulate, None if args.max_steps > 0 else args.num_train_epochs, int(args.max_steps)
    )
    epoch_steps = n_steps if n_batches is None else -(-n_batches // accumulate)
    plan = Plan(n_steps, epoch_steps * accumulate, accumulate, team_of(trainer))
    if asked.late is not False and not trainer._is_final:
        plan = replace(plan, late=late_examples(trainer, loader, plan))
    trainer.spectral.begin(Hosted(trainer._asked_trial, trainer.model, plan, asked, partial(own_loss, trainer)))
    if plan.late is None:
        return loader
    seed = args.seed if args.data_seed is None else args.data_seed
    # left as it is by accelerate, which would deal the batches out once more; the Trainer moves them to the device
    return DataLoader(
        loader.dataset,
        batch_sampler=EntryBatches(lambda: plan, lambda: int(trainer.state.global_step), seed),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _has_length(loader: DataLoader[Any]) -> bool:
    try:
        return len(loader) > 0
    except TypeError:
        return False


def _check(trainer: Any) -> None:
    args = trainer.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        name = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
        raise ValueError(
            f"A trial reads whole weights and has groups per layer, but {name} shards them: train trials on one device "
            "or with DDP."
        )
    if args.auto_find_batch_size:
        raise ValueError(
            "The length of a trial must be known, but `auto_find_batch_size=True` changes it on the way: give "
            "`per_device_train_batch_size`."
        )


def layerwise(trainer: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Build the Trainer's own optimizer on groups of layers; what those leave out is as its arguments say.

    Raises:
        ValueError: the optimizer makes groups of its own.
    """
    build, options = trainer.optimizer_cls_and_kwargs or trainer.get_optimizer_cls_and_kwargs(
        trainer.args, trainer.model
    )
    if not isinstance(build, type) or not issubclass(build, torch.optim.Optimizer) or _OWN_GROUPS & set(options):
        raise ValueError(
            f"Settings per layer need an optimizer that takes groups, but {getattr(build, '__name__', build)} is given "
            "its own: take `optim='adamw_torch'`, or leave `space` out."
        )
    optimizer: Optimizer = build([{"weight_decay": trainer.args.weight_decay, **own} for own in groups], **options)
    return optimizer
