"""What must be read before the pick: nothing was learnt, cohorts disagree, most trials failed or were pruned."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from ww_opt.search import records
from ww_opt.search.ranking import outcome, some

Late = Sequence[Mapping[str, Any]]
"""The judgements of one trial as it remembers them, in the order in which the cohorts joined."""

__all__ = ["Late", "about_cohorts", "about_ends", "about_learning", "alarms"]

_CLEAR = 0.1
"""Difference in accuracy that matters, where it is no chance either."""
_HARDLY = 0.95


def alarms(ended: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial], pick: FrozenTrial | None) -> list[str]:
    """Say what makes a study's pick worth little, most serious first; empty where nothing does.

    Args:
        ended: trials that the study ran to an end, interrupted ones left out.
        ranked: those that were ranked.
        pick: the best of them.
    """
    late = [own for trial in ranked if (own := records.read(trial, "late"))]
    return [*(about_learning(pick) if pick is not None else ()), *about_cohorts(late), *about_ends(ended)]


def about_learning(pick: FrozenTrial) -> list[str]:
    """Say so where the pick, and with it the whole study, is no better than chance.

    Chance is a constant answer, where the judgements know what that is worth (``constant_accuracy``), and otherwise the
    loss before training.
    """
    late = [
        own for own in records.read(pick, "late", ()) if _known(own, "accuracy") and _known(own, "constant_accuracy")
    ]
    if late:
        n = sum(own["n"] for own in late)
        accuracy, constant = (_pooled(late, name) for name in ("accuracy", "constant_accuracy"))
        error = math.hypot(*(own["n"] / n * _error(own, constant) for own in late))
        if accuracy > constant + 2.0 * error or _beats_constant_loss(late):
            return []
        return [
            f"Nothing was learnt: the pick predicts {accuracy:.0%} of the {n} labels that came late, where a constant "
            f"answer is right in {constant:.0%}. All other trials are worse. Train longer, widen the space, or look "
            "for a fault in data or loss."
        ]
    first, looks = records.read(pick, "first_loss"), records.looks(pick)
    last = looks[-1].train_loss if looks else math.nan
    if first and first > 0 and last > _HARDLY * first:
        return [
            f"Next to nothing was learnt: the training loss of the pick is {last:.3g}, and was {first:.3g} before "
            "training. Train longer, widen the space, or look for a fault in data or loss."
        ]
    return []


def about_cohorts(trials: Sequence[Late]) -> list[str]:
    """Say so where cohorts of late examples contradict each other over the trials of a study.

    A model gets better while it trains, so a later cohort is alarming where it is clearly worse than an earlier one,
    and an earlier one where it is no better than a constant answer and another is. Clearly: by 10 points, and by four
    standard errors.

    Args:
        trials: the judgements of each completed trial; those without accuracies say nothing.
    """
    known = [own for own in trials if len(own) > 1 and all(_known(cohort, "accuracy") for cohort in own)]
    if not known:
        return []
    length = statistics.mode(len(own) for own in known)
    known = [own for own in known if len(own) == length]
    accuracies = [statistics.median(own[k]["accuracy"] for own in known) for k in range(length)]
    errors = [statistics.median(_error(own[k], accuracies[k]) for own in known) for k in range(length)]
    constants = [own.get("constant_accuracy") for own in known[0]]

    def is_clear(low: int, high: int) -> bool:
        gap = accuracies[high] - accuracies[low]
        return bool(gap > max(_CLEAR, 4.0 * math.hypot(errors[low], errors[high])))

    def is_odd(k: int) -> bool:
        if any(is_clear(k, earlier) for earlier in range(k)):
            return True
        constant = constants[k]
        at_chance = constant is not None and accuracies[k] <= constant + 2.0 * errors[k]
        return at_chance and any(is_clear(k, other) for other in range(length))

    odd = [k for k in range(length) if is_odd(k)]
    if not odd:
        return []
    which = " and ".join(str(k + 1) for k in odd)
    shown = ", ".join(f"{accuracy:.0%}" for accuracy in accuracies)
    return [
        f"The late cohorts disagree: the median trial predicts {shown} of their labels, in the order in which they "
        f"join, so cohort {which} is not drawn like the others. Perhaps its labels are wrong, or a subset or noise of "
        "your own was drawn by the same random numbers: give `LateExamples` another `seed`. Until then the ranking "
        "means little."
    ]


def about_ends(ended: Sequence[FrozenTrial]) -> list[str]:
    """Say so where most trials failed, or were pruned before half of their run."""
    found = []
    failed = [trial for trial in ended if outcome(trial) == "failed"]
    if 2 * len(failed) > len(ended):
        kinds = Counter(records.reason(trial).partition(":")[0] or "unknown" for trial in failed)
        most = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(3))
        found.append(f"{len(failed)} of {len(ended)} trials failed: {most}. The pick is the best of the few others.")
    early = [trial for trial in ended if outcome(trial) == "pruned" and _is_early(trial)]
    if 2 * len(early) > len(ended):
        found.append(
            f"{len(early)} of {len(ended)} trials were pruned before half of their run: {some(_numbers(early))}. The "
            "pick is the best of the few others; let the pruner start later, or narrow the space."
        )
    return found


def _numbers(trials: Sequence[FrozenTrial]) -> list[int]:
    return sorted(trial.number for trial in trials)


def _is_early(trial: FrozenTrial) -> bool:
    looks = records.looks(trial)
    return bool(looks) and 0 < 2 * looks[-1].step < looks[-1].n_steps


def _known(judgement: Mapping[str, Any], name: str) -> bool:
    value = judgement.get(name)
    return value is not None and math.isfinite(value)


def _pooled(late: Late, name: str) -> float:
    return float(sum(own["n"] * own[name] for own in late) / sum(own["n"] for own in late))


def _error(judgement: Mapping[str, Any], accuracy: float) -> float:
    """Standard error of an accuracy: as the judgement knows it, else of independent labels."""
    if _known(judgement, "accuracy_error"):
        return float(judgement["accuracy_error"])
    share = min(max(accuracy, 0.5 / judgement["n"]), 1.0 - 0.5 / judgement["n"])
    return math.sqrt(share * (1.0 - share) / judgement["n"])


def _beats_constant_loss(late: Late) -> bool:
    """Whether the least loss is clearly below that of a constant answer, as where one class is most of the labels."""
    names = ("constant_loss", "loss_error")
    if not all(_known(own, name) for own in late for name in names):
        return False
    n = sum(own["n"] for own in late)
    gap = sum(own["n"] * (own["constant_loss"] - min(_finite(own["losses"]))) for own in late) / n
    return bool(gap > 2.0 * math.hypot(*(own["n"] / n * own["loss_error"] for own in late)))


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)] or [math.inf]
