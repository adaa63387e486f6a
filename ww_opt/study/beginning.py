"""How a study begins: it is known again, or fresh, with the user's configuration and what is carried over first."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import optuna
from torch import nn

from ww_opt.search.objective import SpectralObjective
from ww_opt.search.repeats import start_of
from ww_opt.search.starting import GIVEN, PRESENT, Start, carried_of, check_start, remember_start
from ww_opt.study.carrying import lay_carried
from ww_opt.study.faults import is_bad_input
from ww_opt.study.identity import check_same_space, check_same_task, fresh_model

__all__ = ["enqueue_start", "lay_start", "recognise"]

_LOG = logging.getLogger(__name__)


def recognise(
    host: optuna.Study,
    objective: SpectralObjective,
    *,
    start: bool | Mapping[str, float],
    carry_over: str | optuna.Study | None,
    may_change: bool,
) -> None:
    """Refuse another task or space under this name; of a fresh study remember both, and where it starts.

    Raises:
        ValueError: one of them differs, ``start`` is no point of the space, or nothing can be carried over.
    """
    model = fresh_model(objective)
    if model is None:
        return
    check_same_task(host, objective, model)
    try:
        bounds = objective.space.parameters(model)
    except Exception:  # what is wrong is told by the first trial, with its place
        return
    check_same_space(host, bounds, may_change=may_change)
    lay_start(host, objective, model, start)
    lay_carried(host, carry_over, bounds)


def lay_start(
    host: optuna.Study, objective: SpectralObjective, model: nn.Module, start: bool | Mapping[str, float]
) -> None:
    """Work out the first trial, and keep it with the study until :func:`enqueue_start`; no-op where trials are there.

    A present configuration that cannot be told is told of, and left out.

    Raises:
        ValueError: ``start`` names no parameter of the space, or a value outside its bounds.
    """
    if host.get_trials(deepcopy=False):
        return
    if isinstance(start, Mapping):
        remember_start(host, check_start(objective.space.parameters(model), start), GIVEN)
        return
    remember_start(host, _present(objective, model) if start else None, PRESENT)


def enqueue_start(host: optuna.Study) -> None:
    """Queue the start, and then what is carried over, in a study that has no trial yet: once, whoever comes first."""
    if host.get_trials(deepcopy=False):
        return
    start, carried = start_of(host), carried_of(host)
    for own in (*([start] if start else []), *(carried.settings if carried else ())):
        host.enqueue_trial(own, skip_if_exists=True)


def _present(objective: SpectralObjective, model: nn.Module) -> Start | None:
    try:
        return Start(objective.space.present(model, objective.task.optimizer))
    except Exception as error:
        if is_bad_input(error):
            _LOG.warning("The present configuration is not tried first, for it cannot be told: %s", error)
        return None  # what else is wrong is told by the first trial, with its place
