"""Late entry: some training examples join only towards the end, and judge the model just before they do.

At that moment they are held out; from then on they are trained on. Nothing is lost, and no test set is needed: the
prequential principle (Dawid 1984; Bornschein et al., arXiv 2210.07931).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

__all__ = ["LateEntry"]


@dataclass(frozen=True)
class LateEntry:
    """The index batches of one run, in which the members of each cohort come no earlier than their time.

    Iterating yields ``n_steps`` batches of example numbers, int64 ``[batch_size]``, shuffled by torch's global
    generator. Whoever joins is mixed into what the present epoch has left, so that every epoch still shows each
    example present once; its last batch may be smaller. It serves as the ``batch_sampler`` of a DataLoader, or in a
    loop of one's own::

        entry = LateEntry(len(data), batch_size=64, n_steps=600)
        for step, index in enumerate(entry):
            for newcomers in entry.joining(step):
                late.append(judge(model, data[newcomers]))  # not trained on yet
            train_step(model, data[index])

    Args:
        n_examples: examples in the training set.
        batch_size: examples in a batch.
        n_steps: optimizer steps of the whole run.
        shares: of the examples that make up each cohort, in (0, 1); at least one example each.
        times: when each cohort joins, as a fraction of the run in (0, 1), rising.
        seed: draws the cohorts.

    Raises:
        ValueError: an option is out of range, or nobody is left to begin with.
    """

    n_examples: int
    batch_size: int
    n_steps: int
    shares: tuple[float, ...] = (0.05, 0.05, 0.05)
    times: tuple[float, ...] = (0.5, 0.75, 0.9)
    seed: int = 0

    def __post_init__(self) -> None:
        for option in ("n_examples", "batch_size", "n_steps"):
            if getattr(self, option) < 1:
                raise ValueError(f"`{option} >= 1` must hold, but got {option}={getattr(self, option)}.")
        if len(self.shares) != len(self.times):
            raise ValueError(f"Each cohort has a share and a time, but got shares={self.shares}, times={self.times}.")
        if not all(0.0 < value < 1.0 for value in (*self.shares, *self.times)):
            raise ValueError(f"Shares and times lie in (0, 1), but got shares={self.shares}, times={self.times}.")
        if list(self.times) != sorted(set(self.times)):
            raise ValueError(f"`times` must rise, but got times={self.times}.")
        if sum(self._sizes) >= self.n_examples:
            raise ValueError(
                f"Somebody must be there from the start, but of n_examples={self.n_examples} cohorts of {self._sizes} "
                "come late: lower `shares`."
            )

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(max(round(share * self.n_examples), 1) for share in self.shares)

    @cached_property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        order = torch.randperm(self.n_examples, generator=torch.Generator().manual_seed(self.seed))
        return torch.split(order, [*self._sizes, self.n_examples - sum(self._sizes)])

    @property
    def cohorts(self) -> tuple[torch.Tensor, ...]:
        """Example numbers of each cohort, int64, in the order of ``times``."""
        return self._parts[:-1]

    @property
    def steps(self) -> tuple[int, ...]:
        """The first step, counted from 0, at which each cohort may be trained on."""
        return tuple(math.ceil(time * self.n_steps - 1e-9) for time in self.times)

    def joining(self, step: int) -> tuple[torch.Tensor, ...]:
        """Return the cohorts that join with ``step``, counted from 0: judge the model on them before that step."""
        return tuple(cohort for cohort, first in zip(self.cohorts, self.steps, strict=True) if first == step)

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[torch.Tensor]:
        present, left = self._parts[-1], torch.empty(0, dtype=torch.int64)
        for step in range(self.n_steps):
            for newcomers in self.joining(step):
                present = torch.cat([present, newcomers])
                left = _shuffled(torch.cat([left, newcomers]))
            if not len(left):
                left = _shuffled(present)
            batch, left = left[: self.batch_size], left[self.batch_size :]
            yield batch


def _shuffled(index: torch.Tensor) -> torch.Tensor:
    return index[torch.randperm(len(index))]
