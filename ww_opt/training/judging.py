"""Logits and labels of examples that came late -> what they say of the model, and one number of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

from ww_opt.training.layouts import IGNORED, Answers, Kind, Layout, answers, layout_of

__all__ = ["ACCURACY_SHARE", "Judgement", "LateLoss", "are_in_nats", "judge", "judge_parts", "late_loss"]

ACCURACY_SHARE = 0.5
"""Nats that full accuracy on the late examples is worth beside their loss."""
_SHARPNESS = torch.linspace(-4.0, 2.0, 61, dtype=torch.float64).exp()
"""Factors on the logits among which the calibrated loss is looked for."""
_MOST_LOGITS = 2**22
"""Logits that are judged at most; of more (pixels, tokens) evenly spaced labels are taken, a thousand at least."""
_NAN = math.nan


@dataclass(frozen=True)
class Judgement:
    """What a cohort said of the model just before it joined; small enough to be kept.

    Two are equal that said the same, whatever is known of its errors.

    Attributes:
        step: steps done.
        n: labels judged on.
        accuracy: share of the labels that were predicted; NaN where there are no logits, or they are NaN.
        losses: mean loss with the logits times each of 61 factors, sharper to the right; a single loss where there are
            no logits.
        n_examples: examples that the labels belong to; 0 where that is not known.
        accuracy_error: standard error of the accuracy over examples, a right and a wrong one added; NaN: not known.
        loss_error: standard error of the least of the losses over examples; NaN: not known.
        constant_accuracy: accuracy of a constant guess: for each half of the examples what is most frequent in the
            other half. NaN: not known.
        constant_loss: loss of a constant guess, the entropy of the labels. NaN: not known.
    """

    step: int
    n: int
    accuracy: float
    losses: tuple[float, ...]
    n_examples: int = field(default=0, compare=False)
    accuracy_error: float = field(default=_NAN, compare=False)
    loss_error: float = field(default=_NAN, compare=False)
    constant_accuracy: float = field(default=_NAN, compare=False)
    constant_loss: float = field(default=_NAN, compare=False)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read back what JSON kept of ``dataclasses.asdict``; NaN is null there. Older records know less."""

        def number(value: Any) -> float:
            return math.nan if value is None else float(value)

        later = ("accuracy_error", "loss_error", "constant_accuracy", "constant_loss")
        return cls(
            step=int(record["step"]),
            n=int(record["n"]),
            accuracy=number(record["accuracy"]),
            losses=tuple(number(value) for value in record["losses"]),
            n_examples=int(record.get("n_examples", 0)),
            **{name: number(record.get(name)) for name in later},
        )


def judge(
    logits: torch.Tensor,
    labels: torch.Tensor,
    step: int = 0,
    *,
    kind: Kind | None = None,
    class_dim: int | None = None,
    ignore_index: int = IGNORED,
) -> Judgement:
    """Judge a model by its logits on a cohort that it was not trained on yet.

    What the labels are is told from shapes and values (:mod:`ww_opt.training.layouts`); what can be read in two ways is
    refused, not guessed.

    Args:
        logits: on any device, examples first; ``[..., n_classes]``, torch's own ``[n, n_classes, ...]``, one logit a
            label, or as many logits as there are labels.
        labels: class numbers, in the shape of the logits without their class axis; or shares of classes, or 0 and 1
            for one or several yes/no labels, in the shape of the logits. Those equal to ``ignore_index`` are left out.
        step: steps done.
        kind: what the labels are, ``classes``, ``shares`` (of classes) or ``several`` (yes/no labels), where shapes and
            values alone do not tell.
        class_dim: the axis of the logits that goes over the classes, where shapes alone do not tell.
        ignore_index: number that stands for "no label", -100 as in torch's cross entropy.

    Returns:
        The judgement. Logits that are NaN give losses of NaN, which :func:`late_loss` takes for infinite.

    Raises:
        TypeError: logits or labels are no tensors, or the logits are whole numbers.
        ValueError: the shapes do not belong together or can be read in two ways, a label is out of range, or none is
            left.
    """
    layout = layout_of(logits, labels, kind=kind, class_dim=class_dim, ignore_index=ignore_index)
    return judge_parts([(logits, labels)], step, layout)


def judge_parts(parts: Iterable[tuple[torch.Tensor, torch.Tensor]], step: int, layout: Layout) -> Judgement:
    """Judge by the logits and labels of several batches, which may differ in length; see :func:`judge`."""
    parts = list(parts)
    found = [answers(logits, labels, layout, _MOST_LOGITS // len(parts)) for logits, labels in parts]
    total = Answers.joined(found)
    if not len(total.labels):
        n = sum(labels.numel() for _, labels in parts)
        raise ValueError(
            f"A cohort needs at least one label to judge by, but all {n} are {layout.ignore_index}: leave examples "
            "without labels out of late entry, or make the cohorts larger (`shares`)."
        )
    losses = [_losses(total, float(sharpness)) for sharpness in _SHARPNESS]
    means = tuple(float(own.mean()) for own in losses)
    # a NaN never is the least
    best = min(range(len(means)), key=lambda k: means[k] if math.isfinite(means[k]) else math.inf)
    hits = _hits(total)
    constant_accuracy, constant_loss = _constant(total)
    by_example = _by_example(hits, total.example)
    return Judgement(
        step,
        len(total.labels),
        float(hits.mean()),
        means,
        n_examples=len(by_example),
        accuracy_error=_error(torch.cat([by_example, torch.tensor([0.0, 1.0], dtype=torch.float64)])),
        loss_error=_error(_by_example(losses[best], total.example)),
        constant_accuracy=constant_accuracy,
        constant_loss=constant_loss,
    )


def _losses(own: Answers, sharpness: float) -> torch.Tensor:
    """Loss of each row, ``[n]``."""
    z = own.logits * sharpness
    if own.kind == "several":
        return nn.functional.binary_cross_entropy_with_logits(z, own.labels, reduction="none").squeeze(-1)
    return nn.functional.cross_entropy(z, own.labels, reduction="none")


def _hits(own: Answers) -> torch.Tensor:
    """Share of each row's labels that were predicted, ``[n]``; NaN where a logit is."""
    if own.kind == "several":
        hits = torch.where(own.logits > 0, own.labels, 1.0 - own.labels).squeeze(-1)
    elif own.kind == "shares":
        hits = own.labels.gather(-1, own.logits.argmax(-1, keepdim=True)).squeeze(-1)
    else:
        hits = (own.logits.argmax(-1) == own.labels).double()
    return hits.masked_fill(own.logits.isnan().any(-1), math.nan)


def _by_example(values: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """Mean of the values of each example."""
    place = _places(example)
    sums, counts = (torch.zeros(int(place.max()) + 1, dtype=torch.float64) for _ in range(2))
    return sums.index_add(0, place, values) / counts.index_add(0, place, torch.ones_like(values))


def _places(example: torch.Tensor) -> torch.Tensor:
    """Number the examples from 0 without gaps; they come in order."""
    starts = torch.ones_like(example)
    starts[1:] = (example[1:] != example[:-1]).long()
    return starts.cumsum(0) - 1


def _error(values: torch.Tensor) -> float:
    return float(values.std(correction=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _constant(own: Answers) -> tuple[float, float]:
    """Accuracy and loss of a constant, without the merit of having been chosen on the labels that judge it.

    Among ten classes and 25 labels the best constant would be right for .2 of them instead of .1. So the accuracy is
    that of what is most frequent in the other half of the examples, both ways; the loss is the entropy of the labels
    with the correction of Miller (1955) for its bias, ``(classes seen - 1) / (2 n)``.
    """
    # labels as shares of all answers, [n, answers]; each column of yes/no labels has a constant of its own
    if own.kind == "several":
        shares = torch.cat([1.0 - own.labels, own.labels], -1)
    else:
        shares = (
            own.labels if own.kind == "shares" else nn.functional.one_hot(own.labels, own.logits.shape[-1]).double()
        )
    odd = _places(own.example) % 2 == 1
    halves = [_counts(shares[half], own.column[half], int(own.column.max()) + 1) for half in (odd, ~odd)]
    right = sum(
        float(asked.gather(-1, seen.argmax(-1, keepdim=True)).sum()) for asked, seen in (halves, reversed(halves))
    )
    counts = halves[0] + halves[1]
    n = counts.sum(-1)
    entropy = torch.special.entr(counts / n.clamp(min=1.0).unsqueeze(-1)).sum(-1)
    entropy += ((counts > 0).sum(-1) - 1).clamp(min=0) / (2.0 * n.clamp(min=1.0))
    loss = float((n * entropy.clamp(max=math.log(counts.shape[-1]))).sum() / n.sum())
    return right / len(shares) if odd.any() else math.nan, loss


def _counts(shares: torch.Tensor, column: torch.Tensor, n_columns: int) -> torch.Tensor:
    return shares.new_zeros(n_columns, shares.shape[-1]).index_add(0, column, shares)


def are_in_nats(judgements: Sequence[Judgement]) -> bool:
    """Whether they were made of logits, and their loss is a cross-entropy; else it has the unit of the task's loss."""
    return all(len(own.losses) > 1 or not math.isnan(own.accuracy) for own in judgements)


class LateLoss(float):
    """A late loss that knows whether it is a cross-entropy; else it has the unit of the task's loss."""

    in_nats: bool

    def __new__(cls, value: float, in_nats: bool) -> Self:
        """Make one; a number like any other."""
        own = super().__new__(cls, value)
        own.in_nats = in_nats
        return own

    def __getnewargs__(self) -> tuple[float, bool]:  # type: ignore[override]
        """Let it be copied and pickled."""
        return float(self), self.in_nats


def late_loss(judgements: Sequence[Judgement]) -> LateLoss:
    """Loss on the cohorts so far, calibrated, less half of their accuracy; in nats, lower is better.

    One temperature for all cohorts makes up for over-confidence, which wrong labels punish and which says nothing about
    the ranking of classes. On ten tasks it ranks trials better than the plain loss (mean Spearman with test accuracy
    .78 against .67; .81 with the accuracy, which is .75 alone). NaN without judgements. Where there are no logits it is
    the mean loss, in the loss's own unit; the number knows that, and guards take it so.
    """
    in_nats = are_in_nats(judgements)
    total = sum(own.n for own in judgements)
    if not total:
        return LateLoss(math.nan, in_nats)
    columns = zip(*(own.losses for own in judgements), strict=True)
    pooled = [sum(own.n * value for own, value in zip(judgements, column, strict=True)) / total for column in columns]
    accuracy = sum(own.n * own.accuracy for own in judgements) / total
    finite: list[float] = [value for value in pooled if math.isfinite(value)]
    if not finite:
        return LateLoss(math.inf, in_nats)
    return LateLoss(min(finite) - (0.0 if math.isnan(accuracy) else ACCURACY_SHARE * accuracy), in_nats)
