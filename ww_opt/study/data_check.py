"""Will more data help? The same settings trained on parts of the data, and a power law through what comes of it.

Loss falls with the number of examples as ``a + b n^-c`` (Hestness et al. 2017, arXiv 1712.00409; Rosenfeld et al. 2020,
arXiv 1909.12673). Some examples are kept out of all parts and judge them all; they are given back afterwards.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.trial import FixedTrial
from scipy.stats import t
from torch import nn

from ww_opt.search.objective import SpectralObjective
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.training.cohorts import judge_cohort, look_at_first_batch
from ww_opt.training.judging import ACCURACY_SHARE, Judgement, late_loss
from ww_opt.training.late_entry import LateEntry, LateExamples
from ww_opt.training.randomness import seeded
from ww_opt.training.run import train
from ww_opt.training.task import placed

__all__ = ["SHARES", "DataCheck", "Gain", "Size", "data_check", "law_at"]

Array = NDArray[np.float64]
SHARES = (0.25, 0.35, 0.5, 0.7, 1.0)
"""Parts of the data that are trained on."""
JUDGES = 0.15
"""Share of the examples that judge, as many as join late in a trial."""
_LEVEL = 0.9
_EXPONENTS = np.linspace(0.05, 2.0, 40)
_N_DRAWS = 4000


@dataclass(frozen=True)
class Size:
    """What a part of the data came to, one value a seed.

    ``losses`` are late losses, as a trial's; ``accuracies`` are NaN where there are no classes; ``alphas`` are means
    over the hidden layers that were fitted, ``spreads`` their standard deviation: NaN with fewer than one and two.
    """

    n_examples: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    alphas: tuple[float, ...]
    spreads: tuple[float, ...]


@dataclass(frozen=True)
class Gain:
    """What twice the data should change, and its 90 % interval; NaN where it cannot be told."""

    mean: float
    low: float
    high: float

    @property
    def is_told(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class DataCheck:
    """Answer to "will more data help?".

    Attributes:
        sizes: from the smallest part to all.
        n_judges: examples that judged all of them.
        loss: change of the late loss with twice the data; below 0 is better.
        accuracy: likewise, as a share; above 0 is better.
        band: late loss as the law has it, ``[3, 50]``: 5 %, median and 95 %, at ``band_at`` examples.
        band_at: examples, from the smallest part to twice the data, ``[50]``.
    """

    sizes: tuple[Size, ...]
    n_judges: int
    loss: Gain
    accuracy: Gain
    band: Array
    band_at: Array


def data_check(
    objective: SpectralObjective,
    parameters: Mapping[str, Any],
    *,
    shares: Sequence[float] = SHARES,
    n_seeds: int = 2,
    announce: Callable[[str], object] = lambda _: None,
) -> DataCheck:
    """Train settings on parts of the data, each for the same number of steps, and foresee twice the data.

    Args:
        objective: with a task that has ``late_entry``: examples by number.
        parameters: of its space.
        shares: of the examples that may be trained on, rising to 1; four at least, for a law of three numbers.
        n_seeds: trainings of each part, each with other initial weights, another order and other parts; > 1.
        announce: is told in a sentence before each part.

    Raises:
        ValueError: the task has no ``late_entry``, the shares do not rise to 1 or are fewer than four, ``n_seeds`` is
            below 2, or the smallest part has fewer examples than a batch.
    """
    late = _checked(objective, shares, n_seeds)
    judges, rest = _parts(late)
    sizes = []
    for share in shares:
        n = round(share * len(rest))
        announce(f"Training on {n} of {len(rest)} examples, {n_seeds} times")
        runs = [_run(objective, parameters, (judges, rest), n, seed) for seed in range(n_seeds)]
        sizes.append(Size(n, *zip(*runs, strict=True)))
    counts = np.array([size.n_examples for size in sizes for _ in range(n_seeds)], dtype=float)
    # the least late loss: no cross-entropy, less what full accuracy is worth; other losses have no known one
    least = -math.inf if late.logits is None else -ACCURACY_SHARE
    loss, band, at = _foreseen(counts, np.array([own for size in sizes for own in size.losses]), least)
    error, _, _ = _foreseen(counts, 1.0 - np.array([own for size in sizes for own in size.accuracies]), 0.0)
    accuracy = Gain(-error.mean, -error.high, -error.low)
    return DataCheck(tuple(sizes), len(judges), loss, accuracy, band, at)


def _checked(objective: SpectralObjective, shares: Sequence[float], n_seeds: int) -> LateExamples:
    late = objective.task.late_entry
    if late is None:
        raise ValueError(
            f"Parts of the data need the examples by number, but task {objective.task.name!r} has no `late_entry`: "
            "give it `LateExamples(...)` or `LateExamples.from_loader(loader)`."
        )
    if len(shares) < 4 or list(shares) != sorted(set(shares)) or not (shares[0] > 0.0 and shares[-1] == 1.0):
        raise ValueError(f"`shares` must be four at least, above 0 and rise to 1, but got shares={tuple(shares)}.")
    if n_seeds < 2:
        raise ValueError(f"`n_seeds >= 2` must hold, to know the noise, but got n_seeds={n_seeds}.")
    smallest = round(shares[0] * (1.0 - JUDGES) * late.n_examples)
    if smallest < late.batch_size:
        raise ValueError(
            f"The smallest part must fill a batch of {late.batch_size}, but a share of {shares[0]} of "
            f"{late.n_examples} examples is {smallest}: begin with a larger share."
        )
    return late


def _parts(late: LateExamples) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of those who judge and of those who may be trained on."""
    drawn = LateEntry(late.n_examples, late.batch_size, 2, (JUDGES,), (0.5,), late.seed)
    return drawn.cohorts[0], drawn.present


def _run(
    objective: SpectralObjective,
    parameters: Mapping[str, Any],
    parts: tuple[torch.Tensor, torch.Tensor],
    n: int,
    seed: int,
) -> tuple[float, float, float, float]:
    """Late loss, accuracy, mean alpha and its spread, of a run on ``n`` examples."""
    task, late = objective.task, objective.task.late_entry
    assert late is not None
    judges, rest = parts
    with seeded(objective.seed + seed, task.device):
        part = rest[torch.randperm(len(rest))[:n]]

        def batches() -> Any:
            shuffled = part[torch.randperm(len(part))]
            return (late.take(index) for index in torch.split(shuffled, late.batch_size))

        model = task.build_model()
        groups = objective.space.configure(FixedTrial(dict(parameters)), model)
        own = replace(task, batches=batches, late_entry=None)
        *_, last = train(model, own, groups, n_steps=objective.n_steps, interval_steps=objective.n_steps)
        if not last.is_finite:
            return math.inf, math.nan, math.nan, math.nan
        said = _judged(objective, model, late, judges)
    alphas = [row.alpha for row in diagnose(model) if row.is_judged and math.isfinite(row.alpha)]
    mean = statistics.fmean(alphas) if alphas else math.nan
    return late_loss([said]), said.accuracy, mean, statistics.stdev(alphas) if len(alphas) > 1 else math.nan


def _judged(objective: SpectralObjective, model: nn.Module, late: LateExamples, judges: torch.Tensor) -> Judgement:
    task = objective.task
    model.eval()

    def take(index: torch.Tensor) -> Any:
        return placed(late.take(index), task.device)

    seen = look_at_first_batch(model, late, take(judges[: late.batch_size]))
    return judge_cohort(model, seen, judges, objective.n_steps, take, lambda batch: task.loss(model, batch))


def _foreseen(n: Array, values: Array, floor: float) -> tuple[Gain, Array, Array]:
    """What twice the largest ``n`` changes, and the law from the smallest to there."""
    at = np.geomspace(n.min(), 2.0 * n.max(), 50)
    finite = np.isfinite(values)
    if len(set(n[finite].tolist())) < 4:
        nothing = np.full((3, len(at)), math.nan)
        return Gain(math.nan, math.nan, math.nan), nothing, at
    drawn = law_at(n[finite], values[finite], np.append(at, n.max()), floor)
    change = drawn[:, -2] - drawn[:, -1]
    low, high = (1.0 - _LEVEL) / 2, (1.0 + _LEVEL) / 2
    gain = Gain(float(change.mean()), float(np.quantile(change, low)), float(np.quantile(change, high)))
    return gain, np.quantile(drawn[:, :-1], [low, 0.5, high], axis=0), at


def law_at(n: Array, values: Array, at: Array, floor: float = -math.inf) -> Array:
    """Draw power laws with an offset that the values allow, read off at other numbers of examples.

    Exponents stand on a grid, even in ``c``; given one, offset and factor are those of linear regression, with a flat
    prior and the variance integrated out (Gelman et al., Bayesian Data Analysis, 14.2).

    Args:
        n: numbers of examples, shape ``[m]``, m > 3.
        values: shape ``[m]``, finite.
        at: shape ``[k]``.
        floor: the offset, what endless data would give, is not below it: no error rate is below 0.

    Returns:
        Shape ``[4000, k]``, the same for the same arguments.
    """
    rng = np.random.default_rng(0)
    freedom, whole = len(n) - 2, float(n.max())
    fits = []
    for exponent in _EXPONENTS:
        slope = (n / whole) ** -exponent
        design = np.stack([np.ones_like(n), slope], axis=1)
        inverse = np.linalg.inv(design.T @ design)
        best = inverse @ design.T @ values
        squares = max(float(((values - design @ best) ** 2).sum()), 1e-300)
        offset = t(freedom, best[0], math.sqrt(inverse[0, 0] * squares / freedom))
        odds = 0.5 * math.log(np.linalg.det(inverse)) - 0.5 * freedom * math.log(squares) + offset.logsf(floor)
        fits.append((odds, exponent, slope, offset))
    weights = np.array([fit[0] for fit in fits])
    share = np.exp(weights - weights.max())
    counts = rng.multinomial(_N_DRAWS, share / share.sum())
    found = []
    for (_, exponent, slope, offset), count in zip(fits, counts, strict=True):
        if not count:
            continue
        # the offset first, cut at its floor, then the variance and the factor that go with it
        offsets = offset.isf(rng.uniform(size=count) * offset.sf(floor))
        rest = values - offsets[:, None]
        factors = rest @ slope / (slope @ slope)
        squares = ((rest - factors[:, None] * slope) ** 2).sum(1)
        sd = np.sqrt(squares / rng.chisquare(freedom + 1, size=count))
        factors += sd / math.sqrt(slope @ slope) * rng.normal(size=count)
        found.append(offsets[:, None] + factors[:, None] * (at / whole) ** -exponent)
    return np.concatenate(found)
