"""The first trials of a fresh study: the user's present configuration or values that he names, then earlier leaders."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import optuna
from torch import nn

from ww_opt.search.objective import SpectralObjective
from ww_opt.search.repeats import start_of
from ww_opt.search.starting import GIVEN, PRESENT, Start, check_start, remember_start
from ww_opt.search.transfer import carried_over
from ww_opt.study.faults import is_bad_input

__all__ = ["enqueue_start", "lay_earlier", "lay_start"]

_LOG = logging.getLogger(__name__)
_EARLIER = "ww_opt:earlier"
"""Attribute of a study: settings of an earlier one's leaders, to be tried after the start."""


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


def lay_earlier(host: optuna.Study, objective: SpectralObjective, earlier: optuna.Study) -> int:
    """Keep what an earlier study's leaders come to in this space, until :func:`enqueue_start`.

    Returns:
        Settings that are to be tried after the start; 0 where trials are there already: a study that goes on.

    Raises:
        ValueError: it is the study itself, or as :func:`ww_opt.carried_over`.
    """
    if earlier.study_name == host.study_name:
        raise ValueError(
            f"An earlier study must be another one, but got {earlier.study_name!r} itself: name the other, or choose a "
            "new --study-name."
        )
    if host.get_trials(deepcopy=False):
        return 0
    found = carried_over(earlier, objective.space.parameters(objective.task.build_model()))
    host.set_user_attr(_EARLIER, found)
    return len(found)


def enqueue_start(host: optuna.Study) -> None:
    """Let the start be the first trial of a study that has none yet, and what was carried over the next ones."""
    if host.get_trials(deepcopy=False):
        return
    if values := start_of(host):
        host.enqueue_trial(values, skip_if_exists=True)
    for settings in host.user_attrs.get(_EARLIER) or ():
        host.enqueue_trial(settings, skip_if_exists=True)


def _present(objective: SpectralObjective, model: nn.Module) -> Start | None:
    try:
        return Start(objective.space.present(model, objective.task.optimizer))
    except Exception as error:
        if is_bad_input(error):
            _LOG.warning("The present configuration is not tried first, for it cannot be told: %s", error)
        return None  # what else is wrong is told by the first trial, with its place
