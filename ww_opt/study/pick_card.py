"""What the pick is, in one file beside its weights: settings, seed, score, trust, versions."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import optuna

from ww_opt import __version__
from ww_opt.search import records
from ww_opt.study.closing import Closing
from ww_opt.study.study import Study

__all__ = ["PickCard", "git_commit", "pick_card", "write_card"]

_NAME = "pick.json"
_GIT_SECONDS = 5.0


@dataclass(frozen=True)
class PickCard:
    """The pick of a study as it is handed on.

    Attributes:
        study, task, trial: names, and the trial's number.
        score, value, direction, guard: what was ranked by; ``value`` is the pick's, ``direction`` which way is better.
        n_steps, seed, optimizer: how it was trained. ``seed`` is that of weights and data.
        sampler, sampler_seed: what drew the settings.
        params: what was suggested, by Optuna's names.
        settings: by label, constants included.
        train_loss, late_loss, late_accuracy: at the end of its trial; ``None``: not known.
        alarms, trust: how far to trust it, in sentences.
        mattered: which settings mattered in its study, in sentences.
        weights: file of its state dict, in the same folder; ``None`` where none was kept.
        versions: of this package, torch, Optuna and Python.
        git_commit: of the study file's folder, with ``+changes`` where files differ from it; ``None`` outside of git.
        made: when, as ISO 8601 in UTC.
    """

    study: str
    task: str
    trial: int
    score: str
    value: float
    direction: str
    guard: bool | str
    n_steps: int
    seed: int
    optimizer: str | None
    sampler: str
    sampler_seed: int
    params: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, float | None]]
    train_loss: float | None
    late_loss: float | None
    late_accuracy: float | None
    alarms: tuple[str, ...]
    trust: tuple[str, ...]
    mattered: tuple[str, ...]
    weights: str | None
    versions: Mapping[str, str]
    git_commit: str | None
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_json(self) -> str:
        """One JSON object, a key for each attribute."""
        return json.dumps(asdict(self), indent=2, allow_nan=False, default=str)


def pick_card(study: Study, host: optuna.Study, result: Closing, weights: Path | None, folder: Path) -> PickCard | None:
    """Sum up the pick of a study.

    Args:
        study: what was run.
        host: its records.
        result: as from :func:`ww_opt.study.closing.closing`.
        weights: file of the pick's state dict, if one was kept.
        folder: of the study file, whose git commit is told.

    Returns:
        ``None`` where there is no pick.
    """
    pick, look, objective = result.pick, result.look, study.objective
    if pick is None or pick.value is None:
        return None
    return PickCard(
        study=study.name,
        task=objective.task.name,
        trial=pick.number,
        score=objective.score,
        value=pick.value,
        direction=objective.direction,
        guard=objective.guard,
        n_steps=objective.n_steps,
        seed=objective.seed,
        optimizer=records.read(pick, "optimizer"),
        sampler=type(host.sampler).__name__,
        sampler_seed=study.seed,
        params=dict(pick.params),
        settings=records.read(pick, "settings", {}),
        train_loss=_finite(look.train_loss) if look else None,
        late_loss=_finite(look.late_loss) if look else None,
        late_accuracy=_finite(look.late_accuracy) if look else None,
        alarms=result.alarms,
        trust=result.trust,
        mattered=result.mattered,
        weights=weights.name if weights is not None else None,
        versions=_versions(),
        git_commit=git_commit(folder),
    )


def write_card(card: PickCard, directory: Path) -> Path:
    """Write ``pick.json`` aside and rename it: a reader never meets half of it."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / _NAME
    aside = directory / f".{_NAME}-{uuid.uuid4().hex[:8]}"
    try:
        aside.write_text(card.to_json() + "\n", encoding="utf-8")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def git_commit(folder: Path) -> str | None:
    """Return the commit that a folder stands at; ``None`` where it is in no repository or there is no git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {"ww_opt": __version__, "python": platform.python_version()}
    for name in ("torch", "optuna"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a build without metadata
            found[name] = "unknown"
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
