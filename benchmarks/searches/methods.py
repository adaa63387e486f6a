"""The searches that are compared: each asks for ``N_RUNS`` runs in all, the user's own settings first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.searches.engine import JUDGES, Answer, Env, Parameters, Request, Search
from ww_opt.search.coordinates import Coordinates
from ww_opt.search.ranking import best
from ww_opt.search.repeats import START, n_leaders, repeat_of
from ww_opt.search.sampler import LayerwiseSampler
from ww_opt.study.leaders import plan_repeat

__all__ = ["METHODS", "N_RUNS", "OURS"]

N_RUNS = 40


def with_sampler(
    sampler: Callable[[int], BaseSampler], *, is_shared: bool = False, judge: str = "late guard", n_repeats: int = 0
) -> Callable[[Env, int], Search]:
    """Search with one of Optuna's samplers; the pick is the best value or, with repeats, as ``Study`` takes it."""

    def search(env: Env, seed: int) -> Search:
        space = _shared(env.parameters) if is_shared else env.parameters
        study = optuna.create_study(sampler=sampler(seed))
        start = {name: env.untuned[_first(name, env)] for name in space}
        study.enqueue_trial(start)
        study.set_user_attr(START, {"params": start})
        for _ in range(N_RUNS):
            plan_repeat(study, N_RUNS, n_leaders(N_RUNS, n_repeats), n_repeats)
            trial = study.ask(dict(space))
            parameters = _per_layer(trial.params, env) if is_shared else dict(trial.params)
            repeat = repeat_of(trial)
            answer = yield Request(parameters, seed + 1000 * (repeat.draw if repeat else 0), judge)
            if math.isfinite(answer.value):
                study.tell(trial, answer.value)
            else:
                study.tell(trial, state=TrialState.PRUNED)
        pick = best(study)
        if pick is None:
            return env.untuned
        return _per_layer(pick.params, env) if is_shared else dict(pick.params)

    return search


def _shared(parameters: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """One parameter ``<kind>/all`` for all layers."""
    return {f"{name.partition('/')[0]}/all": own for name, own in parameters.items()}


def _first(name: str, env: Env) -> str:
    kind = name.partition("/")[0]
    return next(own for own in env.parameters if own.partition("/")[0] == kind)


def _per_layer(shared: Mapping[str, Any], env: Env) -> dict[str, float]:
    return {name: shared[f"{name.partition('/')[0]}/all"] for name in env.parameters}


def trust_region_random(env: Env, seed: int) -> Search:
    """Random search around the best so far, in a region that grows with success and shrinks with failure."""
    rng, cube = np.random.default_rng(seed), Coordinates(env.parameters)
    best, best_value, width = cube.encode(env.untuned), math.inf, 0.4
    pick: Parameters = env.untuned
    for number in range(N_RUNS):
        moved = best + width * rng.uniform(-1, 1, cube.n) * (rng.random(cube.n) < max(0.3, 2 / cube.n))
        point = best if number == 0 else np.clip(moved, 0, 1)
        parameters = cube.decode(point)
        answer: Answer = yield Request(parameters, seed)
        if answer.value < best_value:
            best, best_value, pick, width = point, answer.value, parameters, min(width * 1.3, 0.5)
        else:
            width = max(width * 0.93, 0.05)
    return pick


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, deterministic_objective=False)


def _layerwise(seed: int) -> BaseSampler:
    return LayerwiseSampler(seed=seed)


OURS = "layerwise with repeats"
METHODS: Mapping[str, Callable[[Env, int], Search]] = {
    "shared TPE": with_sampler(_tpe, is_shared=True),
    "shared random": with_sampler(lambda seed: RandomSampler(seed=seed), is_shared=True),
    "per-layer TPE": with_sampler(_tpe),
    "per-layer GP": with_sampler(_gp),
    "per-layer CMA-ES": with_sampler(lambda seed: CmaEsSampler(seed=seed, use_separable_cma=True)),
    "trust-region random": trust_region_random,
    OURS: with_sampler(_layerwise, n_repeats=2),
    "layerwise": with_sampler(_layerwise),
    "shared TPE with repeats": with_sampler(_tpe, is_shared=True, n_repeats=2),
    "per-layer GP with repeats": with_sampler(_gp, n_repeats=2),
    **{
        f"{OURS}, by {judge}": with_sampler(_layerwise, judge=judge, n_repeats=2)
        for judge in JUDGES
        if judge != "late guard"
    },
}
"""The rivals, ours, what repeats are worth, and ours where something else than latecomers judges."""
