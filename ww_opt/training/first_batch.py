"""What is checked before the first step, on the first batch: one sentence then instead of half a run first."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["check_gradient", "explained", "shown"]

_LOG = logging.getLogger(__name__)


@contextmanager
def explained(model: nn.Module, batches: Sequence[Any]) -> Iterator[None]:
    """Log beside what the user's code raises inside that it was the first batch, and what that looked like.

    Raises:
        ValueError: model and batch lie on different devices.
    """
    try:
        yield
    except Exception as error:
        places, own = sorted(_devices(batches[:1])), sorted({str(tensor.device) for tensor in model.parameters()})
        if isinstance(error, RuntimeError) and places and own and places != own and "device" in str(error):
            raise ValueError(
                f"Model and batches must be on one device, but the model is on {', '.join(own)} and the first batch on "
                f"{', '.join(places)}: set `device=`, and give batches that have a method `to`, as tensors do."
            ) from error
        if batches:
            _LOG.warning("The first batch raised, before any training: %s.", shown(batches[0]))
        raise


def check_gradient(loss: torch.Tensor) -> None:
    """Refuse a loss that no weight can follow.

    Raises:
        ValueError: it has no gradient.
    """
    if not loss.requires_grad:
        raise ValueError(
            "Task.loss must return what the trainable weights can follow, but its result has no gradient: leave out "
            "`.detach()`, `.item()`, `torch.no_grad()` and `argmax`."
        )


def shown(batch: Any) -> str:
    """Say in short what a batch is made of."""
    if isinstance(batch, torch.Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)} on {batch.device}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        return f"({', '.join(shown(item) for item in batch)})"
    return type(batch).__name__


def _devices(value: Any) -> set[str]:
    if isinstance(value, torch.Tensor):
        return {str(value.device)}
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return {place for item in items for place in _devices(item)}
