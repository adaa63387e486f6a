"""The random streams of a process: torch's, numpy's and Python's own, seeded together and given back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Streams", "seeded", "undisturbed"]

_NUMPY_SEEDS = 2**32


@dataclass(frozen=True)
class Streams:
    """The state of every global stream at one moment; generators of the user's own are his."""

    cpu: torch.Tensor
    cuda: torch.Tensor | None
    numpy: Any
    python: Any
    device: str | torch.device

    @classmethod
    def now(cls, device: str | torch.device = "cpu") -> Streams:
        """Remember the states, that of ``device`` among them."""
        cuda = torch.cuda.get_rng_state(device) if torch.device(device).type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate(), device)

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


@contextmanager
def undisturbed(device: str | torch.device = "cpu") -> Iterator[None]:
    """Give every stream back as it was, whatever is drawn inside."""
    streams = Streams.now(device)
    try:
        yield
    finally:
        streams.restore()


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed every stream inside, and give the caller his own back."""
    kind = torch.device(device).type
    devices: list[Any] = [] if kind in ("cpu", "cuda") else [torch.device(device)]
    if kind == "cuda" or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        kind, devices = "cuda", [*devices, *range(torch.cuda.device_count())]
    with undisturbed(), torch.random.fork_rng(devices=devices, device_type=kind if devices else "cuda"):
        torch.manual_seed(seed)
        np.random.seed(seed % _NUMPY_SEEDS)
        random.seed(seed)
        yield
