"""What must be read before the pick: nothing was learnt, cohorts disagree, most trials failed or were pruned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from ww_opt.search import records
from ww_opt.search.decisions import RANK, decisions
from ww_opt.search.ranking import outcome, some
from ww_opt.training.alarms import alarms as late_alarms
from ww_opt.training.judging import Judgement

__all__ = ["about_ends", "about_learning", "alarms"]

_HARDLY = 0.95


def alarms(ended: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial], pick: FrozenTrial | None) -> list[str]:
    """Say what makes a study's pick worth little, most serious first; empty where nothing does.

    Args:
        ended: trials that the study ran to an end, interrupted ones left out.
        ranked: those that were ranked.
        pick: the best of them.
    """
    asked = [trial for trial in ranked if records.read(trial, "late")]
    late = [[Judgement.from_record(own) for own in records.read(trial, "late")] for trial in asked]
    firsts = [float(records.read(trial, "first_loss", math.nan)) for trial in asked]
    said = late_alarms(late, firsts) if asked else about_learning(pick) if pick is not None else []
    return [*said, *about_ends(ended, is_picked=pick is not None)]


def about_learning(pick: FrozenTrial) -> list[str]:
    """Say so where the training loss of the pick, and with it the whole study, is hardly below the first one."""
    first, looks = records.read(pick, "first_loss"), records.looks(pick)
    last = looks[-1].train_loss if looks else math.nan
    if first and first > 0 and last > _HARDLY * first:
        return [
            f"Next to nothing was learnt: the training loss of the pick is {last:.3g}, and was {first:.3g} before "
            "training. Train longer, widen the space, or look for a fault in data or loss."
        ]
    return []


def about_ends(ended: Sequence[FrozenTrial], *, is_picked: bool = True) -> list[str]:
    """Say so where most trials failed, diverged, or were pruned before half of their run, or all of that together.

    Those that our pruner ended because others were better count for nothing here: that is what it is for. How many
    ended before their first look, so that nothing is known of them, is said beside it.
    """
    found = []
    rest = " The pick is the best of the few others." if is_picked else ""
    failed = [trial for trial in ended if outcome(trial) == "failed"]
    if 2 * len(failed) > len(ended):
        kinds = Counter(records.reason(trial).partition(":")[0] or "unknown" for trial in failed)
        most = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(3))
        found.append(f"{len(failed)} of {len(ended)} trials failed: {most}.{_unseen(failed)}{rest}")
    diverged = [trial for trial in ended if outcome(trial) == "pruned" and _has_diverged(trial)]
    if 2 * len(diverged) > len(ended):
        found.append(
            f"{len(diverged)} of {len(ended)} trials diverged: {some(_numbers(diverged))}.{_unseen(diverged)}{rest} "
            "Lower the bounds of the learning rate, clip gradients (`clip_norm`), or look for NaN in the data and in "
            "the loss."
        )
        return found
    early = [trial for trial in ended if outcome(trial) == "pruned" and _is_early(trial) and not _was_outrun(trial)]
    if 2 * len(early) > len(ended):
        found.append(
            f"{len(early)} of {len(ended)} trials were pruned before half of their run: {some(_numbers(early))}."
            f"{_unseen(early)}{rest} Let the pruner start later, or narrow the space."
        )
    lost = [*failed, *early]
    if not found and 2 * len(lost) > len(ended):
        found.append(
            f"{len(lost)} of {len(ended)} trials came to nothing: {len(failed)} failed, {len(early)} were pruned "
            f"before half of their run.{_unseen(lost)}{rest}"
        )
    return found


def _unseen(trials: Sequence[FrozenTrial]) -> str:
    n = sum(records.last_step(trial) is None for trial in trials)
    return f" {n} of them ended before the first look." if n else ""


def _numbers(trials: Sequence[FrozenTrial]) -> list[int]:
    return sorted(trial.number for trial in trials)


def _is_early(trial: FrozenTrial) -> bool:
    looks = records.looks(trial)
    # one that diverged before its first look has none
    return not looks or 0 < 2 * looks[-1].step < looks[-1].n_steps


def _was_outrun(trial: FrozenTrial) -> bool:
    return any(own.is_pruned and own.half == RANK for own in decisions(trial))


def _has_diverged(trial: FrozenTrial) -> bool:
    reason = records.reason(trial)
    return any(word in reason for word in ("diverged", "not finite", "NaN or infinite"))
