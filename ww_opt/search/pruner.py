"""Prune on what the layers say, else ask a wrapped pruner. Decides from the record alone: no torch, no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType

import optuna
from optuna.pruners import BasePruner

from ww_opt.search.records import LayerRecord, Look, looks
from ww_opt.spectral.findings import NARROW

Rule = Callable[[Look], str]

__all__ = ["RULES", "SpectralPruner"]

_MAJORITY = 0.5


def _judged(look: Look) -> list[LayerRecord]:
    """Hidden layers that are wide enough; records of earlier versions do not say what is hidden."""
    wide = [layer for layer in look.layers if layer.n_eigenvalues > 0 and layer.M >= NARROW]
    return [layer for layer in wide if layer.role in ("", "HIDDEN")]


def _majority(look: Look, finding: str, words: str) -> str:
    layers = _judged(look)
    found = [layer.name for layer in layers if finding in layer.findings]
    return f"{words} in {len(found)} of {len(layers)} layers: {found}" if len(found) > _MAJORITY * len(layers) else ""


def _moved_little(look: Look) -> str:
    return _majority(look, "MOVED_LITTLE", "little moved")


def _traps(look: Look) -> str:
    return _majority(look, "TRAP", "correlation traps")


def _rank_collapse(look: Look) -> str:
    found = [layer.name for layer in _judged(look) if "RANK_COLLAPSE" in layer.findings]
    return f"rank collapse in {found}" if found else ""


RULES: MappingProxyType[str, Rule] = MappingProxyType(
    {"traps": _traps, "rank_collapse": _rank_collapse, "moved_little": _moved_little}
)
"""Rules by name: each turns a look into a reason for pruning, or into an empty string."""
_FAULTS = ("traps", "rank_collapse")
_OLD_NAMES = {"random": "moved_little"}


class SpectralPruner(BasePruner):
    """Prune trials whose layers are broken.

    Hard faults (weights, a score or a reported value that are not finite) prune at once. The rules apply from
    ``n_warmup_steps`` on, since spectra say little early in training: ``traps`` (most layers have correlation traps)
    and ``rank_collapse`` (a layer lost its rank). ``moved_little`` (most layers are as uneven as noise and no more)
    applies only where it is named: an idle layer is no fault where labels are few or wrong, and on kept runs what the
    rule prunes is average. Layers under 32 wide are not asked. The reason names the rule. A trial without records (a
    user's own objective that never called ``ww_opt.report``) is left to ``wrapped_pruner``.

    Args:
        wrapped_pruner: asked where no rule applies; any of Optuna's. ``None``: nothing else prunes. Samplers do not see
            the brackets of a wrapped ``HyperbandPruner``.
        n_warmup_steps: first step at which the rules apply, in the unit of the reports. Default: half of the run; where
            the run's length was not reported, the rules then never apply.
        rules: names of ``RULES`` that apply; by default those that speak of faults.

    Raises:
        ValueError: ``n_warmup_steps`` is negative or a rule is unknown.
    """

    def __init__(
        self,
        wrapped_pruner: BasePruner | None = None,
        *,
        n_warmup_steps: int | None = None,
        rules: Sequence[str] = _FAULTS,
    ) -> None:
        if n_warmup_steps is not None and n_warmup_steps < 0:
            raise ValueError(f"`n_warmup_steps >= 0` must hold, but got n_warmup_steps={n_warmup_steps}.")
        known = [_OLD_NAMES.get(rule, rule) for rule in rules]
        if isinstance(rules, str) or not set(known) <= set(RULES):
            raise ValueError(f"`rules` must be a list of names among {sorted(RULES)}, but got {rules!r}.")
        self._wrapped_pruner = wrapped_pruner
        self._n_warmup_steps = n_warmup_steps
        self._rules = tuple(known)

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Say whether the trial should stop."""
        if self._fault(trial):
            return True
        return self._wrapped_pruner is not None and self._wrapped_pruner.prune(study, trial)

    def explain(self, trial: optuna.trial.FrozenTrial) -> str:
        """Return in words why :meth:`prune` stopped the trial: what is wrong with it, or the wrapped pruner's name."""
        by = "" if self._wrapped_pruner is None else f"{type(self._wrapped_pruner).__name__} at step {trial.last_step}"
        return self._fault(trial) or by

    def _fault(self, trial: optuna.trial.FrozenTrial) -> str:
        """Return what is wrong with the trial at its last look; empty where nothing is."""
        if trial.last_step is not None and not math.isfinite(trial.intermediate_values[trial.last_step]):
            return f"the reported value is not finite at step {trial.last_step}"
        seen = looks(trial)
        if not seen:
            return ""
        last = seen[-1]
        where = f" at step {last.step}"
        weights = [layer for layer in last.layers if layer.role not in ("TABLE", "UNSURE")]
        broken = [layer.name for layer in weights if layer.M > 0 and layer.n_eigenvalues == 0]
        if broken:
            return f"the weights of {broken} are not finite{where}"
        if math.isnan(last.value):
            return f"the score is not finite{where}"
        if not self._is_warm(last):
            return ""
        reasons = ((name, RULES[name](last)) for name in self._rules)
        return next((f"rule {name}: {found}{where}" for name, found in reasons if found), "")

    def _is_warm(self, look: Look) -> bool:
        if self._n_warmup_steps is not None:
            return look.step >= self._n_warmup_steps
        return look.n_steps > 0 and 2 * look.step >= look.n_steps
