"""What looks cost: counted in a trial, kept with it, and what follows for the trials after it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ww_opt.search import records
from ww_opt.training.cadence import CADENCES, Cadence

__all__ = ["cadence_of", "counted", "look_share"]

_N_LOOKS = "ww_opt:n_looks"


def cadence_of(
    trial: optuna.Trial, n_steps: int, interval_steps: int | None, budget: float, joining: tuple[int, ...] = ()
) -> Cadence:
    """Return the cadence of a trial's run; where an earlier trial of its study has settled one, that.

    Args:
        trial: the running trial.
        n_steps: optimizer steps of the run.
        interval_steps: steps between looks; ``None``: as the budget allows.
        budget: share of the training time that looks may take.
        joining: steps done when a cohort joins.
    """
    host = getattr(trial, "study", None)
    found = None if host is None or interval_steps is not None else host.user_attrs.get(_N_LOOKS)
    return Cadence(n_steps, interval_steps, budget, joining, n_looks=found if found in CADENCES else None)


@contextmanager
def counted(
    trial: optuna.Trial, cadence: Cadence, *, training: float, step: int, before: float = 0.0
) -> Iterator[None]:
    """Count what happens inside as a look; with the last one of a trial, keep what all have cost.

    Only a run that came to its end settles the cadence of its study: in a pruned one a single look may have met the
    machine's noise.

    Args:
        trial: the running trial.
        cadence: is told.
        training: seconds of training since the start of the run.
        step: optimizer steps done.
        before: seconds that the look has taken already.
    """
    started = time.perf_counter()
    is_pruned = False
    try:
        yield
    except optuna.TrialPruned:
        is_pruned = True
        raise
    finally:
        cadence.spent(time.perf_counter() - started + before, training, step)
        if is_pruned:
            _write(trial, cadence)
    if step == cadence.n_steps:
        _write(trial, cadence)
        host: Any = getattr(trial, "study", None)
        if host is not None and cadence.n_looks is not None and host.user_attrs.get(_N_LOOKS) not in CADENCES:
            host.set_user_attr(_N_LOOKS, cadence.n_looks)


def _write(trial: optuna.Trial, cadence: Cadence) -> None:
    records.write(trial, seconds={"training": cadence.training, "looks": cadence.looking})


def look_share(trials: Iterable[FrozenTrial]) -> float:
    """Return what looks took of the training time of these trials, a share; NaN where none of them knows."""
    found = [own for trial in trials if (own := records.read(trial, "seconds"))]
    training = sum(own["training"] for own in found)
    return sum(own["looks"] for own in found) / training if training > 0 else float("nan")
