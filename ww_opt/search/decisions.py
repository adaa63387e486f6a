"""What a pruner decided about a trial, and why: on record with the trial, to be read by people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ww_opt.search import records

__all__ = ["FAULT", "NOT_FINITE", "RANK", "WRAPPED", "Decision", "decisions", "ended_by", "leave", "leave_own"]

FAULT, RANK, WRAPPED = "fault", "rank", "wrapped"
"""Halves of a pruner: something is broken, others were better, a wrapped pruner said so."""
NOT_FINITE = "not_finite"
"""Rule that cannot be switched off: weights, a score, a loss or a reported value are not finite."""
_DECISION = "decision:"


@dataclass(frozen=True)
class Decision:
    """One decision about a trial.

    Attributes:
        step: of the look that it was made at.
        rule: name of the rule: a fault's, ``late`` or ``weights`` where ranks decided, or the wrapped pruner's class.
        half: ``fault``, ``rank`` or ``wrapped``.
        is_pruned: whether the trial ended.
        fraction: of the run that was done; NaN where its length is not known.
        layers: those that a fault was found in.
        value: what was compared: a fault's number, the late loss in the unit of the task's loss, or the score.
        threshold: what it was compared with; NaN where nothing was.
        compared: numbers of the trials that it was compared with.
        words: the same as a sentence.
    """

    step: int
    rule: str
    half: str
    is_pruned: bool
    fraction: float = math.nan
    layers: tuple[str, ...] = ()
    value: float = math.nan
    threshold: float = math.nan
    compared: tuple[int, ...] = ()
    words: str = ""


def leave_own(trial: optuna.Trial, decision: Decision) -> None:
    """Leave a decision with a trial that is running here."""
    records.write(trial, **{_name(decision): asdict(decision)})


def _name(decision: Decision) -> str:
    return f"{_DECISION}{decision.step}:{decision.half}"


def leave(study: optuna.Study, trial: FrozenTrial, decision: Decision) -> None:
    """Leave a decision with a running trial; one that has ended, or is another study's, keeps its record as it is."""
    storage = study._storage
    try:
        own = storage.get_trial(trial._trial_id)
        if own.number == trial.number and own.datetime_start == trial.datetime_start and not own.state.is_finished():
            storage.set_trial_user_attr(trial._trial_id, *records.as_attribute(_name(decision), asdict(decision)))
    except KeyError:
        pass  # a frozen trial that was made by hand has no place in the storage


def decisions(trial: FrozenTrial | optuna.Trial) -> tuple[Decision, ...]:
    """Read back what was decided about a trial, by step; empty where no pruner of ours was asked.

    At each rung that a trial reached there is one decision, kept or pruned; faults and a wrapped pruner leave theirs
    where they end a trial.
    """
    found = [_from_record(value) for value in records.read_all(trial, _DECISION) if isinstance(value, Mapping)]
    return tuple(sorted(found, key=lambda own: own.step))


def ended_by(trial: FrozenTrial) -> str:
    """Name of the rule that pruned a trial; empty where none of ours did."""
    return next((own.rule for own in reversed(decisions(trial)) if own.is_pruned), "")


def _from_record(value: Mapping[str, Any]) -> Decision:
    def number(name: str) -> float:
        own = value.get(name)
        return float(own) if isinstance(own, int | float) else math.nan

    def several(name: str, kind: type) -> Sequence[Any]:
        own = value.get(name)
        return [item for item in own if isinstance(item, kind)] if isinstance(own, Sequence) else ()

    step = number("step")
    return Decision(
        step=int(step) if math.isfinite(step) else 0,
        rule=str(value.get("rule", "")),
        half=str(value.get("half", "")),
        is_pruned=bool(value.get("is_pruned")),
        fraction=number("fraction"),
        layers=tuple(several("layers", str)),
        value=number("value"),
        threshold=number("threshold"),
        compared=tuple(several("compared", int)),
        words=str(value.get("words", "")),
    )
