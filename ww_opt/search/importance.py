"""What mattered in a study: which settings, in which layers, and whether settings per layer gained anything.

Read from the trials alone, by the Gaussian process of :mod:`ww_opt.search.surrogate`. What it cannot predict of trials
that it was not shown, it does not explain either: then nothing is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial
from scipy.linalg import LinAlgError
from threadpoolctl import threadpool_limits

from ww_opt.search.coordinates import Array, Coordinates, common_space, kind_of
from ww_opt.search.draws import draw_functions
from ww_opt.search.layer_effects import LayerEffect, layer_effects
from ww_opt.search.ranking import ranking
from ww_opt.search.repeats import is_repeat
from ww_opt.search.surrogate import conditioned, fit_surrogate, hyperparameter_draws, without_cost
from ww_opt.search.variance_shares import Mixture, drawn_shares

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEW", "Gain", "Importance", "Share", "importance", "least_r2"]

FEW = 8
"""Completed trials under which nothing is told."""
_TAIL = 6.0  # as in the sampler, but further out: one trial that diverged would be all the variance there is
_EVALUATIONS = 400
"""Trials times sets of hyperparameters, which bounds the time."""
_N_DRAWS = 60
_N_FOLDS = 10
_APART = 0.02
"""Standard deviation of the labels of a kind, of its range, from which on they are settings per layer."""


@dataclass(frozen=True)
class Share:
    """Share of the explained variance that one kind of setting, a part of it or one label's setting makes by itself.

    ``part`` is one of :data:`ww_opt.search.variance_shares.PARTS`, or empty; ``label`` is that of a single setting.
    ``low`` is what it makes by itself at least, ``high`` what it has part in at most, each with 95% of the belief.
    """

    kind: str
    part: str
    label: str
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """What settings per layer gained over shared ones: by how much the best trial of the former is better.

    ``gained`` is in units of the score, above 0 where settings per layer are better; ``sd`` its standard deviation.
    ``trial`` is the best of settings per layer, as the model believes, ``params`` are the best shared ones.
    ``n_shared`` trials had shared settings; where none had, the model extrapolates, and tends to tell too little.
    """

    gained: float
    sd: float
    trial: int
    params: dict[str, Any]
    n_shared: int

    @property
    def is_told(self) -> bool:
        """Whether it is more than twice its standard deviation."""
        return abs(self.gained) > 2 * self.sd


@dataclass(frozen=True)
class Importance:
    """What mattered.

    Attributes:
        n_trials: that were asked: complete, feasible, finite, comparable.
        n_left_out: other finished trials.
        r2: share of the variance of the values that the model predicts of trials that it was not shown; NaN where
            there is no model. At 0 the mean does as well.
        why_not: why shares and gain cannot be told; empty where they can.
        kinds: shares of each kind.
        parts: what of that all labels share, the last label apart, the trend over the others, each by itself.
        settings: shares of single settings, the largest first; none of kinds whose labels never differed.
        effects: what each label's settings did to its layers.
        gain: ``None`` where there is nothing to compare.
        only_shared: no trial had labels that differ.
    """

    n_trials: int
    n_left_out: int
    r2: float = math.nan
    why_not: str = ""
    kinds: tuple[Share, ...] = ()
    parts: tuple[Share, ...] = ()
    settings: tuple[Share, ...] = ()
    effects: tuple[LayerEffect, ...] = ()
    gain: Gain | None = None
    only_shared: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """All shares, as mappings: kinds, parts, single settings."""
        return [asdict(own) for own in (*self.kinds, *self.parts, *self.settings)]

    def frame(self) -> pd.DataFrame:
        """All shares as a data frame: kind, part, label, share, low, high."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=["kind", "part", "label", "share", "low", "high"])


def importance(study: optuna.Study, *, seed: int = 0) -> Importance:
    """Say what mattered in a study of one objective.

    Shares are of the variance of the value over points like the trials': settings that a search hardly varied make
    little. Trials that were pruned, failed, infinite or not comparable are not asked.

    Args:
        study: with its trials.
        seed: of the draws; equal seeds give equal numbers.
    """
    finished = [own for own in study.get_trials(deepcopy=False) if own.state.is_finished() and not is_repeat(own)]
    trials = sorted(ranking(study, finished).trials, key=lambda own: own.number)
    n_left_out = len(finished) - len(trials)
    space = common_space(trials)
    numbers = [name for name, own in space.items() if not isinstance(own, CategoricalDistribution)]
    known: dict[str, Any] = {
        "n_trials": len(trials),
        "n_left_out": n_left_out,
        "effects": layer_effects(trials, numbers),
    }
    if len(trials) < FEW:
        return Importance(**known, why_not=f"{len(trials)} completed trials are too few to tell, of {FEW} or more")
    if not space:
        return Importance(**known, why_not="no parameter was searched in all trials")
    sign = -1.0 if study.direction is optuna.study.StudyDirection.MAXIMIZE else 1.0
    raw = sign * np.array([own.value for own in trials], dtype=float)
    if np.ptp(raw) == 0.0:
        return Importance(**known, why_not="all trials have the same value")
    try:
        with threadpool_limits(1):  # matrices this small take longer on several threads
            return _told(trials, raw, Coordinates(space), known, np.random.default_rng(seed))
    except LinAlgError:
        return Importance(**known, why_not="the model of the values is not stable")


def least_r2(n_trials: int) -> float:
    """R2 on left-out trials under which nothing is told; settings that do nothing reach it in 1 study of 20."""
    return max(0.05, 4.0 / n_trials)


def _told(
    trials: Sequence[FrozenTrial], raw: Array, of: Coordinates, known: dict[str, Any], rng: np.random.Generator
) -> Importance:
    median = float(np.median(raw))
    limit = median + _TAIL * (median - float(raw.min()))
    raw = np.minimum(raw, limit) if limit > raw.min() else raw
    scale = float(raw.std())
    values = (raw - raw.mean()) / scale
    points = np.array([of.encode(own.params) for own in trials])
    fitted = fit_surrogate(of, points, values)
    m = len(trials)
    r2 = _left_out_r2(of, points, values, rng)
    mixture = Mixture(of, points)
    spread = np.array([points[:, group].std(axis=1) for group in of.groups]).reshape(len(of.groups), m)
    apart = [int(place) for place in np.flatnonzero((spread > _APART).any(axis=0))]
    known = {**known, "r2": r2, "only_shared": bool(of.groups) and not apart}
    if r2 < least_r2(m):
        return Importance(
            **known, why_not=f"of trials that it was not shown the model knows no more than their mean (R2 {r2:.2f})"
        )
    n_models = int(min(max(_EVALUATIONS // m, 2), 5))
    thetas = hyperparameter_draws(fitted, points, values, n_models, rng)
    models = [
        draw_functions(conditioned(of, points, values, own), _N_DRAWS // n_models, rng).with_mean() for own in thetas
    ]
    columns: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(of.columns):
        if mixture.is_apart(mixture.kinds[place]):
            columns.setdefault(name, []).append(place)
    drawn = [drawn_shares(own, mixture, list(columns.values()), rng) for own in models]
    of_kinds, of_parts, of_names = (np.stack(own, axis=-1) for own in zip(*drawn, strict=True))
    kinds = dict.fromkeys(kind for kind, _, _ in mixture.parts)
    settings = [
        _share(kind_of(name) or name, "", name.partition("/")[2] if kind_of(name) else "", own)
        for name, own in zip(columns, of_names, strict=True)
    ]
    return Importance(
        **known,
        kinds=_sorted(_share(kind, "", "", own) for kind, own in zip(kinds, of_kinds, strict=True)),
        parts=tuple(
            _share(kind, part, "", own) for (kind, part, _), own in zip(mixture.parts, of_parts, strict=True) if part
        ),
        settings=_sorted(settings),
        gain=_gain((of, points, values), thetas, scale, [(trials[at].number, at) for at in apart], rng),
    )


def _left_out_r2(of: Coordinates, points: Array, values: Array, rng: np.random.Generator) -> float:
    """R2 of predictions of a tenth of the trials from the others, fitted anew: at the fit to all it flatters few."""
    n_folds = _N_FOLDS if len(values) <= 100 else _N_FOLDS // 2
    fold = rng.permutation(len(values)) % n_folds
    errors, apart = np.zeros(len(values)), np.zeros(len(values))
    for number in range(min(n_folds, len(values))):
        kept, left = fold != number, fold == number
        mean, scale = values[kept].mean(), values[kept].std() or 1.0
        fitted = fit_surrogate(of, points[kept], (values[kept] - mean) / scale)
        apart[left] = values[left] - mean
        errors[left] = apart[left] - scale * fitted.predict(points[left])[0]
    return 1.0 - float((errors**2).sum() / (apart**2).sum())


def _share(kind: str, part: str, label: str, drawn: Array) -> Share:
    """Of ``[2, draws, models]``: alone and jointly, the mean function before the draws."""
    low, high = float(np.quantile(drawn[0, 1:], 0.05)), min(float(np.quantile(drawn[1, 1:], 0.95)), 1.0)
    return Share(kind, part, label, min(max(float(drawn[0, 0].mean()), low), high), low, high)


def _sorted(shares: Iterable[Share]) -> tuple[Share, ...]:
    return tuple(sorted(shares, key=lambda own: -own.share))


def _gain(
    data: tuple[Coordinates, Array, Array],
    thetas: Array,
    scale: float,
    apart: Sequence[tuple[int, int]],
    rng: np.random.Generator,
) -> Gain | None:
    """Compare the best of the trials ``apart`` with the best shared point, by models that favour neither."""
    if not apart:
        return None
    of, points, values = data
    models = [conditioned(of, points, values, without_cost(of, own)) for own in thetas]

    def believed(at: Array) -> Array:
        return np.asarray(np.mean([model.predict(at)[0] for model in models], axis=0))

    means = believed(points)
    number, best = min(apart, key=lambda own: means[own[1]])
    shared = _best_shared(of, points, believed, rng)
    both = np.stack([shared, points[best]])
    drawn = np.concatenate([draw_functions(model, _N_DRAWS, rng)(both) for model in models], axis=1)
    gained = (drawn[0] - drawn[1]) * scale
    return Gain(float(gained.mean()), float(gained.std()), number, of.decode(shared), len(points) - len(apart))


def _best_shared(of: Coordinates, points: Array, believed: Callable[[Array], Array], rng: np.random.Generator) -> Array:
    """The point whose labels agree that is believed to be best, ``[n]``."""
    grouped = {int(column) for group in of.groups for column in group}
    rest = [column for column in range(of.n) if column not in grouped]
    means = [points[:, group].mean(axis=1, keepdims=True) for group in of.groups]
    tried = np.concatenate([*means, points[:, rest]], axis=1)
    candidates = np.concatenate([tried, rng.random((512, of.n_shared))])
    for width in (0.1, 0.03, 0.01):
        order = np.argsort(believed(of.shared(candidates)))
        candidates = candidates[order[:8]]
        steps = rng.normal(scale=width, size=(8, 32, of.n_shared))
        moved = np.clip(candidates[:, None] + steps, 0.0, 1.0).reshape(-1, of.n_shared)
        candidates = np.concatenate([candidates, moved])
    cube = of.shared(candidates)
    return np.asarray(cube[int(np.argmin(believed(cube)))])
