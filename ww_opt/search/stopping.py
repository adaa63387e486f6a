"""When another trial is not worth its price: the improvement expected of it lies under the noise.

``LayerwiseSampler`` leaves with each trial what it expected of it; the rule reads that and nothing else.
"""

from __future__ import annotations

import math

import optuna
from optuna.trial import FrozenTrial

from ww_opt.search.repeats import is_repeat

__all__ = ["PATIENCE", "PRICE", "expected", "is_converged", "remember_expected"]

PRICE = 0.5
"""Improvement that a trial must promise, in standard deviations of the noise."""
PATIENCE = 4
"""Trials in a row that must promise less: one alone may be the search's own unluck."""
_EXPECTED = "ww_opt:expected"


def remember_expected(study: optuna.Study, trial: FrozenTrial, improvement: float, noise: float) -> None:
    """Leave with a trial what is expected of it, and the noise of a value, both in one unit."""
    study._storage.set_trial_system_attr(trial._trial_id, _EXPECTED, [improvement, noise])


def expected(trial: FrozenTrial) -> tuple[float, float] | None:
    """Improvement that was expected of a trial, and the noise; ``None`` where the sampler did not say."""
    found = trial.system_attrs.get(_EXPECTED)
    return (float(found[0]), float(found[1])) if found else None


def is_converged(study: optuna.Study, price: float = PRICE, patience: int = PATIENCE) -> bool:
    """Whether the last ``patience`` trials each promised less than ``price`` times the noise.

    Repeats and trials that the user queued promise nothing and are passed over; so are those of a sampler that does not
    say what it expects: then this is ``False``.

    Raises:
        ValueError: ``price`` is not positive and finite, or ``patience`` is below 1.
    """
    if not (math.isfinite(price) and price > 0):
        raise ValueError(f"`price > 0` must hold, but got price={price}.")
    if patience < 1:
        raise ValueError(f"`patience >= 1` must hold, but got patience={patience}.")
    said = [own for trial in study.get_trials(deepcopy=False) if not is_repeat(trial) and (own := expected(trial))]
    return len(said) >= patience and all(gain < price * noise for gain, noise in said[-patience:])
