"""What a finished study says: the pick, what pruning saved, and, only now, the sealed test set."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ww_opt.search import records
from ww_opt.search.coordinates import agree
from ww_opt.search.decisions import ended_by
from ww_opt.search.importance import Importance, importance
from ww_opt.search.looks import look_share
from ww_opt.search.objective import SpectralObjective
from ww_opt.search.ranking import by_value, is_interrupted, n_settings, ranking
from ww_opt.search.records import Look
from ww_opt.search.repeats import start_number
from ww_opt.search.space import crowding
from ww_opt.spectral.guards import FLOOR
from ww_opt.spectral.scores import LATE_SHARE
from ww_opt.study.alarms import alarms
from ww_opt.study.mattered import mattered
from ww_opt.study.picking import AGAIN
from ww_opt.study.study import Study
from ww_opt.study.trust import known_noise, seed_noise, trust
from ww_opt.study.weights_folder import pick_file, weights_file
from ww_opt.training.wrappers import load_plain_state

__all__ = ["Closing", "TestAccuracy", "closing", "meaning", "open_test_set", "recorded_steps", "too_many_parameters"]


@dataclass(frozen=True)
class TestAccuracy:
    """What the sealed test set says of the pick, the best and the median of ``n_trials`` completed trials.

    ``start`` is that of the settings that the user came with, ``shared`` that of the best trial by its score whose
    layers all had the same settings, with the numbers of the trials; NaN where there is none, or it has no weights.
    ``best`` and ``median`` are NaN where only the pick's weights were kept; ``again``, of the pick trained once more
    (:func:`ww_opt.study.picking.train_pick`), where it was not. ``metric`` names the numbers.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    pick: float
    best: float
    best_number: int
    median: float
    n_trials: int
    again: float = math.nan
    metric: str = "accuracy"
    start: float = math.nan
    start_number: int = 0
    shared: float = math.nan
    shared_number: int = 0


@dataclass(frozen=True)
class Closing:
    """A study in numbers. ``pick`` is ``None`` where no trial completed; ``look`` is the last one at it.

    ``saved`` is the share of training steps that pruning saved, of those that completed and pruned trials would have
    run. ``reasons`` are those of the pruned and failed trials, ``failures`` of the failed ones alone. Trials that the
    user interrupted count in ``n_interrupted`` alone. ``n_settings`` are the distinct settings that completed.
    ``look_share`` is what looks took of the training time, NaN where not known. ``direction`` says which way the score
    is better, ``meaning`` what the number is; ``noise`` is its standard deviation over seeds, NaN where not known.
    ``alarms`` must be read before the pick; ``trust`` says how far its ranking can be trusted, in sentences;
    ``mattered`` which settings mattered, ``importance`` the same in numbers.
    ``ended_by`` says how many trials each rule of the pruner ended, the most first.
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
    alarms: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    meaning: str = ""
    n_interrupted: int = 0
    n_settings: int = 0
    noise: float = math.nan
    mattered: tuple[str, ...] = ()
    importance: Importance | None = None
    ended_by: Mapping[str, int] = field(default_factory=dict)
    look_share: float = math.nan


def closing(
    study: Study | None, host: optuna.Study, *, repeat: bool = False, announce: Callable[[str], object] = lambda _: None
) -> Closing:
    """Sum up a study from its records.

    Args:
        study: what was run; ``None``: its records alone are known, which lack the meaning of the score and the guard.
        host: its records.
        repeat: train the pick with further seeds where that was not done yet, to know the noise of the score.
        announce: is told in a sentence, before that takes its time.
    """
    finished = [trial for trial in host.get_trials(deepcopy=False) if trial.state.is_finished()]
    trials = [trial for trial in finished if not is_interrupted(trial)]
    of = {state: [trial for trial in trials if trial.state is state] for state in TrialState}
    n_steps = study.objective.n_steps if study is not None else recorded_steps(trials)
    ran = [_steps(trial, n_steps) for trial in of[TrialState.COMPLETE] + of[TrialState.PRUNED]]
    ranked = ranking(host, trials)
    pick = ranked.best
    warned = alarms(trials, ranked.trials, pick)
    said, noise = list(ranked.left_out), math.nan
    if pick is not None:
        noise = known_noise(host, pick)
        if repeat and study is not None:
            noise = seed_noise(study, host, pick, announce)
        said += trust(study, ranked.trials, pick, noise, host=host, alarms=warned)
        if many := crowding(len(pick.params), len(trials)):
            said.append(many)
    seen = records.looks(pick) if pick is not None else ()
    found = importance(host) if pick is not None else None
    return Closing(
        n_complete=len(of[TrialState.COMPLETE]),
        n_pruned=len(of[TrialState.PRUNED]),
        n_failed=len(of[TrialState.FAIL]),
        saved=1.0 - sum(ran) / (n_steps * len(ran)) if ran and n_steps else 0.0,
        pick=pick,
        look=seen[-1] if seen else None,
        reasons=tuple(reason for trial in trials if (reason := records.reason(trial))),
        direction="maximize" if host.directions[0] is StudyDirection.MAXIMIZE else "minimize",
        trust=tuple(said),
        alarms=tuple(warned),
        failures=tuple(records.reason(trial) for trial in of[TrialState.FAIL]),
        meaning=meaning(study.objective) if study is not None else "",
        n_interrupted=len(finished) - len(trials),
        n_settings=n_settings(of[TrialState.COMPLETE]),
        noise=noise,
        mattered=tuple(mattered(found)) if found is not None else (),
        importance=found,
        ended_by=dict(Counter(rule for trial in of[TrialState.PRUNED] if (rule := ended_by(trial))).most_common()),
        look_share=look_share(trials),
    )


def too_many_parameters(objective: SpectralObjective, n_trials: int) -> str:
    """Say so where a study searches more parameters than it has trials; empty otherwise, or where that is not known.

    The model is built without its numbers, which costs nothing; a ``build_model`` that needs them says nothing.
    """
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            warnings.simplefilter("ignore")
            n = len(objective.space.parameters(objective.task.build_model()))
    except Exception:  # what is wrong is told by the first trial, with its place
        return ""
    return crowding(n, n_trials)


def meaning(objective: SpectralObjective) -> str:
    """Say in a sentence what the value of a trial is made of, and what is good."""
    own = (
        "the default score of the weights, 0 (best) to 4: missing spikes and gain, odd alphas, traps, dead directions"
        if objective.score == "default"
        else f"the score {objective.score!r} of the weights"
    )
    late_entry = objective.task.late_entry
    if objective.guard == "late" and late_entry is not None and late_entry.logits is None:
        return (
            "The score is ln(loss on examples that joined late / loss before training): 0 where nothing was learnt, "
            f"below is better. To it comes {LATE_SHARE:.0%} of {own}."
        )
    if objective.guard == "late":
        return (
            "The score is what training took off the loss, as examples that joined late see it (calibrated, less half "
            f"their accuracy): guessing gives 0 less half of what it gets right, below is better. To it comes "
            f"{LATE_SHARE:.0%} of {own}."
        )
    if objective.guard:
        return (
            "The score is ln(training loss / loss before training), 0 at chance and at best "
            f"ln {FLOOR:g} = {math.log(FLOOR):.2f}, plus {own}."
        )
    return f"The score is {own}."


def recorded_steps(trials: Sequence[FrozenTrial]) -> int:
    """Length of a run as the looks have it; 0 where none says."""
    return max((look.n_steps for trial in trials if (look := records.last_look(trial)) is not None), default=0)


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
    ranked = ranking(host)
    pick = ranked.best
    complete = [trial.number for trial in ranked.trials]
    kept = [number for number in complete if weights_file(directory, number).is_file()]
    if task.evaluate is None or pick is None or pick.number not in kept:
        return None
    values = {}
    with torch.random.fork_rng(devices=[]):
        model = task.build_model().to(task.device)
    for number in sorted(kept):
        load_plain_state(
            model, torch.load(weights_file(directory, number), map_location=task.device, weights_only=True)
        )
        values[number] = float(task.evaluate(model))
    again = math.nan
    file = pick_file(directory, pick.number)
    if host.user_attrs.get(AGAIN) == pick.number and file.is_file():
        load_plain_state(model, torch.load(file, map_location=task.device, weights_only=True))
        again = float(task.evaluate(model))
    only_pick = len(kept) < len(complete)
    best = (max if task.higher_is_better else min)(values, key=lambda number: values[number])
    start = start_number(host)
    shared = next((trial.number for trial in by_value(host, ranked.trials) if agree(trial.params)), None)
    return TestAccuracy(
        start=math.nan if start is None else values.get(start, math.nan),
        start_number=start or 0,
        shared=math.nan if shared is None else values.get(shared, math.nan),
        shared_number=shared or 0,
        pick=values[pick.number],
        best=math.nan if only_pick else values[best],
        best_number=best,
        median=math.nan if only_pick else statistics.median(values.values()),
        n_trials=len(kept),
        again=again,
        metric=task.metric,
    )
