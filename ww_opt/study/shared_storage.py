"""Optuna's storage as several processes use it: patient, and with the name of a process on each trial that runs."""

from __future__ import annotations

import abc
import copy
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ww_opt.study.params_at_once import Parameter, write_parameters
from ww_opt.study.patience import Patience
from ww_opt.study.presence import Process, this_process

__all__ = ["PatientStorage", "SharedStorage", "Stamp", "stamps"]

_STAMP = "ww_opt:process:"
_TOKEN = "ww_opt:token"


@dataclass(frozen=True)
class Stamp:
    """Who runs a trial, or was about to, and when the process last said so, in seconds since 1970."""

    key: str
    process: Process
    at: float


def stamps(trial: FrozenTrial) -> list[Stamp]:
    """Return who has run a trial or tried to begin it, the dead ones too."""
    return [
        Stamp(key, Process(kept["place"], kept["pid"], kept["started"]), float(kept["at"]))
        for key, kept in trial.system_attrs.items()
        if key.startswith(_STAMP) and kept is not None
    ]


def _passes_on(*names: str) -> Callable[[type[BaseStorage]], Any]:
    """Give a storage the methods of its backend, each tried until the connection holds."""

    def passing(name: str) -> Callable[..., Any]:
        def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
            self.flush()
            return self.patience.tried(lambda _: getattr(self.backend, name)(*args, **kwargs))

        call.__name__ = name
        return call

    def add(cls: type[BaseStorage]) -> type[BaseStorage]:
        for name in names:
            setattr(cls, name, passing(name))
        return abc.update_abstractmethods(cls)

    return add


@_passes_on(
    *("create_new_study", "delete_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name"),
    *("get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs"),
    *("get_all_studies", "get_trial_id_from_study_id_trial_number", "get_trial_number_from_id", "get_trial_param"),
    *("get_trial", "get_all_trials", "get_n_trials", "get_best_trial", "get_trial_params", "get_trial_user_attrs"),
    *("get_trial_system_attrs", "remove_session", "set_trial_param", "set_trial_intermediate_value"),
    *("set_trial_user_attr", "set_trial_system_attr", "create_new_trial", "set_trial_state_values"),
)
class PatientStorage(BaseStorage):
    """A storage of Optuna's that waits where it cannot be reached.

    Args:
        backend: Optuna's own.
        address: its URL or file.
        patience: how long it is waited for.
    """

    def __init__(self, backend: BaseStorage, address: str, patience: Patience) -> None:
        self.backend, self.address, self.patience = backend, address, patience

    def flush(self) -> None:
        """Write what was kept back: nothing."""


class SharedStorage(PatientStorage):
    """A storage that knows who runs which trial, bears that an answer is lost, and writes settings in one go.

    A trial gets the stamp of its process with the very write that creates it, or before that which takes it from the
    queue; so of a running trial it is always known whose it is, and whether that process is still there.

    Args:
        backend: Optuna's own.
        address: its URL or file.
        patience: how long it is waited for.
        is_remote: a connection can be lost after a write, before the answer.

    Attributes:
        running: identity of the trial that this process runs through this object now; ``None`` between trials.
        ended: the last trial whose state was set through this object.
    """

    def __init__(self, backend: BaseStorage, address: str, patience: Patience, *, is_remote: bool) -> None:
        super().__init__(backend, address, patience)
        self.running: int | None = None
        self.ended: int | None = None
        self._is_remote = is_remote
        self._key = _STAMP + uuid.uuid4().hex[:12]
        self._kept_back: list[Parameter] = []
        self._turn = threading.RLock()  # looks in the background write, too

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, once, although the answer may be lost; one that runs gets our stamp."""
        self.flush()
        token = uuid.uuid4().hex if self._is_remote else None
        if template_trial is None:
            template = FrozenTrial(
                number=-1,
                trial_id=-1,
                state=TrialState.RUNNING,
                value=None,
                datetime_start=datetime.now(),
                datetime_complete=None,
                params={},
                distributions={},
                user_attrs={},
                system_attrs={self._key: self._stamp()},
                intermediate_values={},
            )
        else:
            template = copy.copy(template_trial)
            template.system_attrs = dict(template.system_attrs)
        if token is not None:
            template.system_attrs[_TOKEN] = token

        def create(is_again: bool) -> int:
            if is_again:
                for trial in self.backend.get_all_trials(study_id, deepcopy=False):
                    if trial.system_attrs.get(_TOKEN) == token:
                        return trial._trial_id
            return self.backend.create_new_trial(study_id, template)

        found = self.patience.tried(create)
        if template_trial is None:
            self.running = found
        return found

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a state, once, although the answer may be lost; what is taken from the queue gets our stamp first."""
        self.flush()
        if state is TrialState.RUNNING:
            self._put_stamp(trial_id, self._stamp())
            # where the answer was lost and somebody has it now, that may be us: it is found to be nobody's, and done
            if self.patience.tried(lambda _: self.backend.set_trial_state_values(trial_id, state, values)):
                self.running = trial_id
                return True
            self._put_stamp(trial_id, None)
            return False

        def finish(is_again: bool) -> bool:
            try:
                return self.backend.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                kept = self.backend.get_trial(trial_id)
                if is_again and kept.state is state and kept.values == (None if values is None else list(values)):
                    return True
                raise

        try:
            found = self.patience.tried(finish)
        finally:
            if trial_id == self.running:
                self.running = None
        self.ended = trial_id
        return found

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Keep back a parameter of the trial that runs here, until anything else is read or written."""
        if trial_id != self.running:
            self.flush()
            own = Parameter(param_name, param_value_internal, distribution)
            self.patience.tried(lambda _: write_parameters(self.backend, trial_id, [own]))
            return
        with self._turn:
            self._kept_back.append(Parameter(param_name, param_value_internal, distribution))

    def flush(self) -> None:
        """Write the parameters that were kept back, in one go."""
        if not self._kept_back:
            return
        with self._turn:
            kept_back, self._kept_back = self._kept_back, []
            trial_id = self.running
            if kept_back and trial_id is not None:
                self.patience.tried(lambda _: write_parameters(self.backend, trial_id, kept_back))

    def beat(self) -> None:
        """Say that this process is alive, with the trial that it runs; without patience, and without one no-op."""
        trial_id = self.running
        if trial_id is not None:
            self.backend.set_trial_system_attr(trial_id, self._key, self._stamp())

    def is_own(self, stamp: Stamp) -> bool:
        """Whether a stamp was put through this very object."""
        return stamp.key == self._key

    def _stamp(self) -> dict[str, Any]:
        return {**asdict(this_process()), "at": round(time.time(), 1)}

    def _put_stamp(self, trial_id: int, stamp: dict[str, Any] | None) -> None:
        self.patience.tried(lambda _: self.backend.set_trial_system_attr(trial_id, self._key, stamp))
