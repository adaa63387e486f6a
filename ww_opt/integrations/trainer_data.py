"""A Trainer's data and loss -> late examples, and how they are judged: by logits where those give its own loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ww_opt.integrations.hosted import Plan
from ww_opt.training.late_entry import LateExamples
from ww_opt.training.modes import evaluating
from ww_opt.training.randomness import undisturbed

__all__ = ["late_examples", "own_loss"]

_CLOSE = 1e-4
"""Relative difference under which a loss is the Trainer's own. An untrained model's losses lie close together: one in
another way differs by some percent an example, one in the same way by rounding."""
_CLOSE_IN_HALF = 1e-2
_N_ASKED = 8
"""Examples by which that is told, one by one."""


def late_examples(trainer: Any, loader: DataLoader[Any], plan: Plan) -> LateExamples:
    """Return the training examples by number, as the Trainer makes batches of them, judged by what gives its loss.

    Args:
        trainer: about to train; ``asked.late`` says what differs from the usual.
        loader: its own, of training.
        plan: of the run.

    Raises:
        TypeError, ValueError: as :meth:`ww_opt.LateExamples.from_loader`; or examples are grouped by length.
    """
    args, options = trainer.args, trainer.asked.late_options
    strategy = str(getattr(args, "train_sampling_strategy", "random"))
    if getattr(args, "group_by_length", False) or strategy.split(".")[-1].lower() not in ("random", "sequential"):
        raise ValueError(
            "Late entry draws all examples alike, but the Trainer groups them by length: leave that out, or give "
            "`late=False`."
        )
    whole: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_size=int(args.train_batch_size) * plan.n_parts,
        collate_fn=loader.collate_fn,
        drop_last=bool(args.dataloader_drop_last) or plan.n_parts > 1,  # parts of a step are as large as each other
    )
    if "logits" in options:
        return LateExamples.from_loader(whole, **options)
    late = LateExamples.from_loader(whole, **options)
    some = late.over(plan.n_steps).present[:_N_ASKED]
    device = next((own.device for own in trainer.model.parameters()), torch.device("cpu"))
    with undisturbed(device), evaluating(trainer.model), torch.no_grad():
        found = _reading(trainer, (late.take(one) for one in torch.split(some, 1)))
    return late if found is None else LateExamples.from_loader(whole, **(found | options))


def own_loss(trainer: Any, model: nn.Module, batch: Any) -> torch.Tensor:
    """Return the Trainer's loss of a batch, its mean."""
    loss: torch.Tensor = _outputs(trainer, model, batch)[0]
    return loss.mean()


def _outputs(trainer: Any, model: nn.Module, batch: Any) -> tuple[torch.Tensor, Any, Any]:
    """Loss and outputs as the Trainer computes them, and the labels."""
    inputs = trainer._prepare_inputs(dict(batch))
    labels = inputs.get("labels")
    with trainer.compute_loss_context_manager():
        loss, outputs = trainer.compute_loss(model, dict(inputs), return_outputs=True)
    return loss, outputs, labels


def _reading(trainer: Any, batches: Iterable[Any]) -> dict[str, Any] | None:
    """Find how logits and labels give the Trainer's own loss, batch by batch; ``None``: in none of the usual ways."""
    errors = [0.0] * len(_WAYS)
    near, n_asked = _CLOSE, 0
    for batch in batches:
        loss, outputs, labels = _outputs(trainer, trainer.model, batch)
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
        if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor):
            return None
        own = float(loss.mean())
        if not math.isfinite(own):  # an example without labels
            continue
        near, n_asked = _CLOSE if loss.dtype == torch.float32 else _CLOSE_IN_HALF, n_asked + 1
        for number, (kind, cut) in enumerate(_WAYS):
            pair = cut(logits.float(), labels)
            error = abs(_loss_of(kind, *pair) / own - 1.0) if own and _fits(kind, *pair) else math.inf
            errors[number] = max(errors[number], error)
    best = min(range(len(_WAYS)), key=errors.__getitem__)
    if not n_asked or not errors[best] <= near:
        return None
    kind, cut = _WAYS[best]
    return {"logits": partial(_logits, trainer, cut), "kind": kind, "class_dim": -1 if kind == "classes" else None}


def _logits(trainer: Any, cut: Callable[..., Any], model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = trainer._prepare_inputs(dict(batch))
    with trainer.compute_loss_context_manager():
        outputs = model(**inputs)
    pair: tuple[torch.Tensor, torch.Tensor] = cut(outputs["logits"], inputs["labels"])
    return pair


def _as_they_are(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits, labels


def _shifted(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token is the label of this one."""
    return (logits[:, :-1], labels[:, 1:]) if logits.ndim == 3 and labels.ndim == 2 else (logits, labels)


def _fits(kind: str, logits: torch.Tensor, labels: torch.Tensor) -> bool:
    if kind == "several":
        return labels.is_floating_point() and labels.shape == logits.shape
    return not labels.is_floating_point() and labels.shape == logits.shape[:-1]


def _loss_of(kind: str, logits: torch.Tensor, labels: torch.Tensor) -> float:
    if kind == "several":
        return float(nn.functional.binary_cross_entropy_with_logits(logits, labels))
    return float(nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()))


_WAYS = (("classes", _as_they_are), ("classes", _shifted), ("several", _as_they_are))
