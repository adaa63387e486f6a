"""An Optuna sampler for settings per layer.

It searches what all layers share first, and opens what sets them apart as the trials tell that it matters. It decides
from the record alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from ww_opt.search.acquisition import propose
from ww_opt.search.bounds import rescaled
from ww_opt.search.carried import carried
from ww_opt.search.coordinates import Array, Coordinates, common_space, from_unit, kind_of
from ww_opt.search.repeats import is_repeat
from ww_opt.search.stopping import remember_expected
from ww_opt.search.surrogate import Surrogate, conditioned, fit_surrogate

__all__ = ["LayerwiseSampler", "believed"]

_PROPOSED = "ww_opt:proposed"
_CHUNK = 1500  # characters of a system attribute, which databases keep in 2,048
_SEEN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
_FEW = 8
_APART = 1 / 3
"""Share of the proposals whose labels differ, around the leaders."""
_SAME = 1e-3
"""Distance in the unit cube under which two points are taken for one."""
_TAIL = 2.0
"""Values worse than the median by more than this many times its distance from the best are cut to that: one trial that
diverged would flatten all others."""


class LayerwiseSampler(BaseSampler):
    """Samples parameters named ``<kind>/<label>`` by what labels of a kind have in common.

    Inside, a kind with many labels is four coordinates (all alike, rising or bending with depth, the last label apart)
    and what each label does alone, under a Gaussian process whose prior says that labels agree; see
    :mod:`ww_opt.search.surrogate`. The first trials differ in what all labels share and in nothing else. Parameters of
    other names, numbers or categories, are searched beside them, so that it serves for any single-objective study.

    Trials that were pruned count with what they may have come to (:mod:`ww_opt.search.carried`); trials that failed, or
    whose value is not finite, as a step worse than the worst. Running trials, of other processes too, count with what
    is believed of them: workers do not propose one point twice. Constraints (``trial.set_constraint``) are met with the
    probability that a second process gives. All is read from storage; nothing is remembered between calls.

    It is the default of :class:`ww_opt.Study`. On a synthetic target with a trend over 150 labels it comes within the
    labels' own spread in 40 to 70 trials; what its picks are worth on real tasks stands in ``docs/searches.md``.

    Args:
        seed: of the proposals. Workers need different ones, as :func:`ww_opt.study.study.open_study` gives them.
        n_startup_trials: finished trials before the process is asked; default: 6 and 2 for each shared coordinate.

    Raises:
        ValueError: ``n_startup_trials`` is below 1, or, when asked, the study has several objectives.
    """

    def __init__(self, *, seed: int | None = None, n_startup_trials: int | None = None) -> None:
        if n_startup_trials is not None and n_startup_trials < 1:
            raise ValueError(f"`n_startup_trials >= 1` must hold, but got n_startup_trials={n_startup_trials}.")
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._n_startup_trials = n_startup_trials
        self._independent = RandomSampler(seed=self._seed)
        self._space = IntersectionSearchSpace(include_pruned=True)
        self._kept: tuple[dict[str, BaseDistribution], dict[int, Array | None]] | None = None

    def reseed_rng(self) -> None:
        """Draw another stream: threads share a sampler."""
        self._seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Parameters that every finished trial had, with the same distribution, in the order of their suggestion.

        Where the bounds were changed since (``Study(changed_space="rescale")``), they are the space.
        """
        self._raise_error_if_multi_objective(study)
        if (bounds := rescaled(study)) is not None:
            return bounds
        found = {name: own for name, own in self._space.calculate(study).items() if not own.single()}
        # Optuna sorts them by name, where layer 10 comes before layer 2
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        order = next((list(own.distributions) for own in finished if found.keys() <= own.distributions.keys()), [])
        return {name: found[name] for name in order if name in found}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose values for the whole space at once."""
        if not search_space:
            return {}
        coordinates = Coordinates(search_space)
        rng = np.random.default_rng([self._seed, trial.number])
        known = _Known(study, trial, coordinates, self._places(coordinates))
        n_startup = self._n_startup_trials or 6 + 2 * coordinates.n_shared
        if known.n_finished < n_startup:
            point = coordinates.shared(self._spread(coordinates.n_shared, trial.number))[0]
        else:
            with threadpool_limits(1):  # on small matrices threads wait for each other
                point, gain, noise = known.proposal(rng, is_apart=bool(rng.random() < _APART))
            if math.isfinite(gain):
                remember_expected(study, trial, gain, noise)
        parameters = _distinct(coordinates, point, known.points, rng)
        _share(study, trial, parameters)
        return parameters

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Propose one value; in the first trials, of which no space is known yet, labels of a kind agree."""
        self._raise_error_if_multi_objective(study)
        kind = kind_of(param_name)
        if not kind or isinstance(param_distribution, CategoricalDistribution) or param_distribution.single():
            return self._independent.sample_independent(study, trial, param_name, param_distribution)
        words = [self._seed, trial.number, *kind.encode()]
        place = float(np.random.default_rng(words).random())
        return from_unit(place, param_distribution)  # type: ignore[arg-type]

    def _places(self, coordinates: Coordinates) -> dict[int, Array | None]:
        """Points of finished trials by their id, which do not change: to encode them takes longer than to think."""
        if self._kept is None or self._kept[0] != coordinates.space:
            self._kept = (dict(coordinates.space), {})
        return self._kept[1]

    def _spread(self, n: int, number: int) -> Array:
        """Point ``number`` of a sequence that fills the cube of ``n`` dimensions evenly; shape ``[1, n]``."""
        if n > qmc.Sobol.MAXDIM:
            return np.random.default_rng([self._seed, number]).random((1, n))
        points: Array = qmc.Sobol(n, rng=np.random.default_rng(self._seed)).fast_forward(number).random(1)
        return points


def believed(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """What a process fitted to ``trials`` believes of their values, by number, lower is better, standardised.

    Empty where it cannot be told: fewer than eight trials with finite values, or no space that all have.
    """
    space = common_space(trials)
    sign = 1.0 if study.direction is optuna.study.StudyDirection.MINIMIZE else -1.0
    finite = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    values = np.array([sign * trial.values[0] for trial in finite])
    if not space or len(finite) < _FEW or np.ptp(values) == 0.0:
        return {}
    coordinates = Coordinates(space)
    points = np.array([coordinates.encode(trial.params) for trial in finite])
    with threadpool_limits(1):
        means = fit_surrogate(coordinates, points, _standardised(values)[0]).predict(points)[0]
    return {trial.number: float(mean) for trial, mean in zip(finite, means, strict=True)}


class _Known:
    """The trials of a study that have a point in the space, and what they say."""

    def __init__(
        self, study: optuna.Study, trial: FrozenTrial, coordinates: Coordinates, places: dict[int, Array | None]
    ) -> None:
        self._sign = 1.0 if study.direction is optuna.study.StudyDirection.MINIMIZE else -1.0
        self._coordinates = coordinates
        self._trials: list[FrozenTrial] = []
        rows: list[Array] = []
        for own in study.get_trials(deepcopy=False, states=_SEEN):
            if own.number == trial.number or is_repeat(own):
                continue
            place = places[own._trial_id] if own._trial_id in places else _place(coordinates, own)
            if own.state.is_finished():
                places[own._trial_id] = place
            if place is not None:
                self._trials.append(own)
                rows.append(place)
        self.points = np.array(rows).reshape(len(rows), coordinates.n)

    @property
    def n_finished(self) -> int:
        """Trials that have ended."""
        return sum(own.state.is_finished() for own in self._trials)

    def proposal(self, rng: np.random.Generator, *, is_apart: bool) -> tuple[Array, float, float]:
        """The point to try next, the improvement expected of it, and the noise of a value; infinite: not known."""
        ended = self._values()
        known = np.isfinite(ended)
        if known.sum() < 2 or np.ptp(ended[known]) == 0.0:
            shared: Array = self._coordinates.shared(rng.random((1, self._coordinates.n_shared)))
            return np.asarray(shared[0]), math.inf, math.inf
        values = _standardised(ended[known])[0]
        surrogate = fit_surrogate(self._coordinates, self.points[known], values)
        if not known.all():
            filled = surrogate.predict(self.points)[0]
            filled[known] = values
            failed = [own.state.is_finished() and not kept for own, kept in zip(self._trials, known, strict=True)]
            filled[failed] = float(values.max()) + 0.5
            surrogate = conditioned(self._coordinates, self.points, filled, surrogate.theta)
        found = propose(surrogate, self.points, rng, self._limit(), is_apart=is_apart)
        return found.point, found.expected_improvement, surrogate.noise

    def _values(self) -> Array:
        """Values at the end of the run, lower is better; NaN of trials that run or failed, or whose value is no number.

        That of a pruned trial is what it may have come to, and no better than the best that did.
        """
        complete = [own for own in self._trials if own.state is TrialState.COMPLETE and math.isfinite(own.values[0])]
        found = {own.number: self._sign * own.values[0] for own in complete}
        best = min(found.values(), default=-math.inf)
        pruned = [own for own in self._trials if own.state is TrialState.PRUNED]
        found |= {number: max(value, best) for number, value in carried(pruned, complete, self._sign).items()}
        return np.array([found.get(own.number, math.nan) for own in self._trials])

    def _limit(self) -> tuple[Surrogate, float] | None:
        """Belief about the worst violation of constraints; ``None`` where no trial has any."""
        found = [(place, max(own.constraints.values())) for place, own in enumerate(self._trials) if own.constraints]
        found = [(place, worst) for place, worst in found if math.isfinite(worst)]
        if len(found) < 2 or np.ptp([worst for _, worst in found]) == 0.0:
            return None
        raw = np.array([worst for _, worst in found])
        values, scale = _standardised(raw)
        points = self.points[[place for place, _ in found]]
        return fit_surrogate(self._coordinates, points, values), float(scale(0.0))


def _standardised(values: Array) -> tuple[Array, Any]:
    """Values cut at their bad tail, of mean 0 and variance 1, and the map that does so to others."""
    median, best = float(np.median(values)), float(values.min())
    limit = median + _TAIL * (median - best)
    limit = limit if limit > best else float(values.max())
    kept = np.minimum(values, limit)
    mean, spread = float(kept.mean()), float(kept.std()) or 1.0

    def scale(value: float) -> float:
        return (min(value, limit) - mean) / spread if math.isfinite(value) else math.nan

    return (kept - mean) / spread, scale


def _place(coordinates: Coordinates, trial: FrozenTrial) -> Array | None:
    """The trial's point; ``None`` unless every parameter has a value inside its bounds, or from the same choices."""
    parameters = _parameters(trial)
    is_inside = all(
        name in parameters
        and (trial.distributions.get(name, own) == own or not isinstance(own, CategoricalDistribution))
        and own._contains(own.to_internal_repr(parameters[name]))
        for name, own in coordinates.space.items()
    )
    return coordinates.encode(parameters) if is_inside else None


def _distinct(coordinates: Coordinates, point: Array, points: Array, rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of a point, moved a little for as long as another trial has the same."""
    moved, width = point, 0.02
    for _ in range(20):
        parameters = coordinates.decode(moved)
        here = coordinates.encode(parameters)
        if not len(points) or float(np.abs(points - here).max(axis=1).min()) > _SAME:
            return parameters
        moved = coordinates.rounded((point + rng.normal(scale=width, size=point.shape))[None])[0]
        width *= 1.3
    return coordinates.decode(moved)  # a space with fewer points than trials


def _parameters(trial: FrozenTrial) -> dict[str, Any]:
    """Parameters of a trial; of a running one, which suggests them one by one, what was proposed for it."""
    if trial.state is not TrialState.RUNNING:
        return trial.params
    parts = [trial.system_attrs.get(f"{_PROPOSED}:{number}") for number in range(len(trial.system_attrs))]
    text = "".join(part for part in parts if part is not None)
    try:
        proposed = json.loads(text) if text else {}
    except ValueError:  # another worker is writing it just now
        proposed = {}
    return {**proposed, **trial.params}


def _share(study: optuna.Study, trial: FrozenTrial, parameters: Mapping[str, Any]) -> None:
    """Let other processes know what this trial is about to suggest, as Optuna's own samplers do."""
    text = json.dumps(parameters)
    for number, start in enumerate(range(0, len(text), _CHUNK)):
        study._storage.set_trial_system_attr(trial._trial_id, f"{_PROPOSED}:{number}", text[start : start + _CHUNK])
