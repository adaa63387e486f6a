"""How good is the pick? Settings trained afresh, with seeds that no trial had, and judged by the sealed test set.

Beside the pick stand its plain rivals, and a search whose objective was the test set itself: what one could have had
who needs no honesty. Whoever picks by what follows has no test set any more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from ww_opt.search.coordinates import agree
from ww_opt.search.objective import SpectralObjective
from ww_opt.search.ranking import best, by_value, ranking
from ww_opt.search.repeats import START, n_leaders, repeat_of, start_of
from ww_opt.study.endings import Observer
from ww_opt.study.leaders import plan_repeat
from ww_opt.study.picking import trained
from ww_opt.study.study import Study

__all__ = ["Judged", "ceiling", "judged", "rivals"]

_CAME_WITH = "what you came with"
_SHARED = "best shared setting"
_PICK = "the pick"
_CEILING = "a search on the test set"
_FRESH = 100_003
"""Added to the objective's seed: repeats of a study have the next few."""


@dataclass(frozen=True)
class Judged:
    """Settings and what the sealed test set says of them, one value a seed; NaN: training diverged.

    Attributes:
        name: in words.
        parameters: of the space.
        origin: where they come from, in words.
        values: in the task's metric.
    """

    name: str
    parameters: Mapping[str, Any]
    origin: str
    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN where one of them diverged."""
        return statistics.fmean(self.values) if self.values else math.nan


def rivals(host: optuna.Study) -> list[Judged]:
    """What is worth judging of a study: what the user came with, the best shared setting, the pick.

    The shared setting is the best by its own value among trials whose layers all agree, the first trial aside. Where
    there is none, or the study began with nothing, that row is left out.

    Raises:
        ValueError: the study has no pick.
    """
    ranked = ranking(host).trials
    if not ranked:
        raise ValueError(
            f"A study must have a completed trial to be judged, but {host.study_name!r} has none that can be ranked: "
            "run it first, with `ww-opt run`."
        )
    found = []
    start = start_of(host)
    if start:
        first = next((own for own in ranked if start.items() <= own.params.items()), None)
        whole = dict(start) if first is None else first.params
        if whole.keys() >= ranked[0].params.keys():
            found.append(Judged(_CAME_WITH, whole, "your optimizer and model" if first is None else _trial(first)))
    others = (own for own in by_value(host, ranked) if not (start and start.items() <= own.params.items()))
    shared = next((own for own in others if agree(own.params)), None)
    if shared is not None:
        found.append(_of(_SHARED, shared))
    return [*found, _of(_PICK, ranked[0])]


def _of(name: str, trial: FrozenTrial) -> Judged:
    return Judged(name, trial.params, _trial(trial))


def _trial(trial: FrozenTrial) -> str:
    return f"trial {trial.number}"


def judged(
    objective: SpectralObjective, rows: Sequence[Judged], n_seeds: int = 3, announce: Callable[[str], object] = print
) -> list[Judged]:
    """Train each row's settings afresh on all examples, with seeds that no trial had, and open the test set.

    Args:
        objective: what was run.
        rows: settings; equal ones are trained once.
        n_seeds: trainings of each, > 0.
        announce: is told in a sentence before each row.

    Returns:
        The rows with their values, in the same order.

    Raises:
        ValueError: the task has no ``evaluate``, or ``n_seeds`` is below 1.
    """
    evaluate = _sealed(objective)
    if n_seeds < 1:
        raise ValueError(f"`n_seeds >= 1` must hold, but got n_seeds={n_seeds}.")
    known: dict[tuple[tuple[str, Any], ...], tuple[float, ...]] = {}
    found = []
    for row in rows:
        key = tuple(sorted(row.parameters.items()))
        if key not in known:
            announce(f"Training afresh, {n_seeds} times: {row.name}")
            models = (trained(objective, row.parameters, objective.seed + _FRESH + k) for k in range(n_seeds))
            known[key] = tuple(math.nan if model is None else evaluate(model) for model in models)
        found.append(replace(row, values=known[key]))
    return found


def ceiling(study: Study, start: Mapping[str, Any] | None, observers: Sequence[Observer] = ()) -> Judged | None:
    """Search on the test set itself: the same sampler, budget, repeats and start, and the metric as objective.

    Every trial runs to its end, on all examples. Nothing is written anywhere.

    Args:
        study: what was run.
        start: settings that it began with.
        observers: called after each trial.

    Returns:
        The pick of that search; ``None`` where every trial diverged.

    Raises:
        ValueError: the task has no ``evaluate``.
    """
    evaluate = _sealed(study.objective)
    objective = study.objective
    host = optuna.create_study(
        study_name=f"{study.name}, on the test set",
        direction="maximize" if objective.task.higher_is_better else "minimize",
        sampler=study.sampler(study.seed),
    )
    with torch.random.fork_rng(devices=[]):
        space = objective.space.parameters(objective.task.build_model())
    if start:
        host.enqueue_trial(dict(start))
        host.set_user_attr(START, {"params": dict(start)})
    for _ in range(study.n_trials):
        plan_repeat(host, study.n_trials, n_leaders(study.n_trials, study.n_repeats), study.n_repeats)
        trial = host.ask(dict(space))
        repeat = repeat_of(trial)
        model = trained(objective, trial.params, objective.seed + (repeat.draw if repeat else 0))
        value = math.nan if model is None else evaluate(model)
        is_finite = math.isfinite(value)
        ended = host.tell(trial, value) if is_finite else host.tell(trial, state=TrialState.PRUNED)
        for observer in observers:
            observer(host, ended)
    pick = best(host)
    return None if pick is None else Judged(_CEILING, pick.params, f"{study.n_trials} trials, for judging only")


def _sealed(objective: SpectralObjective) -> Callable[[nn.Module], float]:
    evaluate = objective.task.evaluate
    if evaluate is None:
        raise ValueError(
            f"Judging needs a sealed test set, but task {objective.task.name!r} has no `evaluate`: give the task one, "
            "`Task(..., evaluate=lambda model: accuracy)`."
        )
    return lambda model: float(evaluate(model))
