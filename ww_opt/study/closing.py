"""What a finished study says: the pick, what pruning saved, and, only now, the sealed test set."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import torch
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from ww_opt.search import records
from ww_opt.search.records import Look
from ww_opt.study.study import INTERRUPTED, Study
from ww_opt.study.trust import comparable, seed_noise, trust
from ww_opt.study.weights_folder import pick_file, save_weights, weights_file
from ww_opt.training.wrappers import load_plain_state

__all__ = ["Closing", "TestAccuracy", "closing", "open_test_set", "pick_of", "train_pick"]

_AGAIN = "ww_opt:trained_again"


@dataclass(frozen=True)
class TestAccuracy:
    """Accuracy on the sealed test set, of the pick, the best and the median of ``n_trials`` completed trials.

    ``best`` and ``median`` are NaN where only the pick's weights were kept; ``again``, of the pick trained once more
    (:func:`train_pick`), where it was not.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    pick: float
    best: float
    best_number: int
    median: float
    n_trials: int
    again: float = math.nan


@dataclass(frozen=True)
class Closing:
    """A study in numbers. ``pick`` is ``None`` where no trial completed; ``look`` is the last one at it.

    ``saved`` is the share of training steps that pruning saved, of those that completed and pruned trials would have
    run. ``reasons`` are those of the pruned and failed trials. Trials that the user interrupted count nowhere.
    ``direction`` says which way the score is better; ``trust`` how far its ranking can be trusted, in sentences.
    """

    n_complete: int
    n_pruned: int
    n_failed: int
    saved: float
    pick: FrozenTrial | None
    look: Look | None
    reasons: tuple[str, ...] = ()
    direction: str = "minimize"
    trust: tuple[str, ...] = ()


def closing(
    study: Study, host: optuna.Study, *, repeat: bool = False, announce: Callable[[str], object] = lambda _: None
) -> Closing:
    """Sum up a study from its records.

    Args:
        study: what was run.
        host: its records.
        repeat: train the pick with further seeds where that was not done yet, to know the noise of the score.
        announce: is told in a sentence, before that takes its time.
    """
    finished = [trial for trial in host.get_trials(deepcopy=False) if trial.state.is_finished()]
    trials = [trial for trial in finished if records.reason(trial) != INTERRUPTED]
    of = {state: [trial for trial in trials if trial.state is state] for state in TrialState}
    ran = [_steps(trial, study.objective.n_steps) for trial in of[TrialState.COMPLETE] + of[TrialState.PRUNED]]
    ranked, apart = comparable(of[TrialState.COMPLETE])
    pick = pick_of(host, ranked)
    said = [apart] if apart else []
    if pick is not None:
        said += trust(study, ranked, pick, seed_noise(study, host, pick, announce) if repeat else math.nan)
    seen = records.looks(pick) if pick is not None else ()
    return Closing(
        n_complete=len(of[TrialState.COMPLETE]),
        n_pruned=len(of[TrialState.PRUNED]),
        n_failed=len(of[TrialState.FAIL]),
        saved=1.0 - sum(ran) / (study.objective.n_steps * len(ran)) if ran else 0.0,
        pick=pick,
        look=seen[-1] if seen else None,
        reasons=tuple(reason for trial in trials if (reason := records.reason(trial))),
        direction=study.objective.direction,
        trust=tuple(said),
    )


def pick_of(host: optuna.Study, ranked: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the best of trials that may be ranked together."""
    choose = min if host.direction is optuna.study.StudyDirection.MINIMIZE else max
    known = [trial for trial in ranked if trial.value is not None]
    return choose(known, key=lambda trial: trial.value or 0.0, default=None)


def train_pick(
    study: Study,
    host: optuna.Study,
    pick: FrozenTrial,
    directory: Path,
    announce: Callable[[str], object] = lambda _: None,
) -> Path | None:
    """Train the pick once more with all examples from the start, where some of them joined late in its trial.

    What joined late was seen less often: over ten development tasks that costs 0.9 points of accuracy.

    Args:
        study: what was run.
        host: its records, which remember that it was done.
        pick: its settings.
        directory: where the weights are kept.
        announce: is told in a sentence, before that takes its time.

    Returns:
        The state dict's file; ``None`` where no example joined late, or the training diverged.
    """
    if study.objective.guard != "late":
        return None
    target = pick_file(directory, pick.number)
    if host.user_attrs.get(_AGAIN) != pick.number or not target.is_file():
        announce("Training the pick once more, with all examples from the start")
        # guarded, since a network too narrow for spectra has no other value
        objective = replace(study.objective, guard=True, on_trained=lambda _, model: save_weights(model, target))
        try:
            objective(FixedTrial(pick.params))  # type: ignore[arg-type]
        except optuna.TrialPruned:
            return None
        host.set_user_attr(_AGAIN, pick.number)
    return target


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
    ranked, _ = comparable(t for t in host.get_trials(deepcopy=False) if t.state is TrialState.COMPLETE)
    pick = pick_of(host, ranked)
    complete = [trial.number for trial in ranked]
    kept = [number for number in complete if weights_file(directory, number).is_file()]
    if task.evaluate is None or pick is None or pick.number not in kept:
        return None
    accuracies = {}
    with torch.random.fork_rng(devices=[]):
        model = task.build_model().to(task.device)
    for number in kept:
        load_plain_state(
            model, torch.load(weights_file(directory, number), map_location=task.device, weights_only=True)
        )
        accuracies[number] = float(task.evaluate(model))
    again = math.nan
    file = pick_file(directory, pick.number)
    if host.user_attrs.get(_AGAIN) == pick.number and file.is_file():
        load_plain_state(model, torch.load(file, map_location=task.device, weights_only=True))
        again = float(task.evaluate(model))
    only_pick = len(kept) < len(complete)
    best = max(accuracies, key=lambda number: accuracies[number])
    return TestAccuracy(
        pick=accuracies[pick.number],
        best=float("nan") if only_pick else accuracies[best],
        best_number=best,
        median=float("nan") if only_pick else statistics.median(accuracies.values()),
        n_trials=len(kept),
        again=again,
    )
