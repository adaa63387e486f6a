"""Does what each layer shows help to foresee the value of a setting? Two roads, compared on kept runs.

The direct road is the sampler's own process: settings -> value. The other one goes through the layers: a process for
each column of each layer's row, from that layer's own settings, then one from the rows to the value. Both foresee runs
that they were not shown; so does their mean. ``seen`` has the true rows: a bound that no search can reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from benchmarks.evidence.candidates import late_rule
from benchmarks.evidence.judge import studies
from benchmarks.evidence.seen import Seen
from benchmarks.searches.engine import Env
from ww_opt.search.coordinates import Array, Coordinates, kind_of
from ww_opt.search.surrogate import fit_surrogate
from ww_opt.spectral.scores import LATE_SHARE

__all__ = ["ROADS", "foreseen", "rows_table"]

ROADS = ("settings", "rows", "mean of both", "rows seen")
COLUMNS = ("spikes", "effective_rank", "log_norm", "alpha")
_N_SHOWN = (20, 50)
_N_ASKED = 10
_N_DRAWS = 8
_NOISE, _WEIGHT = 0.1, 4.0


def foreseen(points: Array, rows: Array, values: Array, columns: Sequence[Array], of: Coordinates, n: int) -> Array:
    """Left-out R2 of each road, ``[4]``, shown ``n`` runs at a time, over eight draws of them.

    Args:
        points: of the unit cube, ``[runs, d]``.
        rows: ``[runs, layers, columns]``, finite.
        values: ``[runs]``, lower is better.
        columns: of each layer, the columns of the cube that are its own settings.
        of: the cube's coordinates.
        n: runs that are shown.
    """
    rng, truth, found = np.random.default_rng(0), [], []
    for _ in range(_N_DRAWS):
        order = rng.permutation(len(values))
        shown, asked = order[:n], order[n : n + _N_ASKED]
        mean, spread = values[shown].mean(), values[shown].std()
        y = (values[shown] - mean) / spread
        direct = fit_surrogate(of, points[shown], y).predict(points[asked])[0]
        known, guessed, seen = [], [], []
        for layer, own in enumerate(columns):
            for column in range(rows.shape[2]):
                raw = rows[:, layer, column]
                scaled = np.clip((raw - raw[shown].mean()) / (raw[shown].std() + 1e-9), -3.0, 3.0)
                known.append(scaled[shown])
                seen.append(scaled[asked])
                guessed.append(_process(points[shown][:, own], scaled[shown])(points[asked][:, own]))
        width = math.sqrt(len(known))
        through = _process(np.stack(known, 1) / width, y)
        by_rows = through(np.stack(guessed, 1) / width)
        found.append([direct, by_rows, (direct + by_rows) / 2, through(np.stack(seen, 1) / width)])
        truth.append((values[asked] - mean) / spread)
    told, wanted = np.concatenate(found, axis=1), np.concatenate(truth)
    return np.asarray(1.0 - ((told - wanted) ** 2).mean(1) / wanted.var())


def _process(points: Array, values: Array) -> Callable[[Array], Array]:
    """A Gaussian process, Matern 5/2 with one length scale, at the mode of its hyperparameters; its mean."""
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    eye = np.eye(len(points))

    def covariance(theta: Array) -> Array:
        own: Array = np.exp(theta[1]) * _matern(np.exp(theta[0]) * squares) + (np.exp(theta[2]) + 1e-6) * eye
        return own

    prior = np.array([math.log(_WEIGHT), 0.0, math.log(_NOISE)])

    def negative(theta: Array) -> float:
        lower = cholesky(covariance(theta), lower=True)
        distance = (theta - prior) / np.array([1.5, 0.7, 1.5])
        fit = values @ cho_solve((lower, True), values)
        return float(0.5 * fit + np.log(np.diag(lower)).sum() + 0.5 * distance @ distance)

    theta = minimize(negative, prior, method="L-BFGS-B", options={"maxiter": 40}).x
    weights = np.linalg.solve(covariance(theta), values)

    def mean(asked: Array) -> Array:
        away = ((asked[:, None] - points[None]) ** 2).sum(-1)
        return np.asarray(np.exp(theta[1]) * _matern(np.exp(theta[0]) * away) @ weights)

    return mean


def _matern(squares: Array) -> Array:
    root = np.sqrt(5.0 * np.maximum(squares, 1e-18))
    return np.asarray((1.0 + root + root**2 / 3.0) * np.exp(-root))


def _rows(seen: Sequence[Seen], layers: Sequence[str]) -> Array:
    """``[runs, layers, columns]``; what was not fitted is the column's median, or 0."""
    tables = [run.states[100]["rows"] for run in seen]
    found = np.array(
        [
            [[_number(table[name][table["name"].index(layer)]) for name in COLUMNS] for layer in layers]
            for table in tables
        ]
    )
    middle = np.nan_to_num(np.array([[_median(column) for column in layer.T] for layer in found.transpose(1, 0, 2)]))
    return np.where(np.isfinite(found), found, middle)


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 0.0


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def rows_table() -> Iterator[str]:
    """Lines of a Markdown table: left-out R2 of each road, per task and number of runs shown."""
    yield f"| task | runs shown | {' | '.join(ROADS)} |"
    yield "|" + "---|" * (len(ROADS) + 2)
    total: dict[int, list[Array]] = {n: [] for n in _N_SHOWN}
    for study in studies("late"):
        seen = study.seen(100)
        values = -late_rule(LATE_SHARE)(seen)
        of = Coordinates(Env(study.case).parameters)
        points = np.array([of.encode(run.parameters) for run in seen])
        labels = list(dict.fromkeys(name.partition("/")[2] for name, _ in of.columns if kind_of(name)))
        layers = [label for label in labels if label in seen[0].states[100]["rows"]["name"]]
        own = [
            np.array([k for k, (name, _) in enumerate(of.columns) if name.partition("/")[2] == label])
            for label in layers
        ]
        for n in _N_SHOWN:
            figures = foreseen(points, _rows(seen, layers), values, own, of, n)
            total[n].append(figures)
            yield f"| {study.case.name} | {n} | {' | '.join(f'{figure:.2f}' for figure in figures)} |"
    for n, kept in total.items():
        yield f"| mean | {n} | {' | '.join(f'{figure:.2f}' for figure in np.mean(kept, axis=0))} |"
