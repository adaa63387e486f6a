"""The words at the end of a study."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ww_opt.reporting.terminal import (
    are_shares,
    command_line,
    in_network_order,
    layer_table,
    legend,
    number,
    settings_table,
)

if TYPE_CHECKING:
    from ww_opt.study.closing import Closing, TestAccuracy

__all__ = ["accuracy_text", "closing_text", "mlflow_text"]

_N_REASONS = 5
_WIDTH = 100


def closing_text(result: Closing, settings: Mapping[str, Any]) -> str:
    """Tell what a study found, without the test set: what alarms first, then the pick and how far to trust it."""
    counts = _counts(result)
    alarms = ["Read this first", "", *_items(result.alarms), ""] if result.alarms else []
    if result.pick is None or result.pick.value is None:
        why = "widen the space or let the pruner start later" if not result.trust else "relax what is said below"
        lines = [*alarms, f"{counts}. There is nothing to pick: {why}.", *_reasons(result.reasons)]
        return "\n".join([*lines, *_items(result.trust)])
    better = "lower" if result.direction == "minimize" else "higher"
    head = f"The pick: trial {result.pick.number}, score {number(result.pick.value)} ({better} is better)"
    if result.look is not None and not math.isnan(result.look.train_loss):
        head += f", training loss {number(result.look.train_loss)}"
    parts = [*alarms, head, *textwrap.wrap(result.meaning, _WIDTH), "", settings_table(settings)]
    if result.look is not None and result.look.layers:
        layers = result.look.layers
        words = legend(layers)
        parts += ["", "Its layers", "", layer_table(in_network_order(layers)), *([words] if words else [])]
    parts += ["", f"{counts}; {_pruning(result)}."]
    if not math.isnan(result.look_share):
        parts.append(f"Looks took {result.look_share:.1%} of the training time.")
    parts += _reasons(result.failures)
    if result.mattered:
        parts += ["", "What mattered", "", *_items(result.mattered)]
    if result.trust:
        parts += ["", "How far to trust this ranking", "", *_items(result.trust)]
    return "\n".join(parts)


def _counts(result: Closing) -> str:
    text = f"{result.n_complete} trial{'s' * (result.n_complete != 1)} completed"
    if result.n_settings < result.n_complete:
        text += f" ({result.n_settings} distinct setting{'s' * (result.n_settings != 1)})"
    text += f", {result.n_pruned} pruned, {result.n_failed} failed"
    return f"{text}, {result.n_interrupted} interrupted" if result.n_interrupted else text


def _pruning(result: Closing) -> str:
    text = f"pruning saved {result.saved:.0%} of the steps"
    if not result.ended_by:
        return text
    ended = [f"{rule} {count}" for rule, count in result.ended_by.items()]
    return f"{text} (trials ended by each rule: {', '.join(ended)})"


def _items(sentences: Iterable[str]) -> list[str]:
    return [textwrap.fill(own, _WIDTH, initial_indent="- ", subsequent_indent="  ") for own in sentences]


def _reasons(reasons: Iterable[str]) -> list[str]:
    """Name the commonest reasons, each once."""
    found = Counter(" ".join(reason.split()) for reason in reasons if reason).most_common(_N_REASONS)
    return [f"  {reason}" + (f" ({count} times)" if count > 1 else "") for reason, count in found]


def accuracy_text(accuracy: TestAccuracy) -> str:
    """Tell what the sealed test set says: accuracies in percent, any other metric as it is."""
    own = accuracy
    known = [
        value for value in (own.pick, own.best, own.median, own.again, own.start, own.shared) if not math.isnan(value)
    ]
    is_share = are_shares(own.metric, known)

    def told(value: float) -> str:
        return f"{value:.1%}" if is_share else number(value)

    width = max((len(told(value)) for value in known), default=0)
    width = max(width, 6)
    again = f"  ({told(own.again)} trained again with all examples from the start)" * (not math.isnan(own.again))
    lines = [
        f"The sealed test set, opened only now ({own.metric})",
        f"  the pick             {told(own.pick):>{width}}{again}",
    ]
    if not math.isnan(own.start):
        lines.append(f"  what you came with   {told(own.start):>{width}}  (trial {own.start_number})")
    if not math.isnan(own.shared):
        what = f"trial {own.shared_number}, the best by its score whose layers have the same settings"
        lines.append(f"  best shared setting  {told(own.shared):>{width}}  ({what})")
    if not math.isnan(own.best):
        lines += [
            f"  the best trial       {told(own.best):>{width}}  (trial {own.best_number}, known by hindsight only)",
            f"  the median trial     {told(own.median):>{width}}  (of {own.n_trials} completed)",
        ]
    return "\n".join(lines)


def mlflow_text(uri: str) -> str:
    """Tell where the MLflow runs are, and how to look at them; without a password."""
    shown = re.sub(r"//[^/\s@]+@", "//***@", uri)
    if shown.startswith("http"):
        return f"MLflow runs: {shown}"
    return f"MLflow runs: {shown}; to look at them:\n  {command_line('mlflow', 'ui', '--backend-store-uri', shown)}"
