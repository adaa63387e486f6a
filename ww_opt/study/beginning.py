"""The first trial of a fresh study: the user's present configuration, or values that he names."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import optuna
from torch import nn

from ww_opt.search.objective import SpectralObjective
from ww_opt.search.repeats import start_of
from ww_opt.search.starting import GIVEN, PRESENT, Start, check_start, remember_start
from ww_opt.study.faults import is_bad_input

__all__ = ["enqueue_start", "lay_start"]

_LOG = logging.getLogger(__name__)


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
    """Let the start be the first trial of a study that has none yet: once, whoever comes first."""
    if not host.get_trials(deepcopy=False) and (values := start_of(host)):
        host.enqueue_trial(values, skip_if_exists=True)


def _present(objective: SpectralObjective, model: nn.Module) -> Start | None:
    try:
        return Start(objective.space.present(model, objective.task.optimizer))
    except Exception as error:
        if is_bad_input(error):
            _LOG.warning("The present configuration is not tried first, for it cannot be told: %s", error)
        return None  # what else is wrong is told by the first trial, with its place
