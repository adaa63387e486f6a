"""A model and the examples that are about to join -> a judgement; and a look at a first batch, before training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ww_opt.training.judging import Judgement, judge_parts
from ww_opt.training.late_entry import LateExamples
from ww_opt.training.layouts import Layout, answers, layout_of

__all__ = ["even_parts", "is_cross_entropy", "judge_cohort", "look_at_first_batch"]

_LIKELIHOODS = ("NllLoss", "LogSoftmax", "CrossEntropy", "LogSigmoid", "Logsumexp", "SoftMarginLoss")
_OPAQUE = ("Compiled",)


def even_parts(index: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, ...]:
    """Split example numbers into as few parts as ``batch_size`` allows, as even as can be: none is left with one."""
    return torch.tensor_split(index, max(-(-len(index) // batch_size), 1))


def judge_cohort(
    model: nn.Module,
    late: LateExamples,
    cohort: torch.Tensor,
    step: int,
    take: Callable[[torch.Tensor], Any],
    loss: Callable[[Any], torch.Tensor],
) -> Judgement:
    """Judge a model on a cohort before it joins.

    Args:
        model: in eval mode; no gradient is taken.
        late: as :func:`look_at_first_batch` returned it.
        cohort: example numbers.
        step: steps done.
        take: example numbers -> their batch, on the model's device.
        loss: batch -> its mean loss, where there are no logits.

    Raises:
        ValueError: a batch does not lie as the first one did, or no label is left.
    """
    parts = even_parts(cohort, late.batch_size)
    with torch.no_grad():
        if late.logits is None:
            total = sum(len(part) * float(loss(take(part))) for part in parts)
            return Judgement(step, len(cohort), math.nan, (total / len(cohort),), n_examples=len(cohort))
        assert late.kind is not None
        layout = Layout(late.kind, late.class_dim, late.ignore_index)
        return judge_parts([_pair(late, model, take(part)) for part in parts], step, layout)


def look_at_first_batch(model: nn.Module, late: LateExamples, batch: Any) -> LateExamples:
    """Judge one batch before training, so that what does not fit is told then, and not after half of a run.

    Args:
        model: in eval mode; no gradient is taken.
        late: what is judged by.
        batch: of examples that are there from the start.

    Returns:
        The same with ``kind`` and ``class_dim`` as this batch lies: later batches are held to it.

    Raises:
        TypeError: ``logits`` does not return two tensors.
        ValueError: they do not belong together, or a label is out of range; see :func:`ww_opt.judge`.
    """
    if late.logits is None:
        return late
    with torch.no_grad():
        logits, labels = _pair(late, model, batch)
    layout = layout_of(logits, labels, kind=late.kind, class_dim=late.class_dim, ignore_index=late.ignore_index)
    answers(logits, labels, layout, logits.numel())
    return replace(late, kind=layout.kind, class_dim=layout.class_dim)


def _pair(late: LateExamples, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    assert late.logits is not None
    pair: Any = late.logits(model, batch)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        got = f"{len(pair)} values" if isinstance(pair, tuple | list) else f"a {type(pair).__name__}"
        raise TypeError(f"`LateExamples.logits` must return two tensors, `(logits, labels)`, but returned {got}.")
    return pair[0], pair[1]


def is_cross_entropy(loss: torch.Tensor) -> bool:
    """Whether a loss is a cross-entropy, in nats: a logarithm of likelihoods of classes is among what it was made of.

    Told from torch's graph of the computation, which is there after ``backward`` as well. A loss without a graph, or
    whose graph was compiled and cannot be read, is taken for one.
    """
    names = list(_functions(loss))
    if not names or any(opaque in name for name in names for opaque in _OPAQUE):
        return True
    return any(known in name for name in names for known in _LIKELIHOODS)


def _functions(loss: torch.Tensor) -> Iterator[str]:
    waiting: list[Any] = [loss.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node.name()
        waiting.extend(following for following, _ in node.next_functions)
