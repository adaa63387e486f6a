"""Late entry: some training examples join only towards the end, and judge the model just before they do.

At that moment they are held out; from then on they are trained on. Nothing is lost, and no test set is needed: the
prequential principle (Dawid 1984; Bornschein et al., arXiv 2210.07931).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from ww_opt.training.layouts import IGNORED, Kind

__all__ = ["LateEntry", "LateExamples"]


@dataclass(frozen=True)
class LateEntry:
    """The index batches of one run, in which the members of each cohort come no earlier than their time.

    Iterating yields ``n_steps`` batches of example numbers, int64 ``[batch_size]``, shuffled by torch's global
    generator. Whoever joins is mixed into what the present epoch has left, so that every epoch still shows each
    example present once. It serves as the ``batch_sampler`` of a DataLoader, or in a
    loop of one's own. No batch is smaller than the smallest that a DataLoader over all examples makes (but where fewer
    are present): smaller remainders are shared out among the batches before, which then are a little larger::

        entry, late = LateEntry(len(x), batch_size=64, n_steps=600), []
        for step, index in enumerate(entry):
            for newcomers in entry.joining(step):  # not trained on yet
                model.eval()
                with torch.no_grad():
                    late.append(judge(model(x[newcomers]), y[newcomers], step))
                model.train()
                report_late(trial, late)
            train_step(model, x[index], y[index])
        return score(model, train_loss=loss, late_loss=late_loss(late))

    Args:
        n_examples: examples in the training set.
        batch_size: examples in a batch.
        n_steps: optimizer steps of the whole run.
        shares: of the examples that make up each cohort, in (0, 1); at least one example each.
        times: when each cohort joins, as a fraction of the run in (0, 1), rising.
        seed: draws the cohorts, from a stream of their own: whoever draws a subset, a split or wrong labels by the same
            seed draws others.
        drop_last: leave out the smaller batch at the end of an epoch, as a DataLoader does.

    Raises:
        TypeError: a count or the seed is no whole number.
        ValueError: an option is out of range, or nobody is left to begin with.
    """

    n_examples: int
    batch_size: int
    n_steps: int
    shares: tuple[float, ...] = (0.05, 0.05, 0.05)
    times: tuple[float, ...] = (0.5, 0.75, 0.9)
    seed: int = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        for option in ("n_examples", "batch_size", "n_steps", "seed"):
            if not isinstance(getattr(self, option), Integral):
                raise TypeError(f"`{option}` must be a whole number, but got {option}={getattr(self, option)!r}.")
            if option != "seed" and getattr(self, option) < 1:
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
        if self.drop_last and len(self.present) < self.batch_size:
            raise ValueError(
                f"`drop_last` needs a whole batch of those who are there from the start, but of {len(self.present)} "
                f"batch_size={self.batch_size} leaves none: lower `batch_size`."
            )

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(max(round(share * self.n_examples), 1) for share in self.shares)

    @cached_property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        order = torch.randperm(self.n_examples, generator=_generator(self.seed))
        return torch.split(order, [*self._sizes, self.n_examples - sum(self._sizes)])

    @property
    def cohorts(self) -> tuple[torch.Tensor, ...]:
        """Example numbers of each cohort, int64, in the order of ``times``."""
        return self._parts[:-1]

    @property
    def present(self) -> torch.Tensor:
        """Example numbers of those who are there from the start, int64."""
        return self._parts[-1]

    @property
    def steps(self) -> tuple[int, ...]:
        """The first step, counted from 0, at which each cohort may be trained on; at the latest the last one."""
        return tuple(min(math.ceil(time * self.n_steps - 1e-9), self.n_steps - 1) for time in self.times)

    def joining(self, step: int) -> tuple[torch.Tensor, ...]:
        """Return the cohorts that join with ``step``, counted from 0: judge the model on them before that step."""
        return tuple(cohort for cohort, first in zip(self.cohorts, self.steps, strict=True) if first == step)

    def waiting(self, step: int) -> torch.Tensor:
        """Return those who join with ``step`` or later, int64: nobody has trained on them yet; empty where none."""
        own = [cohort for cohort, first in zip(self.cohorts, self.steps, strict=True) if first >= step]
        return torch.cat(own) if own else self.present[:0]

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.batches()

    def batches(self, generator: torch.Generator | None = None) -> Iterator[torch.Tensor]:
        """Yield the batches, shuffled by ``generator``; ``None``: by torch's global one."""
        present, left = self._parts[-1], torch.empty(0, dtype=torch.int64)
        for step in range(self.n_steps):
            for newcomers in self.joining(step):
                present = torch.cat([present, newcomers])
                left = _shuffled(torch.cat([left, newcomers]), generator) if len(left) else left
            if not len(left) or (self.drop_last and len(left) < self.batch_size):
                left = _shuffled(present, generator)
            size = self._next_size(len(left))
            batch, left = left[:size], left[size:]
            yield batch

    def _next_size(self, n_left: int) -> int:
        """Examples of the next batch where ``n_left`` are left of the epoch; see the class."""
        n_whole, rest = divmod(n_left, self.batch_size)
        smallest = self.n_examples % self.batch_size or self.batch_size
        if self.drop_last or not n_whole or not rest or rest >= smallest:
            return min(self.batch_size, n_left)
        if (self.batch_size + rest) // 2 >= smallest:  # the last two in halves
            return self.batch_size if n_whole > 1 else n_left - n_left // 2
        return -(-n_left // n_whole)


def _generator(seed: int) -> torch.Generator:
    """Return a stream that no usual call draws from.

    ``torch.Generator().manual_seed(seed)`` is the commonest way to draw a subset or wrong labels: cohorts drawn so
    would be the head of the same permutation, and be wrong altogether.
    """
    digest = hashlib.blake2b(f"ww_opt late entry {seed}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _shuffled(index: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return index[torch.randperm(len(index), generator=generator)]


@dataclass(frozen=True)
class LateExamples:
    """The training set as late entry needs it: examples by number; an option of :class:`ww_opt.Task`.

    Args:
        n_examples: examples in the training set.
        batch_size: examples in a batch.
        take: numbers, int64 ``[n]`` -> the batch they make, as the task's loss takes it.
        logits: ``logits(model, batch)`` returns ``(logits, labels)`` as :func:`ww_opt.judge` takes them, whose loss is
            a cross-entropy. ``None``: no classes; cohorts are judged by the task's loss, in its own unit.
        shares: of the examples that make up each cohort.
        times: when each cohort joins, as a fraction of the run.
        seed: draws the cohorts, the same for every trial.
        drop_last: leave out the smaller batch at the end of an epoch.
        kind: what the labels are, see :func:`ww_opt.judge`; ``None``: told at the first batch, before training.
        class_dim: the axis of the logits that goes over the classes, likewise.
        ignore_index: number that stands for "no label".

    Raises:
        TypeError: ``take`` or ``logits`` cannot be called.
    """

    n_examples: int
    batch_size: int
    take: Callable[[torch.Tensor], Any]
    logits: Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor]] | None = None
    shares: tuple[float, ...] = (0.05, 0.05, 0.05)
    times: tuple[float, ...] = (0.5, 0.75, 0.9)
    seed: int = 0
    drop_last: bool = False
    kind: Kind | None = None
    class_dim: int | None = None
    ignore_index: int = IGNORED

    def __post_init__(self) -> None:
        for name in ("take", "logits"):
            value = getattr(self, name)
            if not callable(value) and not (name == "logits" and value is None):
                raise TypeError(f"LateExamples.{name} must be callable, but got {type(value).__name__}.")

    @classmethod
    def from_loader(
        cls,
        loader: DataLoader[Any],
        logits: Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor]] | None = None,
        **options: Any,
    ) -> LateExamples:
        """Take dataset, batch size, collation and ``drop_last`` from a DataLoader.

        Its workers are not used; examples are shuffled by torch's global generator, whatever its order.

        Args:
            loader: over a dataset whose examples have numbers, with torch's own samplers.
            logits: see the class.
            options: others of the class, such as ``seed``, ``shares`` or ``class_dim``.

        Raises:
            TypeError: it is no DataLoader, its dataset is iterable only, so that its examples have no numbers, or an
                option is unknown.
            ValueError: the loader has a sampler of its own, or one that draws another number of examples than there
                are, or no batch size.
        """
        n_examples = _check_loader(loader)
        dataset: Any = loader.dataset

        def take(index: torch.Tensor) -> Any:
            numbers = index.tolist()
            many = getattr(dataset, "__getitems__", None)  # torch's own way to take several at once
            return loader.collate_fn(many(numbers) if many else [dataset[number] for number in numbers])

        assert loader.batch_size is not None
        return cls(n_examples, loader.batch_size, take, logits, **{"drop_last": loader.drop_last, **options})

    def over(self, n_steps: int) -> LateEntry:
        """Lay the cohorts over a run of ``n_steps``; see :class:`LateEntry` for errors."""
        return LateEntry(self.n_examples, self.batch_size, n_steps, self.shares, self.times, self.seed, self.drop_last)


def _check_loader(loader: DataLoader[Any]) -> int:
    """Refuse what late entry would leave out, and return how many examples there are."""
    if not isinstance(loader, DataLoader):
        raise TypeError(f"Late entry can be taken from a DataLoader, but got {type(loader).__name__}.")
    dataset: Any = loader.dataset
    name = type(dataset).__name__
    without = "take `guard=True`, the training loss, and leave late entry out"
    try:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise TypeError
        n_examples = len(dataset)
    except (TypeError, NotImplementedError):
        raise TypeError(
            f"Late entry takes examples by number, but those of {name} have none (it must have `__getitem__` and "
            f"`__len__`, and be no IterableDataset): {without}."
        ) from None
    if isinstance(dataset, Mapping) and set(dataset) != set(range(n_examples)):
        raise TypeError(
            f"Late entry takes examples by number, but the keys of this {name} are not 0 to {n_examples - 1}: give a "
            "list of its values."
        )
    own = "or build `LateExamples(n_examples, batch_size, take)` by hand"
    if loader.batch_size is None:
        raise ValueError(
            "Late entry needs `batch_size` of the DataLoader, but it has none (a `batch_sampler` of its own, or "
            f"`batch_size=None`): give it `batch_size=` and `shuffle=True` instead, {own}."
        )
    sampler = loader.sampler
    if type(sampler) not in (RandomSampler, SequentialSampler):
        raise ValueError(
            f"Late entry draws all examples alike, but the DataLoader has a {type(sampler).__name__}, which would be "
            f"left out: give it `shuffle=True` instead, {own}."
        )
    n_drawn = len(cast("Sized", sampler))
    if getattr(sampler, "replacement", False) or n_drawn != n_examples:
        raise ValueError(
            f"Late entry shows each example once an epoch, but the {type(sampler).__name__} of the DataLoader draws "
            f"{n_drawn} of {n_examples}{' with replacement' * getattr(sampler, 'replacement', False)}: give the loader "
            f"`shuffle=True` instead (a `torch.utils.data.Subset` holds part of a dataset), {own}."
        )
    if loader.generator is not None or getattr(sampler, "generator", None) is not None:
        warnings.warn(
            "The DataLoader's generator is left out: with late entry the order of examples follows torch's global one, "
            "which the objective's `seed` sets.",
            stacklevel=3,
        )
    return n_examples
