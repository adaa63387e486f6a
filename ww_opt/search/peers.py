"""With whom a trial is compared at a rung: from storage, in each process alike."""

from __future__ import annotations

from datetime import datetime

import optuna
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search.repeats import is_repeat
from ww_opt.search.rungs import Ranks, Standing, standing

__all__ = ["Peers"]

_REACHED = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
_Key = tuple[str, int, datetime | None, float]


class Peers:
    """The other trials of a study at a rung. Remembers what finished ones showed there, which changes no more."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._known: dict[_Key, Standing | None] = {}

    def at(self, study: optuna.Study, trial: FrozenTrial, rung: float) -> list[Standing]:
        """Where the others stood at the rung: running, completed and pruned ones that reached it, but no repeats."""
        found = []
        for own in study.get_trials(deepcopy=False, states=_REACHED):
            if own.number != trial.number and (there := self._standing(study, own, rung)) is not None:
                found.append(there)
        return found

    def _standing(self, study: optuna.Study, trial: FrozenTrial, rung: float) -> Standing | None:
        # numbers start anew in each study, and a pruner may serve several
        key = (study.study_name, trial.number, trial.datetime_start, rung)
        if key in self._known:
            return self._known[key]
        found = None if is_repeat(trial) else standing(trial, rung, self._ranks)
        if trial.state.is_finished():
            self._known[key] = found
        return found
