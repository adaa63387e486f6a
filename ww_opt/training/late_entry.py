"""Late entry: some training examples join only towards the end, and judge the model just before they do.

At that moment they are held out; from then on they are trained on. Nothing is lost, and no test set is needed: the
prequential principle (Dawid 1984; Bornschein et al., arXiv 2210.07931).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

__all__ = ["ACCURACY_SHARE", "Judgement", "LateEntry", "LateExamples", "judge", "late_loss"]

ACCURACY_SHARE = 0.5
"""Nats that full accuracy on the late examples is worth beside their loss."""
_IGNORED = -100
_SHARPNESS = torch.linspace(-4.0, 2.0, 61, dtype=torch.float64).exp()
"""Factors on the logits among which the calibrated loss is looked for."""


@dataclass(frozen=True)
class LateEntry:
    """The index batches of one run, in which the members of each cohort come no earlier than their time.

    Iterating yields ``n_steps`` batches of example numbers, int64 ``[batch_size]``, shuffled by torch's global
    generator. Whoever joins is mixed into what the present epoch has left, so that every epoch still shows each
    example present once; its last batch may be smaller. It serves as the ``batch_sampler`` of a DataLoader, or in a
    loop of one's own::

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
        seed: draws the cohorts.
        drop_last: leave out the smaller batch at the end of an epoch, as a DataLoader does.

    Raises:
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
        order = torch.randperm(self.n_examples, generator=torch.Generator().manual_seed(self.seed))
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

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[torch.Tensor]:
        present, left = self._parts[-1], torch.empty(0, dtype=torch.int64)
        for step in range(self.n_steps):
            for newcomers in self.joining(step):
                present = torch.cat([present, newcomers])
                left = _shuffled(torch.cat([left, newcomers]))
            if not len(left) or (self.drop_last and len(left) < self.batch_size):
                left = _shuffled(present)
            batch, left = left[: self.batch_size], left[self.batch_size :]
            yield batch


def _shuffled(index: torch.Tensor) -> torch.Tensor:
    return index[torch.randperm(len(index))]


@dataclass(frozen=True)
class Judgement:
    """What a cohort said of the model just before it joined; small enough to be kept.

    Attributes:
        step: steps done.
        n: labels judged on.
        accuracy: share of the labels that were predicted; NaN where there are no logits.
        losses: mean loss with the logits times each of 61 factors, sharper to the right; a single loss where there are
            no logits.
    """

    step: int
    n: int
    accuracy: float
    losses: tuple[float, ...]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Judgement:
        """Read back what JSON kept of ``dataclasses.asdict``; NaN is null there."""
        accuracy, losses = record["accuracy"], record["losses"]
        return cls(
            step=int(record["step"]),
            n=int(record["n"]),
            accuracy=math.nan if accuracy is None else float(accuracy),
            losses=tuple(math.nan if value is None else float(value) for value in losses),
        )


def judge(logits: torch.Tensor, labels: torch.Tensor, step: int = 0) -> Judgement:
    """Judge a model by its logits on a cohort that it was not trained on yet.

    Args:
        logits: ``[..., n_classes]``, on any device.
        labels: class numbers, ``[...]``; those of -100 are left out, as torch's cross entropy does.
        step: steps done.

    Raises:
        ValueError: no label is left.
    """
    z = logits.detach().to("cpu", torch.float64).flatten(0, -2)
    y = labels.detach().to("cpu").flatten()
    z, y = z[y != _IGNORED], y[y != _IGNORED]
    if not len(y):
        raise ValueError(f"A cohort needs at least one label to judge by, but all {labels.numel()} are {_IGNORED}.")
    losses = [float(nn.functional.cross_entropy(z * sharpness, y)) for sharpness in _SHARPNESS]
    return Judgement(step, len(y), float((z.argmax(-1) == y).double().mean()), tuple(losses))


def late_loss(judgements: Sequence[Judgement]) -> float:
    """Loss on the cohorts so far, calibrated, less half of their accuracy; in nats, lower is better.

    One temperature for all cohorts makes up for over-confidence, which wrong labels punish and which says nothing about
    the ranking of classes. On ten tasks it ranks trials better than the plain loss (mean Spearman with test accuracy
    .78 against .67; .81 with the accuracy, which is .75 alone). NaN without judgements. Where there are no logits it is
    the mean loss.
    """
    total = sum(own.n for own in judgements)
    if not total:
        return math.nan
    columns = zip(*(own.losses for own in judgements), strict=True)
    pooled = [sum(own.n * value for own, value in zip(judgements, column, strict=True)) / total for column in columns]
    accuracy = sum(own.n * own.accuracy for own in judgements) / total
    finite: list[float] = [value for value in pooled if math.isfinite(value)]
    if not finite:
        return math.inf
    return min(finite) - (0.0 if math.isnan(accuracy) else ACCURACY_SHARE * accuracy)


@dataclass(frozen=True)
class LateExamples:
    """The training set as late entry needs it: examples by number; an option of :class:`ww_opt.Task`.

    Args:
        n_examples: examples in the training set.
        batch_size: examples in a batch.
        take: numbers, int64 ``[n]`` -> the batch they make, as the task's loss takes it.
        logits: ``logits(model, batch)`` returns ``(logits, labels)``, ``[..., n_classes]`` and ``[...]``. ``None``: no
            classes; cohorts are judged by the task's loss.
        shares: of the examples that make up each cohort.
        times: when each cohort joins, as a fraction of the run.
        seed: draws the cohorts, the same for every trial.
        drop_last: leave out the smaller batch at the end of an epoch.
    """

    n_examples: int
    batch_size: int
    take: Callable[[torch.Tensor], Any]
    logits: Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor]] | None = None
    shares: tuple[float, ...] = (0.05, 0.05, 0.05)
    times: tuple[float, ...] = (0.5, 0.75, 0.9)
    seed: int = 0
    drop_last: bool = False

    @classmethod
    def from_loader(
        cls,
        loader: DataLoader[Any],
        logits: Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> LateExamples:
        """Take dataset, batch size, collation and ``drop_last`` from a DataLoader; its workers are not used.

        Raises:
            TypeError: it is no DataLoader, or its dataset is iterable only, so that its examples have no numbers.
            ValueError: the loader has a sampler of its own, or a batch sampler and no batch size.
        """
        if not isinstance(loader, DataLoader):
            raise TypeError(f"Late entry can be taken from a DataLoader, but got {type(loader).__name__}.")
        dataset: Any = loader.dataset
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                "Late entry takes examples by number, so the dataset must have `__getitem__` and `__len__`, but "
                f"{type(dataset).__name__} has not: leave late entry out."
            )
        if loader.batch_size is None:
            raise ValueError("Late entry needs `batch_size` of the DataLoader, but it has none: set it.")

        if not isinstance(loader.sampler, RandomSampler | SequentialSampler):
            raise ValueError(
                f"Late entry draws all examples alike, but the DataLoader has a {type(loader.sampler).__name__}, which "
                "would be left out: give it `shuffle=True`, or build `LateExamples(...)` by hand."
            )

        def take(index: torch.Tensor) -> Any:
            return loader.collate_fn([dataset[number] for number in index.tolist()])

        return cls(len(dataset), loader.batch_size, take, logits, drop_last=loader.drop_last)

    def over(self, n_steps: int) -> LateEntry:
        """Lay the cohorts over a run of ``n_steps``; see :class:`LateEntry` for errors."""
        return LateEntry(self.n_examples, self.batch_size, n_steps, self.shares, self.times, self.seed, self.drop_last)
