"""Prune what is broken, then what others are ahead of, else ask a wrapped pruner. Decides from records: no torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from ww_opt.search import records
from ww_opt.search.decisions import FAULT, NOT_FINITE, RANK, WRAPPED, Decision, decisions, leave
from ww_opt.search.faults import DEFAULT_FAULTS, FAULTS, N_LAST, WARM, fatal, lasting
from ww_opt.search.peers import Peers
from ww_opt.search.ranking import some
from ww_opt.search.records import Look
from ww_opt.search.repeats import is_repeat
from ww_opt.search.rungs import JUDGES, LATE, Compared, Ranks, Standing, compare, due, standing

__all__ = ["DEFAULT_RULES", "RULES", "SpectralPruner"]

_LOG = logging.getLogger(__name__)
RULES = (*FAULTS, *JUDGES)
"""Names of all rules: faults, and the judges that trials are ranked by."""
DEFAULT_RULES = (*DEFAULT_FAULTS, *JUDGES)
_OLD_NAMES = {"random": "moved_little"}


class SpectralPruner(BasePruner):
    """Prune trials that are broken, and those that others are ahead of at the same fraction of the run.

    **Faults.** Weights, a score or a reported value that are not finite prune at once. From ``n_warmup_steps`` on the
    rules of :data:`ww_opt.search.faults.FAULTS` apply; a sign must hold in two reports in a row. By default these are
    ``diverged`` (the training loss is back where it began) and ``broken`` (a layer's spectral norm left its scale). A
    growing trap, a lost rank and an idle layer are signs, and no faults: on planted runs what they found was better
    than the healthy run as often as worse. ``traps``, ``rank_collapse``, ``moved_little`` apply where they are named.

    **Ranks.** At each rung of ``ranks`` a trial is compared with the study's other trials at the same fraction of the
    run: ``late``, by what late examples say that are still to join, where there are enough of them; else ``weights``,
    by the spectral score. The better share goes on. Repeats, failed trials and those of another architecture or
    optimizer are not compared; pruned ones that reached the rung are. A number that is not finite is the last. Needs
    ``n_steps`` in :func:`ww_opt.report`; where it is missing nothing is ranked, and that is said once. On ten kept
    tasks (``docs/pruning.md``) ``late`` saves 57 % of the steps and costs the pick 0.1 points.

    Each decision is on record with the trial, see :func:`ww_opt.decisions`. All is read from storage, so that workers
    agree and a study can go on; what is remembered between calls is what finished trials said.

    Args:
        wrapped_pruner: asked where no rule applies; any of Optuna's. ``None``: nothing else prunes. Samplers do not see
            the brackets of a wrapped ``HyperbandPruner``. It is left alone with trials without records (a user's own
            objective that never called ``ww_opt.report``).
        n_warmup_steps: first step at which faults and ranks apply, in the unit of the reports. Default: ranks at each
            rung, faults from a fifth of the run on; where its length was not reported, neither ever does.
        rules: names of ``RULES`` that apply.
        ranks: where trials are compared, and how many go on.

    Raises:
        ValueError: ``n_warmup_steps`` is negative or a rule is unknown.
        TypeError: ``ranks`` are none.
    """

    def __init__(
        self,
        wrapped_pruner: BasePruner | None = None,
        *,
        n_warmup_steps: int | None = None,
        rules: Sequence[str] = DEFAULT_RULES,
        ranks: Ranks | None = None,
    ) -> None:
        if n_warmup_steps is not None and n_warmup_steps < 0:
            raise ValueError(f"`n_warmup_steps >= 0` must hold, but got n_warmup_steps={n_warmup_steps}.")
        known = [_OLD_NAMES.get(rule, rule) for rule in rules]
        if isinstance(rules, str) or not set(known) <= set(RULES):
            raise ValueError(f"`rules` must be a list of names among {sorted(RULES)}, but got {rules!r}.")
        if not isinstance(ranks, Ranks | None):
            raise TypeError(f"`ranks` must be a ww_opt.Ranks, but got {ranks!r}.")
        self._wrapped_pruner = wrapped_pruner
        self._n_warmup_steps = n_warmup_steps
        self._rules = tuple(known)
        self._ranks = ranks if ranks is not None else Ranks()
        self._peers = Peers(self._ranks)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Say whether the trial should stop, and leave with it what was decided."""
        decision = self._fault(trial) or self._rank(study, trial)
        if decision is not None:
            leave(study, trial, decision)
            if decision.is_pruned:
                return True
        if self._wrapped_pruner is None or not self._wrapped_pruner.prune(study, trial):
            return False
        step, name = trial.last_step or 0, type(self._wrapped_pruner).__name__
        leave(study, trial, Decision(step, name, WRAPPED, is_pruned=True, words=f"{name} at step {step}"))
        return True

    def explain(self, trial: FrozenTrial) -> str:
        """Return in words why :meth:`prune` stopped the trial: the rule and what it saw, or the wrapped pruner."""
        fault = self._fault(trial)
        ranked = (own.words for own in decisions(trial) if own.is_pruned and own.half == RANK)
        by = "" if self._wrapped_pruner is None else f"{type(self._wrapped_pruner).__name__} at step {trial.last_step}"
        return fault.words if fault is not None else next(ranked, by)

    def wants_ahead(self, before: int | None, step: int, n_steps: int) -> bool:
        """Whether there is a rung between two looks at which examples are asked that are still to join.

        Args:
            before: step of the look before; ``None``: there was none.
            step: step of the present look.
            n_steps: length of the run; 0: not known.
        """
        return LATE in self._rules and self._rung(before, step, n_steps) is not None

    def rung_steps(self, n_steps: int) -> tuple[int, ...]:
        """Steps of a run of ``n_steps`` at which trials are compared: each needs a look."""
        found = [math.ceil(own * n_steps) for own in self._ranks.fractions]
        is_ranking = not set(JUDGES).isdisjoint(self._rules)
        return tuple(own for own in found if own >= (self._n_warmup_steps or 0)) if is_ranking else ()

    def _rung(self, before: int | None, step: int, n_steps: int) -> float | None:
        if n_steps <= 0 or (self._n_warmup_steps is not None and step < self._n_warmup_steps):
            return None
        return due(self._ranks.fractions, -1.0 if before is None else before / n_steps, step / n_steps)

    def _fault(self, trial: FrozenTrial) -> Decision | None:
        """What is wrong with the trial at its last look."""
        step = trial.last_step
        if step is not None and not math.isfinite(value := trial.intermediate_values[step]):
            words = f"the reported value is not finite at step {step}"
            return Decision(step, NOT_FINITE, FAULT, is_pruned=True, value=value, words=words)
        seen = records.first_and_last(trial, N_LAST)
        if not seen:
            return None
        last = seen[-1]
        fault = fatal(last)
        if fault is None and self._is_warm(last):
            rules = [rule for rule in self._rules if rule in FAULTS]
            losses = records.column(trial, "train_loss")
            fault = lasting(seen, rules, losses, records.read(trial, "first_loss"))
        if fault is None:
            return None
        return Decision(
            step=last.step,
            rule=fault.rule,
            half=FAULT,
            is_pruned=True,
            fraction=last.step / last.n_steps if last.n_steps > 0 else math.nan,
            layers=fault.layers,
            value=fault.value,
            threshold=fault.threshold,
            words=f"{fault.words} at step {last.step}",
        )

    def _is_warm(self, look: Look) -> bool:
        if self._n_warmup_steps is not None:
            return look.step >= self._n_warmup_steps
        return look.n_steps > 0 and look.step >= WARM * look.n_steps

    def _rank(self, study: optuna.Study, trial: FrozenTrial) -> Decision | None:
        """How the trial stands at a rung that its last look has reached; ``None`` where it is at none."""
        rules = [rule for rule in JUDGES if rule in self._rules]
        lengths = records.column(trial, "n_steps")
        if not rules or not lengths or is_repeat(trial):
            return None
        *earlier, step = lengths
        if lengths[step] <= 0:
            _tell_of_length(study.study_name)
            return None
        rung = self._rung(earlier[-1] if earlier else None, step, lengths[step])
        own = None if rung is None else standing(trial, rung, self._ranks)
        if rung is None or own is None:
            return None
        compared = compare(own, self._peers.at(study, trial, rung), self._ranks, rules)
        return None if compared is None else _ranked(own, compared)


def _ranked(own: Standing, compared: Compared) -> Decision:
    """A comparison as a decision, in words."""
    n = len(compared.others) + 1
    what = "late loss" if compared.rule == LATE else "score of the weights"
    words = f"rule {compared.rule}: place {compared.place} of {n} at {own.fraction:.0%} of the run, {what} "
    words += f"{compared.value:.4g}"
    if math.isnan(compared.threshold):
        words += "; too few trials to compare with"
    else:
        words += f", {'above' if compared.is_worse else 'within'} {compared.threshold:.4g}"
        words += f", beside trials {some(compared.others)}"
    return Decision(
        step=own.step,
        rule=compared.rule,
        half=RANK,
        is_pruned=compared.is_worse,
        fraction=own.fraction,
        value=compared.value,
        threshold=compared.threshold,
        compared=compared.others,
        words=f"{words} at step {own.step}",
    )


@cache
def _tell_of_length(study_name: str) -> None:
    _LOG.warning(
        "SpectralPruner cannot compare the trials of study %r, for the length of their runs is not known: pass "
        "`n_steps=` to `ww_opt.report`, in the unit of `step`. Until then it prunes by faults that need no length "
        "(`n_warmup_steps=` lets the others begin), and asks the wrapped pruner.",
        study_name,
    )
