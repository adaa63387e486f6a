"""Optuna's records -> documents: what MLflow gets of a trial at its end. Pure: nothing here talks to MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from ww_opt.reporting import summary
from ww_opt.search import records
from ww_opt.search.ranking import best, is_interrupted, outcome
from ww_opt.tracking.contents import Contents, best_late_accuracy
from ww_opt.tracking.documents import End, Ended, Parent, State, Weights

__all__ = ["FileOf", "end", "ended", "finished", "parent"]

FileOf = Callable[[int], Path | None]
"""Where the weights of a trial lie, by its number; ``None``: nowhere, or they are not to be sent."""

_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000  # MLflow's own limits


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have ended in any way."""
    return study.get_trials(deepcopy=False, states=tuple(_STATUS))


def parent(study: optuna.Study) -> Parent:
    """Name the run of a study; at least one trial must have ended."""
    directions = ",".join(direction.name.lower() for direction in study.directions)
    start = min(_milliseconds(trial.datetime_start) for trial in finished(study))
    return Parent(summary.study_id(study), study.study_name, directions, start)


def ended(study: optuna.Study, trial: FrozenTrial, file_of: FileOf | None = None) -> Ended:
    """Gather what is known of a trial that has ended, and of its study at that moment.

    Args:
        study: of which it is.
        trial: one that has ended.
        file_of: where weights are kept; default: none are sent.
    """
    params, points, trials = summary.parameters(trial), summary.curves(trial), finished(study)
    names, keys = summary.clean_names(params), summary.clean_names(name for name, _ in points)
    moment = _milliseconds(trial.datetime_complete)
    text, reason = summary.note(trial, _TAG_LENGTH), records.reason(trial)[:_TAG_LENGTH]
    tags = {"mlflow.note.content": text, "ww_opt.reason": reason, "ww_opt.outcome": outcome(trial)}
    before = [own for own in trials if _milliseconds(own.datetime_complete) <= moment]
    curves = {
        "best_value": summary.best_value_at(study, trials, trial),
        "best_late_accuracy": best_late_accuracy(before),
    }
    table = summary.layer_table(trial)
    return Ended(
        parent=parent(study),
        trial=trial.number,
        start=_milliseconds(trial.datetime_start),
        end=moment,
        status="KILLED" if is_interrupted(trial) else _STATUS[trial.state],
        state=_state(study, trials, file_of),
        params={names[name]: str(value)[:_PARAM_LENGTH] for name, value in params.items()},
        tags={name: own for name, own in tags.items() if own},
        points=tuple((keys[name], step, value) for (name, step), value in points.items()),
        table=(table.columns, *table.rows) if table.rows else (),
        curves={name: value for name, value in curves.items() if math.isfinite(value)},
    )


def end(study: optuna.Study, contents: Contents | None, register: str = "") -> End | None:
    """Gather what the study's run gets at the end; ``None`` where no trial has ended.

    Args:
        study: as it is now.
        contents: what else is known of it.
        register: under which name its weights are registered; empty: they are not.
    """
    trials = finished(study)
    if not trials:
        return None
    state, own, step = _state(study, trials), contents or Contents(), max(trial.number for trial in trials)
    weights = None
    if own.weights is not None and state.best is not None:
        weights = Weights(str(own.weights.resolve()), state.best)
    params, tags, metrics = (summary.clean_names(values) for values in (own.params, own.tags, own.metrics))
    return End(
        parent=parent(study),
        step=step,
        state=State(state.moment, "\n\n".join(filter(None, (state.note, own.note))), state.best, weights),
        params={params[name]: value[:_PARAM_LENGTH] for name, value in own.params.items()},
        tags={tags[name]: value[:_TAG_LENGTH] for name, value in own.tags.items()},
        metrics={metrics[name]: value for name, value in own.metrics.items()},
        files=tuple(str(file.resolve()) for file in own.files),
        register=register,
    )


def _state(study: optuna.Study, trials: Sequence[FrozenTrial], file_of: FileOf | None = None) -> State:
    """What is known now: as late as the last of the trials that ended."""
    leader, weights = best(study, trials), None
    if leader is not None and file_of is not None and (file := file_of(leader.number)) is not None:
        weights = Weights(str(file.resolve()), leader.number)
    note = summary.study_note(study, trials, leader)
    return State(_last(trials), note, None if leader is None else leader.number, weights)


def _last(trials: Iterable[FrozenTrial]) -> int:
    return max(_milliseconds(trial.datetime_complete) for trial in trials)


def _milliseconds(moment: datetime | None) -> int:
    return int((moment or datetime.now()).timestamp() * 1000)
