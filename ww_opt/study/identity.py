"""Is what goes on under an old name still the same study? Its values, task and space, as the storage knows them.

A study from before one of these was remembered goes on as it is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState
from torch import nn

from ww_opt.search import records
from ww_opt.search.bounds import changes, remember, remembered
from ww_opt.search.objective import SpectralObjective
from ww_opt.spectral.scores import FORMULA
from ww_opt.training.randomness import seeded
from ww_opt.training.wrappers import plain_names

__all__ = ["check_same_space", "check_same_task", "check_same_values", "fresh_model", "has_begun"]

_TASK = "ww_opt:task"
_RTOL, _RTOL_OF_HALF = 1e-4, 1e-2
_WORDS = {
    "name": "its name",
    "n_weights": "the number of weights",
    "architecture": "the names or shapes of the weights (as a digest)",
    "n_examples": "the number of examples in `late_entry`",
}


def check_same_values(host: optuna.Study, objective: SpectralObjective) -> None:
    """Refuse to rank values that were made in another way; the budget may change."""
    ours = {
        "score": objective.score,
        "guard": objective.guard,
        "n_steps": objective.n_steps,
        "formula": FORMULA,
    }
    theirs = host.user_attrs.get("ww_opt:objective")
    if theirs is None:
        host.set_user_attr("ww_opt:objective", ours)
    elif theirs != ours:
        raise ValueError(
            f"Study {host.study_name!r} in the storage must have been run with the same objective, {ours}, since its "
            f"values are ranked together, but it was run with {theirs}: choose another --study-name."
        )


def has_begun(host: optuna.Study) -> bool:
    """Whether any trial has been started."""
    return any(trial.state is not TrialState.WAITING for trial in host.get_trials(deepcopy=False))


def fresh_model(objective: SpectralObjective) -> nn.Module | None:
    """Build the model of a trial; ``None`` where that raises, which the first trial tells, with its place."""
    try:
        with seeded(objective.seed, objective.task.device):
            model: object = objective.task.build_model()
    except Exception:
        return None
    return model if isinstance(model, nn.Module) else None


def check_same_task(host: optuna.Study, objective: SpectralObjective, model: nn.Module) -> None:
    """Refuse to go on with another model, other data or another loss.

    The last two are told by the loss before training, where it is the same each time: in the trials so far, or, of a
    single one, in two computations.

    Raises:
        ValueError: one of them differs.
    """
    ours = _task(objective, model)
    theirs = host.user_attrs.get(_TASK)
    if not has_begun(host):
        host.set_user_attr(_TASK, ours)
        return
    if theirs is None:
        return
    found = [
        f"{_WORDS[key]} was {theirs.get(key)!r} and is {value!r}"
        for key, value in ours.items()
        if theirs.get(key) != value
    ]
    found = found or _other_loss(host, objective)
    if found:
        raise ValueError(
            f"Study {host.study_name!r} in the storage must have been run with the same task, since its values are "
            f"ranked together, but {'; '.join(found)}: choose another --study-name."
        )


def _task(objective: SpectralObjective, model: nn.Module) -> dict[str, Any]:
    plain, late = plain_names(model), objective.task.late_entry
    shapes = [(plain(name), tuple(own.shape)) for name, own in model.named_parameters()]
    return {
        "name": objective.task.name,
        "n_weights": sum(math.prod(shape) for _, shape in shapes),
        "architecture": hashlib.sha256(repr(sorted(shapes)).encode()).hexdigest()[:12],
        "n_examples": None if late is None else late.n_examples,
    }


def _other_loss(host: optuna.Study, objective: SpectralObjective) -> list[str]:
    """Say that the loss before training has changed; empty where it has not, or where that cannot be known."""
    conditions = objective.conditions
    known = [
        before["loss"]
        for trial in host.get_trials(deepcopy=False)
        if (before := records.read(trial, "before")) is not None
        and before["loss"] is not None
        and all(before.get(key) == value for key, value in conditions.items())
    ]
    rtol = _RTOL if objective.task.amp is None else _RTOL_OF_HALF
    if not known or not _agree(known, rtol):
        return []
    try:
        computed = [objective.loss_before() for _ in range(1 if len(known) > 1 else 2)]
    except Exception:  # the next trial tells, with its place
        return []
    if not _agree(computed, rtol) or _agree([*known, *computed], rtol):
        return []
    return [
        f"the loss before training was {known[0]:.6g} and is {computed[0]:.6g}, so that the data, `loss` or the "
        "initial weights have changed (or are drawn at random when the file is imported: seed them)"
    ]


def _agree(values: list[float], rtol: float) -> bool:
    return all(math.isclose(value, values[0], rel_tol=rtol, abs_tol=1e-9) for value in values)


def check_same_space(host: optuna.Study, bounds: Mapping[str, BaseDistribution], *, may_change: bool) -> None:
    """Refuse other bounds than those of the trials so far, or take them over.

    Raises:
        ValueError: they differ, and ``may_change`` is not set.
    """
    theirs = remembered(host)
    if not has_begun(host):
        remember(host, bounds)
    elif theirs is not None and (differ := changes(theirs, bounds)):
        if not may_change:
            raise ValueError(
                f"Study {host.study_name!r} in the storage must be gone on with in the same space, but {differ}: take "
                "the old bounds, choose another --study-name, or go on with the new ones by --changed-space rescale; "
                "old trials inside them count."
            )
        remember(host, bounds, is_rescaled=True)
