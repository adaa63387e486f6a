"""The settings of a trial in one write: Optuna writes each by itself, which takes a second where there are hundreds.

The one place that knows how Optuna 5 stores parameters; a test holds it to what Optuna reads back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

__all__ = ["Parameter", "write_parameters"]

_SET_PARAMETER = 5  # JournalOperation.SET_TRIAL_PARAM


class Parameter(NamedTuple):
    """A parameter as storages keep it."""

    name: str
    value: float
    distribution: BaseDistribution


def write_parameters(backend: BaseStorage, trial_id: int, parameters: Sequence[Parameter]) -> None:
    """Write them all, at once where the storage is a journal or a database, else one after the other.

    Raises:
        ValueError: a parameter had another kind of distribution in an earlier trial.
        optuna.exceptions.UpdateFinishedTrialError: the trial has ended.
    """
    database = getattr(backend, "_backend", None)
    if len(parameters) > 1 and isinstance(backend, JournalStorage):
        _write_to_journal(backend, trial_id, parameters)
    elif len(parameters) > 1 and isinstance(database, RDBStorage):
        _write_to_database(backend, database, trial_id, parameters)
    else:
        for own in parameters:
            backend.set_trial_param(trial_id, own.name, own.value, own.distribution)


def _write_to_journal(storage: JournalStorage, trial_id: int, parameters: Sequence[Parameter]) -> None:
    with storage._thread_lock:
        storage._backend.append_logs(
            [
                {
                    "op_code": _SET_PARAMETER,
                    "worker_id": storage._replay_result.worker_id,
                    "trial_id": trial_id,
                    "param_name": own.name,
                    "param_value_internal": own.value,
                    "distribution": distribution_to_json(own.distribution),
                }
                for own in parameters
            ]
        )
        storage._sync_with_backend()


def _write_to_database(
    cache: BaseStorage, database: RDBStorage, trial_id: int, parameters: Sequence[Parameter]
) -> None:
    from optuna.storages._rdb import models
    from optuna.storages._rdb.storage import _create_scoped_session

    known = _known(cache, trial_id)
    with _create_scoped_session(database.scoped_session, True) as session:
        trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
        database.check_trial_is_updatable(trial_id, trial.state)
        for own in parameters:
            earlier = known.get(own.name)
            if earlier is None:  # asks the database for an earlier trial's
                database._set_trial_param_without_commit(session, trial_id, *own)
                continue
            check_distribution_compatibility(earlier, own.distribution)
            text = distribution_to_json(own.distribution)
            session.add(
                models.TrialParamModel(
                    trial_id=trial_id, param_name=own.name, param_value=own.value, distribution_json=text
                )
            )
    for own in parameters:
        known.setdefault(own.name, own.distribution)


def _known(cache: BaseStorage, trial_id: int) -> dict[str, BaseDistribution]:
    """Distributions of earlier trials that Optuna's cache knows: its own, so that it learns with us."""
    places, studies = getattr(cache, "_trial_id_to_study_id_and_number", {}), getattr(cache, "_studies", {})
    study = studies.get(places[trial_id][0]) if trial_id in places else None
    return getattr(study, "param_distribution", {})
