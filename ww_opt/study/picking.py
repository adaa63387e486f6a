"""From a study to a model: the settings of its best trial, trained once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from torch import nn

from ww_opt.search.objective import SpectralObjective
from ww_opt.search.ranking import ranking
from ww_opt.study.weights_folder import pick_file, save_weights

__all__ = ["AGAIN", "train_best", "train_pick", "trained"]

AGAIN = "ww_opt:trained_again"
"""Attribute of a study in Optuna's storage: the number of the pick that :func:`train_pick` trained."""


def train_best(study: optuna.Study, objective: SpectralObjective, *, seed: int | None = None) -> nn.Module:
    """Train a model with the settings of a study's best trial, on all examples from the start.

    The best trial is the pick of ``ww-opt run``: complete, feasible, finite, comparable. Examples that joined late in
    the study's trials are there from the beginning; batches come from ``task.batches``. Nothing is written anywhere.

    Args:
        study: a study that ``objective`` was optimised in, with or without ``ww-opt run``.
        objective: the same one; says model, data and length of the run.
        seed: of the initial weights and the order of the data; default: the objective's own.

    Returns:
        The model, in eval mode, on the task's device.

    Raises:
        TypeError: ``study`` is no study of Optuna's, or ``objective`` no ``SpectralObjective``.
        ValueError: no trial of the study can be the best.
        RuntimeError: training diverged with this seed.
    """
    if not isinstance(study, optuna.Study):
        raise TypeError(
            f"`study` must be an optuna.Study, but got a {type(study).__name__}: that of `ww-opt run` is "
            "`optuna.load_study(study_name=..., storage='sqlite:///runs/studies.db')`."
        )
    if not isinstance(objective, SpectralObjective):
        raise TypeError(
            f"`objective` must be a ww_opt.SpectralObjective, but got a {type(objective).__name__}: with an objective "
            "of your own, train with the settings in `study.best_params`."
        )
    found = ranking(study)
    if found.best is None:
        n = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        why = " ".join(found.left_out) or f"{n} trials completed."
        raise ValueError(f"A study must have a best trial to train, but {study.study_name!r} has none: {why}")
    model = trained(objective, found.best.params, seed)
    if model is None:
        raise RuntimeError(
            f"Training must not diverge, but with seed={seed} the settings of trial {found.best.number} did: pass "
            "another `seed`."
        )
    return model


def train_pick(
    objective: SpectralObjective,
    host: optuna.Study,
    pick: FrozenTrial,
    directory: Path,
    announce: Callable[[str], object] = lambda _: None,
) -> Path | None:
    """Train the pick once more with all examples from the start, where some of them joined late in its trial.

    What joined late was seen less often: over ten development tasks that costs 0.9 points of accuracy.

    Args:
        objective: what was run.
        host: its records, which remember that it was done.
        pick: its settings.
        directory: where the weights are kept.
        announce: is told in a sentence, before that takes its time.

    Returns:
        The state dict's file; ``None`` where no example joined late, or the training diverged.
    """
    if objective.guard != "late":
        return None
    target = pick_file(directory, pick.number)
    if host.user_attrs.get(AGAIN) != pick.number or not target.is_file():
        announce("Training the pick once more, with all examples from the start")
        model = trained(objective, pick.params)
        if model is None:
            return None
        save_weights(model, target)
        host.set_user_attr(AGAIN, pick.number)
    return target


def trained(objective: SpectralObjective, parameters: Mapping[str, Any], seed: int | None = None) -> nn.Module | None:
    """Train with settings on all examples from the start; in eval mode, ``None`` where that diverges."""
    kept: list[nn.Module] = []
    own = replace(
        objective,
        # guarded, since a network too narrow for spectra has no other value
        guard=True if objective.guard == "late" else objective.guard,
        seed=objective.seed if seed is None else seed,
        interval_steps=objective.n_steps,  # looks change nothing, and nobody reads them
        on_trained=lambda _, model: kept.append(model),
    )
    try:
        own(FixedTrial(dict(parameters)))  # type: ignore[arg-type]
    except optuna.TrialPruned:
        return None
    return kept[0].eval()
