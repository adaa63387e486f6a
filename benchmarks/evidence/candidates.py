"""Ideas for a score, one function each: what is seen of a run -> how good it looks, higher is better.

Add a function to ``CANDIDATES`` (base runs) or ``LATE_CANDIDATES`` (late runs) and call ``python -m benchmarks.evidence
judge``: the kept data answers in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks.evidence.rivals import each
from benchmarks.evidence.seen import Array, Rule, Seen
from ww_opt.spectral.rows import LayerDiagnostics
from ww_opt.spectral.scores import LATE_SHARE, SCORES, Rows, network_gain
from ww_opt.training.judging import ACCURACY_SHARE, Judgement, judge, late_loss

__all__ = ["CANDIDATES", "FAMILIES", "LATE_CANDIDATES", "LATE_FAMILIES", "late_rule", "run_judgements"]

Column = Callable[[LayerDiagnostics], float]


def _mean(rows: Rows, of: Column) -> float:
    values = [value for row in rows if not math.isnan(value := of(row))]
    return float(np.mean(values)) if values else math.nan


def over_layers(of: Column) -> Rule:
    """Make a rule of the mean of a column over the judged layers."""
    return each(lambda run: _mean(run.rows, of))


def capped_alpha(row: LayerDiagnostics) -> float:
    """Minus alpha, within [2, 6]; a layer without a fit counts as 6."""
    return -6.0 if math.isnan(row.alpha) else -min(max(row.alpha, 2.0), 6.0)


def spike_share(row: LayerDiagnostics) -> float:
    """Share of eigenvalues beyond the null's edge."""
    return row.spikes / row.n_eigenvalues


def enough_spikes(share: float) -> Column:
    """Return the share of spikes over what suffices, at most 1: more spikes than that are no merit."""
    return lambda row: min(1.0, spike_share(row) / share)


def rank_ratio(row: LayerDiagnostics) -> float:
    """Minus the log of the effective rank over the null's: how concentrated the energy is."""
    return -math.log(max(row.effective_rank, 1e-9) / row.null_effective_rank)


def stable_rank_ratio(row: LayerDiagnostics) -> float:
    """Minus the log of the stable rank over that of a random matrix of this shape."""
    edge = (math.sqrt(row.N) + math.sqrt(row.M)) ** 2
    return -math.log(max(row.stable_rank, 1e-9) * edge / (row.N * row.M * row.n_matrices))


def gated_alpha(row: LayerDiagnostics) -> float:
    """Capped alpha where the fit is good, 6 where it is not."""
    trust = float(np.clip((0.12 - row.D) / 0.06, 0.0, 1.0)) if not math.isnan(row.D) else 0.0
    return trust * capped_alpha(row) - 6.0 * (1.0 - trust)


def fit_quality(row: LayerDiagnostics) -> float:
    """Minus D."""
    return -0.3 if math.isnan(row.D) else -row.D


def largest_entry(row: LayerDiagnostics) -> float:
    """Minus the log of the largest entry."""
    return -math.log(max(row.largest_entry, 1e-9))


def traps(row: LayerDiagnostics) -> float:
    """Minus the log of one plus the traps."""
    return -math.log1p(row.traps)


def log_norm(row: LayerDiagnostics) -> float:
    """Log of the Frobenius norm."""
    return math.log(max(row.frobenius_norm, 1e-9))


def by_ranks(*rules: Rule) -> Rule:
    """Make a rule of the mean rank over rules: what a study can do that a single run cannot."""

    def rule(runs: Sequence[Seen]) -> Array:
        ranks = [rankdata(np.where(np.isnan(own := part(runs)), -np.inf, own)) for part in rules]
        return np.asarray(np.mean(ranks, axis=0))

    return rule


def growth(run: Seen) -> float:
    """Minus the growth of the parameter norm over the second half of what is seen."""
    before = 50 if run.percent == 100 else 25
    return -math.log(run.norm() / run.norm(before))


def log_loss(floor: float) -> Callable[[Seen], float]:
    """Return minus the log of the training loss over the first, not below ``floor``."""

    def value(run: Seen) -> float:
        return -math.log(max(run.train_loss / run.first_loss, floor)) if math.isfinite(run.train_loss) else math.nan

    return value


def added(first: Rule, second: Rule, weight: float = 1.0) -> Rule:
    """Make a rule of a sum, which a single run can compute."""
    return lambda runs: first(runs) + weight * second(runs)


def gain(cap: float = math.inf) -> Callable[[Seen], float]:
    """Return the network's mean gain, head included, at most ``cap``."""
    return lambda run: min(network_gain(tuple(run.diagnosis())), cap)


SPIKES = over_layers(spike_share)
ALPHA = over_layers(capped_alpha)

CANDIDATES: Mapping[str, Rule] = MappingProxyType(
    {
        "alpha capped": ALPHA,
        "alpha gated by D": over_layers(gated_alpha),
        "minus D": over_layers(fit_quality),
        "spike share": SPIKES,
        "enough spikes": over_layers(enough_spikes(0.1)),
        "enough spikes + effective rank ratio": added(over_layers(enough_spikes(0.1)), over_layers(rank_ratio)),
        "enough spikes + floored loss 20 %": added(over_layers(enough_spikes(0.1)), each(log_loss(0.2))),
        "enough spikes + floored loss 60 %": added(over_layers(enough_spikes(0.1)), each(log_loss(0.6))),
        "gain": each(gain()),
        "effective rank ratio": over_layers(rank_ratio),
        "stable rank ratio": over_layers(stable_rank_ratio),
        "-largest entry": over_layers(largest_entry),
        "-traps": over_layers(traps),
        "log norm": over_layers(log_norm),
        "-norm growth": each(growth),
        "loss after epoch 2 - loss": each(lambda run: run.loss_after(2) - run.train_loss),
        "-loss after epoch 2": each(lambda run: -run.loss_after(2)),
        "running - clean loss": each(lambda run: run.running_loss - run.train_loss),
        "-train accuracy": each(lambda run: -run.train_accuracy),
        "floored loss 5 %": each(log_loss(0.05)),
        "floored loss 20 %": each(log_loss(0.2)),
        "spikes, alpha by rank": by_ranks(SPIKES, ALPHA),
        "spikes, loss by rank": by_ranks(SPIKES, each(log_loss(0.05))),
    }
)


FAMILIES: Mapping[str, Mapping[str, Rule]] = MappingProxyType(
    {
        "enough spikes": {
            f"from {share:.0%}": over_layers(enough_spikes(share)) for share in (0.03, 0.05, 0.1, 0.15, 0.2)
        },
        "enough spikes + gain": {
            f"to {cap}": added(over_layers(enough_spikes(0.1)), each(gain(cap)))
            for cap in (-0.25, 0.0, 0.25, 0.5, 0.75, math.inf)
        },
        "weight x enough spikes + floored loss": {
            f"{weight} x, floor {floor:.0%}": added(each(log_loss(floor)), over_layers(enough_spikes(0.1)), weight)
            for weight in (0, 1, 3)
            for floor in (0.05, 0.2, 0.4, 0.6)
        },
    }
)
"""Rules with constants, each by its settings: judged with one task left out at a time."""


def _judgements(run: Seen) -> list[Judgement]:
    """What the cohorts said; where many labels an example were averaged, without logits."""
    found = []
    for percent, own in run.held_out.items():
        if own.logits is not None and own.label is not None:
            found.append(judge(torch.from_numpy(own.logits), torch.from_numpy(own.label), percent))
        else:
            right = float(own.right.mean())
            found.append(Judgement(percent, len(own.loss), right, (float(own.loss.mean()),)))
    return found


def _pooled(run: Seen, name: str) -> Array:
    return np.concatenate([getattr(own, name) for own in run.held_out.values()])


def late_rule(score_share: float, accuracy_share: float = ACCURACY_SHARE) -> Rule:
    """Return the product's late guard with the default score and the accuracy at other shares."""

    def value(run: Seen) -> float:
        plain = SCORES["default"].unguarded()(run.diagnosis())
        late = late_loss(run_judgements(run))
        accuracy = float(np.mean(_pooled(run, "right")))
        return -(late - (accuracy_share - ACCURACY_SHARE) * accuracy + score_share * plain)

    return each(value)


_KNOWN: dict[int, tuple[Seen, list[Judgement]]] = {}


def run_judgements(run: Seen) -> list[Judgement]:
    """Return the cohorts' judgements, each run's computed once."""
    if id(run) not in _KNOWN:
        _KNOWN[id(run)] = (run, _judgements(run))
    return _KNOWN[id(run)][1]


LATE_CANDIDATES: Mapping[str, Rule] = MappingProxyType(
    {
        "ww_opt default, late guard": late_rule(LATE_SHARE),
        "late: without the score": late_rule(0.0),
        "late: calibrated loss alone": late_rule(0.0, 0.0),
        "late: accuracy": each(lambda run: float(np.mean(_pooled(run, "right")))),
        "late: loss": each(lambda run: -float(np.mean(_pooled(run, "loss")))),
        "late: training loss": each(lambda run: -run.train_loss),
        "late: ww_opt default": each(lambda run: -SCORES["default"].unguarded()(run.diagnosis())),
    }
)

LATE_FAMILIES: Mapping[str, Mapping[str, Rule]] = MappingProxyType(
    {
        "late guard": {
            f"score {share}, accuracy {accuracy}": late_rule(share, accuracy)
            for share in (0.0, 0.02, 0.05, 0.1, 0.2)
            for accuracy in (0.0, 0.5, 1.0)
        }
    }
)
"""As ``FAMILIES``, for late runs."""
