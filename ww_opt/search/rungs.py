"""Compare a trial with the others at the same fraction of the run: at a few rungs the better share goes on.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) as ASHA decides it (Li et al. 2020, 1810.05934): at
once, by those that were there before. It compares what examples say that are still to join, the same for all trials,
else the spectral score of the weights; never values of different steps. Reads records alone: no torch, no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from ww_opt.search import records

__all__ = ["JUDGES", "LATE", "WEIGHTS", "Compared", "Ranks", "Standing", "compare", "due", "standing"]

JUDGES = LATE, WEIGHTS = "late", "weights"
"""Who judges: examples that are still to join, or the spectral score of the weights. Names of rules."""
APART = 0.1
"""Share of the run by which the looks of two trials may lie apart that are compared."""
_EPSILON = 1e-9


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """When trials are compared, and how many go on. The defaults were chosen on kept runs, see ``docs/pruning.md``.

    Args:
        fractions: of the run at which there is a rung, in (0, 1), rising; the first look from there on is compared.
        share: of the trials at a rung that go on where late examples judge; one for all rungs, or one for each.
        weights_share: the same where the weights alone judge.
        n_startup_trials: trials to compare with, without which nothing is pruned.
        n_examples: least number of late examples whose word counts; with fewer the weights judge.

    Raises:
        ValueError: a number is out of range.
    """

    fractions: tuple[float, ...] = (0.2, 0.5)
    share: float | tuple[float, ...] = 1 / 3
    weights_share: float | tuple[float, ...] = 1 / 3
    n_startup_trials: int = 4
    n_examples: int = 20

    def __post_init__(self) -> None:
        own = list(self.fractions)
        if not own or own != sorted(set(own)) or not all(0.0 < one < 1.0 for one in own):
            raise ValueError(f"`fractions` must lie in (0, 1) and rise, but got fractions={self.fractions}.")
        for name in ("share", "weights_share"):
            shares = getattr(self, name)
            each = shares if isinstance(shares, tuple) else (shares,) * len(own)
            if len(each) != len(own) or not all(0.0 < one <= 1.0 for one in each):
                raise ValueError(
                    f"`0 < {name} <= 1` must hold, for one share or as many as fractions={self.fractions}, but got "
                    f"{name}={shares}."
                )
        for name in ("n_startup_trials", "n_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name} >= 1` must hold, but got {name}={getattr(self, name)}.")

    def share_at(self, judge: str, fraction: float) -> float:
        """Share of the trials that go on at the last rung up to a fraction of the run."""
        shares = self.share if judge == LATE else self.weights_share
        if not isinstance(shares, tuple):
            return shares
        passed = sum(rung <= fraction + _EPSILON for rung in self.fractions)
        return shares[max(passed, 1) - 1]


@dataclass(frozen=True)
class Standing:
    """What a trial shows at a rung.

    Attributes:
        number: of the trial.
        step: of the look.
        fraction: of the run that was done.
        kind: architecture and optimizer; trials of another kind are not compared with it.
        values: by judge, lower is better, infinite where it is not a number: such a trial is the last. A judge is its
            rule and the number of examples, or the direction of the score.
    """

    number: int
    step: int
    fraction: float
    kind: Any
    values: Mapping[tuple[str, int | str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """A comparison: by which rule, with whom, and how it came out. ``threshold``: NaN with too few to compare with."""

    rule: str
    value: float
    threshold: float
    others: tuple[int, ...]
    place: int

    @property
    def is_worse(self) -> bool:
        """Whether the trial is not among those that go on."""
        return self.value > self.threshold


def due(fractions: Iterable[float], before: float, now: float) -> float | None:
    """The last rung that lies behind ``before`` and not behind ``now``, both fractions of the run; else ``None``.

    At the end of the run there is none: what is pruned there saves nothing.
    """
    passed = [own for own in fractions if before < own - _EPSILON <= now]
    return max(passed, default=None) if now < 1.0 - _EPSILON else None


def standing(trial: FrozenTrial, rung: float, ranks: Ranks) -> Standing | None:
    """What a trial showed at its first look from a rung on; ``None`` where it had none, or its length is not known."""
    for step, look in records.look_values(trial).items():
        n_steps = _number(look.get("n_steps"))
        if n_steps > 0 and step / n_steps >= rung - _EPSILON:
            kind = records.shapes(trial), records.read(trial, "optimizer")
            return Standing(trial.number, step, step / n_steps, kind, _values(look, ranks))
    return None


def _values(look: Mapping[str, Any], ranks: Ranks) -> dict[tuple[str, int | str], float]:
    found: dict[tuple[str, int | str], float] = {}
    for loss, n in (("ahead_loss", "n_ahead"), ("late_loss", "n_late")):
        heard = _number(look.get(n))
        if heard >= ranks.n_examples:
            found[LATE, int(heard)] = _finite(look.get(loss))
            break  # they are the same for all who hear as many; what joined before is older news
    sign = -1.0 if look.get("direction") == "maximize" else 1.0
    if (score := _finite(look.get("score"))) < math.inf:
        found[WEIGHTS, str(look.get("direction") or "minimize")] = sign * score
    return found


def compare(own: Standing, others: Sequence[Standing], ranks: Ranks, rules: Iterable[str]) -> Compared | None:
    """Compare a trial with others at a rung, by the best judge that enough of them have heard.

    Args:
        own: where it stands.
        others: where they stood at the same rung.
        ranks: how many go on.
        rules: the judges that may be asked.

    Returns:
        ``None`` where no judge was heard. With too few others ``threshold`` is NaN, and nothing is worse.
    """
    near = [one for one in others if one.kind == own.kind and abs(one.fraction - own.fraction) <= APART + _EPSILON]
    found = None
    for judge, value in own.values.items():
        if judge[0] not in rules:
            continue
        heard = {one.number: one.values[judge] for one in near if judge in one.values}
        n_kept = math.ceil(ranks.share_at(judge[0], own.fraction) * (len(heard) + 1) - _EPSILON)
        is_enough = len(heard) >= ranks.n_startup_trials
        # of a share of 1 everybody goes on
        threshold = sorted([*heard.values(), math.inf])[n_kept - 1] if is_enough else math.nan
        place = 1 + sum(one < value for one in heard.values())
        found = Compared(judge[0], value, threshold, tuple(sorted(heard)), place)
        if is_enough:
            break
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.inf
