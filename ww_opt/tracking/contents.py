"""What MLflow is given: of a trial at its end, and of a study at its end. Pure: nothing here talks to MLflow."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from ww_opt.reporting.summary import judged
from ww_opt.search import records

if TYPE_CHECKING:
    from ww_opt.study.closing import Closing, TestAccuracy
    from ww_opt.study.pick_card import PickCard

_MAX_ROWS = 40  # of settings in the note: a tag has 8,000 characters

__all__ = ["Contents", "best_late_accuracy", "finding_counts", "of_study", "rule_counts"]


@dataclass(frozen=True)
class Contents:
    """What the parent run of a study gets at its end.

    Attributes:
        params: what cannot change in a study, which MLflow never lets one change.
        tags: what can: the pick and its settings, versions, counts.
        metrics: numbers at the end; finite.
        files: artifacts, each by its name.
        weights: the state dict of the pick.
        note: Markdown, below the line that counts the trials.
    """

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    weights: Path | None = None
    note: str = ""


def of_study(
    card: PickCard | None,
    result: Closing,
    accuracy: TestAccuracy | None,
    trials: Iterable[FrozenTrial],
    files: Iterable[Path] = (),
    weights: Path | None = None,
) -> Contents:
    """Gather what is known of a study at its end.

    Args:
        card: its pick, if there is one.
        result: as from :func:`ww_opt.study.closing.closing`.
        accuracy: what the sealed test set said, if there is one.
        trials: its finished trials.
        files: figure, report and ``pick.json``.
        weights: the state dict of the pick.
    """
    trials = list(trials)
    tags = {f"ww_opt.{name}": "\n".join(getattr(result, name)) for name in ("alarms", "trust", "mattered")}
    tags |= {f"ww_opt.finding.{name}": str(count) for name, count in finding_counts(trials).items()}
    tags |= {f"ww_opt.pruned.{name}": str(count) for name, count in rule_counts(trials).items()}
    metrics = {"steps_saved": result.saved, "seed_noise": result.noise}
    metrics |= {f"n_{name}": float(getattr(result, f"n_{name}")) for name in ("complete", "pruned", "failed")}
    if result.importance is not None:
        metrics |= {f"importance/{own.kind}": own.share for own in result.importance.kinds}
    params: dict[str, str] = {}
    if card is not None:
        own = asdict(card)
        params = {f"ww_opt.{name}": str(own[name]) for name in ("score", "guard", "n_steps", "direction", "task")}
        names = ("optimizer", "seed", "sampler", "sampler_seed", "git_commit")
        tags |= {f"ww_opt.{name}": str(own[name]) for name in names if own[name] is not None}
        tags |= {f"ww_opt.version.{name}": text for name, text in card.versions.items()}
        if card.git_commit:
            tags["mlflow.source.git.commit"] = card.git_commit.partition("+")[0]
        tags["ww_opt.pick"] = str(card.trial)
        tags |= {f"ww_opt.pick.{name}": str(value) for name, value in _used(card).items()}
        metrics["pick_score"] = card.value
        metrics |= {f"pick_{name}": own[name] for name in ("train_loss", "late_loss", "late_accuracy") if own[name]}
    if accuracy is not None:
        values = {"pick": accuracy.pick, "median": accuracy.median, "retrained_pick": accuracy.again}
        metrics |= {f"sealed_{accuracy.metric}/{name}": value for name, value in values.items()}
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    kept = {name: text for name, text in tags.items() if text}
    return Contents(params, kept, finite, tuple(files), weights, _note(card, result))


def _note(card: PickCard | None, result: Closing) -> str:
    """What was found, in Markdown: first what must be read before the pick."""
    parts = [
        ("Read this first", result.alarms),
        ("How far to trust it", result.trust),
        ("What mattered", result.mattered),
    ]
    lists = [f"**{title}**\n\n" + "\n".join(f"- {line}" for line in lines) for title, lines in parts if lines]
    if card is not None and card.params:
        rows = "".join(f"\n| {_cell(name)} | {_cell(value)} |" for name, value in list(card.params.items())[:_MAX_ROWS])
        lists.append(f"**Settings of the pick, trial {card.trial}**\n\n| setting | value |\n|---|---|{rows}")
        if len(card.params) > _MAX_ROWS:
            lists.append("All of them are in `pick.json`.")
    return "\n\n".join(lists)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return re.sub(r"([\\|<>&])", r"\\\1", " ".join(text.split()))


def _used(card: PickCard) -> dict[str, Any]:
    settings = {f"{kind}/{label}": value for label, own in card.settings.items() for kind, value in own.items()}
    return {**{name: value for name, value in settings.items() if value is not None}, **card.params}


def finding_counts(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Count by finding the judged layers at the last look of completed and pruned trials."""
    count: Counter[str] = Counter()
    for trial in trials:
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and (looks := records.looks(trial)):
            count.update(name for layer in judged(looks[-1]) for name in layer.findings)
    return dict(sorted(count.items()))


def rule_counts(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Count the pruned trials by the rule that stopped them: the words of the reason, without layers and numbers."""
    reasons = (records.reason(trial) for trial in trials if trial.state is TrialState.PRUNED)
    return dict(sorted(Counter(_rule(reason) for reason in reasons if reason).items()))


def _rule(reason: str) -> str:
    words = re.split(r"\[|:| at step| became | in \d| in \[|\d", reason)[0]
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "other"


def best_late_accuracy(trials: Iterable[FrozenTrial]) -> float:
    """Return the best accuracy on late examples at the end of a completed trial; NaN where none is known."""
    completed = (trial for trial in trials if trial.state is TrialState.COMPLETE)
    known = [list(column.values())[-1] for trial in completed if (column := records.column(trial, "late_accuracy"))]
    return max((value for value in known if math.isfinite(value)), default=math.nan)
