"""What a report goes by, gathered once: the records, what the closing made of them, and where weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search.ranking import ranking
from ww_opt.search.repeats import start_number
from ww_opt.study.closing import Closing, TestAccuracy, closing, recorded_steps
from ww_opt.study.opened import recalled

if TYPE_CHECKING:
    from ww_opt.study.study import Study

__all__ = ["Facts", "gather"]


@dataclass(frozen=True)
class Facts:
    """A study as it stands now: finished, running or interrupted.

    Attributes:
        host: its records.
        study: what is run; ``None`` where the records alone are known.
        trials: all of them, in the order of their numbers.
        ranked: those that were ranked together, the best first.
        result: what the closing makes of them.
        n_steps: length of a whole run; 0 where it is not known.
        start: number of the trial with the settings that the user came with; ``None`` where there is none.
        accuracy: what the sealed test set said of the pick; ``None`` where it was not opened.
        folder: where the study keeps weights; ``None`` where that is not known.
        storage: where the records lie, as ``--storage`` has it, passwords included; empty where that is not known.
    """

    host: optuna.Study
    study: Study | None
    trials: tuple[FrozenTrial, ...]
    ranked: tuple[FrozenTrial, ...]
    result: Closing
    n_steps: int
    start: int | None
    accuracy: TestAccuracy | None = None
    folder: Path | None = None
    storage: str = ""

    @property
    def pick(self) -> FrozenTrial | None:
        """The pick; ``None`` where there is none."""
        return self.result.pick

    @property
    def sign(self) -> float:
        """1 where a lower score is better, else -1."""
        return -1.0 if self.host.directions[0] is StudyDirection.MAXIMIZE else 1.0

    def in_state(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in one of these states."""
        return [trial for trial in self.trials if trial.state in states]


def gather(
    host: optuna.Study,
    study: Study | None = None,
    *,
    folder: Path | None = None,
    storage: str = "",
    result: Closing | None = None,
) -> Facts:
    """Gather what a report goes by. Nothing is trained and nothing is written.

    Args:
        host: the records of any study of one objective, also one that ``ww_opt`` has no part in.
        study: what is run, if that is known.
        folder: where the study keeps weights.
        storage: where the records lie.
        result: as from :func:`ww_opt.study.closing.closing`, where that was made already.

    Raises:
        ValueError: the study has several objectives.
    """
    if len(host.directions) != 1:
        raise ValueError(
            f"A report needs a study with 1 objective, but {host.study_name!r} has {len(host.directions)}: look at it "
            "with `optuna-dashboard`."
        )
    result = closing(study, host) if result is None else result
    trials = tuple(sorted(host.get_trials(deepcopy=False), key=lambda own: own.number))
    ranked = ranking(host, trials).trials
    accuracy = None if result.pick is None else recalled(host, result.pick)
    n_steps = study.objective.n_steps if study is not None else recorded_steps(trials)
    return Facts(host, study, trials, ranked, result, n_steps, start_number(host), accuracy, folder, storage)
