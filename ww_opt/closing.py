"""What a finished study says: the pick, what pruning saved, and, only now, the sealed test set."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from ww_opt import records
from ww_opt.records import Look
from ww_opt.study import INTERRUPTED, Study, weights_file

__all__ = ["Closing", "TestAccuracy", "closing", "open_test_set"]


@dataclass(frozen=True)
class TestAccuracy:
    """Accuracy on the sealed test set, of the pick, the best and the median of ``n_trials`` completed trials.

    ``best`` and ``median`` are NaN where only the pick's weights were kept.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    pick: float
    best: float
    best_number: int
    median: float
    n_trials: int


@dataclass(frozen=True)
class Closing:
    """A study in numbers. ``pick`` is ``None`` where no trial completed; ``look`` is the last one at it.

    ``saved`` is the share of training steps that pruning saved, of those that completed and pruned trials would have
    run. ``reasons`` are those of the pruned and failed trials. Trials that the user interrupted count nowhere.
    """

    n_complete: int
    n_pruned: int
    n_failed: int
    saved: float
    pick: FrozenTrial | None
    look: Look | None
    reasons: tuple[str, ...] = ()


def closing(study: Study, host: optuna.Study) -> Closing:
    """Sum up a study from its records."""
    finished = [trial for trial in host.get_trials(deepcopy=False) if trial.state.is_finished()]
    trials = [trial for trial in finished if records.reason(trial) != INTERRUPTED]
    of = {state: [trial for trial in trials if trial.state is state] for state in TrialState}
    ran = [_steps(trial, study.objective.n_steps) for trial in of[TrialState.COMPLETE] + of[TrialState.PRUNED]]
    pick = host.best_trial if of[TrialState.COMPLETE] else None
    seen = records.looks(pick) if pick is not None else ()
    return Closing(
        n_complete=len(of[TrialState.COMPLETE]),
        n_pruned=len(of[TrialState.PRUNED]),
        n_failed=len(of[TrialState.FAIL]),
        saved=1.0 - sum(ran) / (study.objective.n_steps * len(ran)) if ran else 0.0,
        pick=pick,
        look=seen[-1] if seen else None,
        reasons=tuple(reason for trial in trials if (reason := records.reason(trial))),
    )


def _steps(trial: FrozenTrial, n_steps: int) -> int:
    if trial.state is TrialState.COMPLETE:
        return n_steps
    # a loss that is not finite ends a trial without a look
    return int(records.read(trial, "steps", default=max((look.step for look in records.looks(trial)), default=0)))


def open_test_set(study: Study, host: optuna.Study, directory: Path) -> TestAccuracy | None:
    """Evaluate the kept weights of all completed trials on the sealed test set.

    Returns:
        ``None`` where the task has no test set, or no trial completed, or no weights were kept.
    """
    task = study.objective.task
    complete = [t.number for t in host.get_trials(deepcopy=False) if t.state is TrialState.COMPLETE]
    kept = [number for number in complete if weights_file(directory, number).is_file()]
    if task.evaluate is None or not kept or host.best_trial.number not in kept:
        return None
    accuracies = {}
    with torch.random.fork_rng(devices=[]):
        model = task.build_model().to(task.device)
    for number in kept:
        model.load_state_dict(torch.load(weights_file(directory, number), map_location=task.device, weights_only=True))
        accuracies[number] = float(task.evaluate(model))
    only_pick = len(kept) < len(complete)
    best = max(accuracies, key=lambda number: accuracies[number])
    return TestAccuracy(
        pick=accuracies[host.best_trial.number],
        best=float("nan") if only_pick else accuracies[best],
        best_number=best,
        median=float("nan") if only_pick else statistics.median(accuracies.values()),
        n_trials=len(kept),
    )
