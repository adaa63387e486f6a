"""Where a study keeps the weights of its trials, as state dicts; one folder a study."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from ww_opt.search.ranking import groups
from ww_opt.study.first_use import place_new
from ww_opt.training.wrappers import plain_state

__all__ = ["claim", "is_own", "keep_all", "keep_only_best", "pick_file", "save_weights", "weights_file"]

_IDENTITY = "ww_opt:folder:"
_MARK = ".study"
_STALE_SECONDS = 600.0


def weights_file(directory: Path, number: int) -> Path:
    """Where the weights of a completed trial are kept."""
    return directory / f"trial-{number:05d}.pt"


def pick_file(directory: Path, number: int) -> Path:
    """Where the weights of a pick are kept that was trained once more."""
    return directory / f"pick-{number:05d}.pt"


def claim(directory: Path, host: optuna.Study) -> None:
    """Mark the folder as this study's, so that no other one of its name overwrites what it kept.

    Processes may come at once: each tells the storage its mark first, and the first one's mark stays in the folder.

    Raises:
        ValueError: the folder is another study's.
    """
    mark = directory / _MARK
    _tidy(directory)
    if not mark.exists():
        directory.mkdir(parents=True, exist_ok=True)
        identity = uuid.uuid4().hex
        host.set_user_attr(_IDENTITY + identity, True)
        own = mark.with_name(f"{_MARK}-{identity}")
        own.write_text(identity, encoding="utf-8")
        try:
            place_new(own, mark)
        finally:
            own.unlink(missing_ok=True)
    if _IDENTITY + mark.read_text(encoding="utf-8") not in host.user_attrs:
        raise ValueError(
            f"A folder must hold the weights of one study alone, but {directory} holds those of another one named "
            f"{host.study_name!r}, from another storage: choose another --directory or --study-name, or remove it."
        )


def is_own(directory: Path, host: optuna.Study) -> bool:
    """Whether a folder is marked as this study's; nothing is written."""
    mark = directory / _MARK
    return mark.is_file() and _IDENTITY + mark.read_text(encoding="utf-8") in host.user_attrs


def _tidy(directory: Path) -> None:
    """Remove what killed processes left half written; the young may be another process's that writes just now."""
    for left in directory.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


def save_weights(model: nn.Module, target: Path) -> None:
    """Write a state dict, without the names of wrappers, aside and rename it: a crash leaves no half file behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}-{uuid.uuid4().hex[:8]}.part")  # two processes may write one pick
    try:
        torch.save(plain_state(model), aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def keep_all(directory: Path) -> Callable[[optuna.Trial, nn.Module], None]:
    """Return what saves the weights of each completed trial."""
    return lambda trial, model: save_weights(model, weights_file(directory, trial.number))


def keep_only_best(directory: Path) -> Callable[[optuna.Study, FrozenTrial], None]:
    """Return what removes the weights of all trials but the best.

    One is kept for each group of trials that compare, since the pick may yet come from another group.
    """

    def clean(host: optuna.Study, _: FrozenTrial) -> None:
        trials = host.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        kept = {group[0].number for group in groups(host, trials)}
        for trial in trials:
            if trial.number not in kept:
                weights_file(directory, trial.number).unlink(missing_ok=True)

    return clean
