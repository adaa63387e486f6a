"""Do those who came late agree with each other, and did they see that anything was learnt? What to say where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ww_opt.training.judging import Judgement, are_in_nats, late_loss

__all__ = ["alarms", "disagreement", "nothing_learnt"]

SURE = 2.5
"""Standard errors by which a cohort must be worse than the others together to be named."""
GROWTH = 0.1
"""Accuracy that a run may gain after a cohort was asked, so that those who come later look better."""
_FALSE_ALARMS = 0.02


def alarms(trials: Sequence[Sequence[Judgement]], first_losses: Sequence[float] = ()) -> list[str]:
    """Say why a ranking by late examples must not be trusted; empty where nothing speaks against it.

    Args:
        trials: judgements of each completed trial of a study, with the same cohorts; of one trial alone: ``[late]``.
        first_losses: loss of each before training, needed where the loss is no cross-entropy.
    """
    known = [list(own) for own in trials if own and math.isfinite(late_loss(own))]
    if not known:
        return []
    if not are_in_nats([own for late in known for own in late]):
        return _about_losses(trials, first_losses)
    return [*disagreement(known), *nothing_learnt(known)]


@dataclass(frozen=True)
class _Cohort:
    """What the better half of the trials made of one cohort: mean accuracy, and its error over the examples."""

    n: int
    accuracy: float
    error: float


def disagreement(trials: Sequence[Sequence[Judgement]]) -> list[str]:
    """Name the cohorts that are far worse than the others together, over the better half of the trials.

    The examples are the same in every trial, so that more trials make them no more certain: the error is that over
    examples. Who comes later is judged by a better model, so that the first must be worse by ``GROWTH`` as well.
    Judgements without an error (of older records) say nothing.
    """
    ranked = sorted(trials, key=late_loss)
    better = [own for own in ranked[: (len(ranked) + 1) // 2] if len(own) == len(ranked[0])]
    cohorts = [_over_trials(own) for own in zip(*better, strict=True)]
    found = []
    for number, own in enumerate(cohorts):
        others = cohorts[:number] + cohorts[number + 1 :]
        if not others:
            continue
        total = sum(other.n for other in others)
        mean = sum(other.n * other.accuracy for other in others) / total
        error = math.hypot(own.error, math.hypot(*(other.n * other.error for other in others)) / total)
        allowed = 0.0 if number else GROWTH
        if mean - own.accuracy > SURE * error + allowed:
            found.append(
                f"Cohort {number + 1} of {len(cohorts)} disagrees with the others: of its {own.n} late labels "
                f"{own.accuracy:.0%} are predicted, of theirs {mean:.0%}. Its labels may be wrong, or its examples of "
                "another kind; the ranking may follow them. Look at them, or draw other cohorts (`seed`)."
            )
    return found


def _over_trials(judgements: Sequence[Judgement]) -> _Cohort:
    n = len(judgements)
    return _Cohort(
        judgements[0].n,
        sum(own.accuracy for own in judgements) / n,
        math.sqrt(sum(own.accuracy_error**2 for own in judgements) / n),
    )


def nothing_learnt(trials: Sequence[Sequence[Judgement]]) -> list[str]:
    """Tell when not even the best trial is better than a constant guess, in accuracy or in loss, beyond the noise.

    The best of many trials at chance looks better than chance: the more trials, the more is asked for.
    """
    best = min(trials, key=late_loss)
    known = [own for own in best if not math.isnan(own.constant_accuracy + own.accuracy_error)]
    total = sum(own.n for own in known)
    if not total or len(known) < len(best):
        return []
    sure = -NormalDist().inv_cdf(_FALSE_ALARMS / len(trials))

    def pooled(name: str) -> float:
        return sum(own.n * float(getattr(own, name)) for own in known) / total

    def error(name: str) -> float:
        return math.hypot(*(own.n * float(getattr(own, name)) for own in known)) / total

    accuracy, constant = pooled("accuracy"), pooled("constant_accuracy")
    loss = sum(own.n * min(value for value in own.losses if math.isfinite(value)) for own in known) / total
    if accuracy - constant > sure * error("accuracy_error"):
        return []
    if pooled("constant_loss") - loss > sure * error("loss_error"):
        return []
    return [
        f"Nothing was learnt that late examples can confirm: of their {total} labels the best trial predicts "
        f"{accuracy:.0%}, a constant guess {constant:.0%}, which is within the noise. The ranking says nothing: train "
        "longer, widen the space, or make the cohorts larger (`shares`)."
    ]


def _about_losses(trials: Sequence[Sequence[Judgement]], first_losses: Sequence[float]) -> list[str]:
    pairs = [
        (value, first)
        for own, first in zip(trials, first_losses, strict=bool(first_losses))
        if own and math.isfinite(value := late_loss(own)) and math.isfinite(first)
    ]
    if not pairs or any(value < first for value, first in pairs):
        return []
    value, first = min(pairs)
    return [
        f"Nothing was learnt that late examples can confirm: the least late loss, {value:.3g}, is not below the loss "
        f"before training, {first:.3g}. The ranking says nothing: train longer, or widen the space."
    ]
