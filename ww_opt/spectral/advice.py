"""Rows -> what they may come from, most likely first, and what to try. From the weights alone, so never certain.

How often the right cause came first or second where it was planted, and how often anything was said of healthy runs,
stands in ``docs/findings.md``. Wrong labels leave no trace that was found: no suggestion speaks of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ww_opt.spectral.findings import CALLS_TO_ACT, Finding, Role, Status
from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics
from ww_opt.spectral.rules import has_lost_rank, scale_ratios
from ww_opt.spectral.scores import judged

__all__ = ["CANNOT_TELL", "SIGNS", "Cause", "Signs", "Suggestion", "by_attention", "nothing_learnt", "suggestions"]

CANNOT_TELL = (
    "Weights say how much was learnt, not whether it was right: a net trained on wrong labels looks like one trained "
    "on right ones."
)
"""What stands above every number that compares models by their weights."""


_N_NAMED = 8


class Cause(Enum):
    """What a net's rows may come from. The value is a sentence: the cause, then what to try."""

    DIVERGED = "training diverged: there are weights that are not finite; lower the learning rate, or clip gradients"
    RATE_TOO_HIGH = "its learning rate is too high: lower it, to a tenth at first"
    HUGE_ENTRY = "a few entries have exploded: clip gradients, and look for the step at which the loss jumped"
    DECAY_TOO_HIGH = "its weight decay is too high: lower it, to a tenth at first"
    NOT_MOVED = "it has not moved, so it is frozen or its rate is near zero: look whether that is meant"
    TOO_LITTLE_TRAINING = "too little training of the whole net: train longer, or raise the learning rate of all layers"
    ROUNDED = "its weights were rounded to a few bits: measure on data what that costs"


@dataclass(frozen=True)
class Suggestion:
    """A cause, and the layers that speak for it.

    Attributes:
        cause: what it may come from.
        layers: names of the layers that speak for it; empty where the whole net does.
        likelihood: in (0, 1), to rank by; not a frequency. ``docs/findings.md`` has those.
        caveat: on what it depends besides, where that is not known.
    """

    cause: Cause
    layers: tuple[str, ...]
    likelihood: float
    caveat: str = ""

    @property
    def sureness(self) -> str:
        """The likelihood in a word."""
        return "almost sure" if self.likelihood >= 0.9 else "likely" if self.likelihood >= 0.6 else "possible"

    @property
    def words(self) -> str:
        """Cause, layers, what to try and how sure that is, in one line."""
        rest = len(self.layers) - _N_NAMED
        named = [*self.layers[:_N_NAMED], *([f"{rest} more"] if rest > 0 else [])]
        where = f"{', '.join(named)}: " if named else ""
        return f"{where}{self.cause.value} ({self.sureness}{self.caveat})"


@dataclass(frozen=True)
class Signs:
    """Where signs of a cause begin, beside those of findings.

    Attributes:
        lost: share of the null's effective rank under which a layer has lost its rank. Layers of healthy runs keep .38.
        near: scale beside the median of the others under which lost rank speaks for decay, not for a high rate.
        far: scales beside the median of the others, below and above, from which scale alone is a sign where it is not
            known whether a norm follows. Those of a healthy transformer lie in .7 to 1.7.
        fresh_rank: mean share of the null's effective rank from which a net without norms is as it was at its start.
        fresh_entry: mean largest entry, in standard deviations, up to which a net is: PyTorch draws entries uniformly,
            where it is 1.7, and training lifts it above 3. A normal start is above 3 from the first.
    """

    lost: float = 0.15
    near: float = 0.5
    far: tuple[float, float] = (0.3, 6.0)
    fresh_rank: float = 0.9
    fresh_entry: float = 2.75


SIGNS = Signs()
_BY_SCALE_ALONE = 0.45


def suggestions(diagnosis: Diagnosis, signs: Signs = SIGNS) -> tuple[Suggestion, ...]:
    """Say what a model's rows may come from, most likely first; nothing where nothing is found.

    Hidden layers at least 32 wide are asked, as by a score; of other weights only what is found in them counts: of
    frozen ones whether they were ever trained, huge entries, few distinct values. NaN policy: layers that are not
    finite are the one suggestion; others without a spectrum are passed over. The ``weightwatcher`` convention has no
    nulls to tell from and gives no suggestions.

    Args:
        diagnosis: as from :func:`ww_opt.spectral.diagnose`, findings included.
        signs: where signs begin.
    """
    if diagnosis.convention == "weightwatcher":
        return ()
    broken = tuple(row.name for row in diagnosis if _is_broken(row))
    if broken:
        return (Suggestion(Cause.DIVERGED, broken, 0.99),)
    layers, ratios = judged(diagnosis), scale_ratios(diagnosis)
    spoken: dict[Cause, dict[str, float]] = {}
    asked = {row.name for row in layers}
    for row in diagnosis:
        own = _of_layer(row, ratios, signs) if row.name in asked else _of_another(row)
        for cause, likelihood in own.items():
            spoken.setdefault(cause, {})[row.name] = likelihood
    found = [
        Suggestion(cause, tuple(names), max(names.values()), _caveat(cause, names)) for cause, names in spoken.items()
    ]
    # a layer that speaks for less training contradicts a net that wants more
    whole = 0.0 if {Cause.RATE_TOO_HIGH, Cause.DECAY_TOO_HIGH} & set(spoken) else _of_net(layers, signs)
    if whole:
        found.append(Suggestion(Cause.TOO_LITTLE_TRAINING, (), whole))
    return tuple(sorted(found, key=lambda item: -item.likelihood))


def by_attention(diagnosis: Diagnosis, said: Sequence[Suggestion]) -> tuple[LayerDiagnostics, ...]:
    """Sort layers by what needs attention; of equals the model's order is kept.

    First those that are broken, then those a suggestion names, the likeliest first, then those with a finding that
    calls to act; then the judged ones, and last those that no score looks at.

    Args:
        diagnosis: a model's.
        said: what :func:`suggestions` says of it.
    """
    likelihoods = {name: own.likelihood for own in sorted(said, key=lambda own: own.likelihood) for name in own.layers}

    def rank(row: LayerDiagnostics) -> tuple[int, float]:
        if _is_broken(row):
            return 0, 0.0
        if row.name in likelihoods:
            return 1, -likelihoods[row.name]
        if CALLS_TO_ACT.intersection(row.findings):
            return 2, 0.0
        return 3 if row.is_judged else 4, 0.0

    return tuple(sorted(diagnosis, key=rank))


def _is_broken(row: LayerDiagnostics) -> bool:
    # a file's masks may hold infinity though training is well
    return row.fit_status == Status.NON_FINITE.value and row.role not in (Role.TABLE, Role.UNSURE)


def nothing_learnt(diagnosis: Diagnosis) -> str:
    """Say so where all judged layers have moved little; empty elsewhere, also where spectra cannot see it."""
    layers = judged(diagnosis)
    if not layers or not _all_have(Finding.MOVED_LITTLE, layers):
        return ""
    which = f"all {len(layers)} judged layers have" if len(layers) > 1 else "the one judged layer has"
    return f"Nothing was learnt that a spectrum shows: {which} moved little."


def _of_layer(row: LayerDiagnostics, ratios: Mapping[str, float], signs: Signs) -> dict[Cause, float]:
    """Causes that a layer speaks for, each with a likelihood."""
    found, ratio = set(row.findings), ratios.get(row.name, math.nan)
    has_lost = has_lost_rank(row, signs.lost) or 4 * row.rank_loss > row.n_eigenvalues
    spoken: dict[Cause, list[float]] = {}

    def speak(cause: Cause, likelihood: float, *, where: bool) -> None:
        if where:
            spoken.setdefault(cause, []).append(likelihood)

    is_small, is_odd = ratio < signs.near, Finding.ODD_SCALE in found and Finding.MOVED_LITTLE not in found
    speak(Cause.ROUNDED, 0.98, where=Finding.QUANTISED in found)
    speak(Cause.HUGE_ENTRY, 0.5 if has_lost else 0.95, where=Finding.TRAP in found)
    # a rate that is too high leaves huge entries, and kills directions without making the layer small
    speak(Cause.RATE_TOO_HIGH, 0.95, where=has_lost and Finding.TRAP in found)
    speak(Cause.RATE_TOO_HIGH, 0.9, where=Finding.OVERGROWN in found)
    speak(Cause.RATE_TOO_HIGH, 0.5 if is_small else 0.8 if ratio >= signs.near else 0.65, where=has_lost)
    speak(Cause.RATE_TOO_HIGH, _BY_SCALE_ALONE, where=is_odd and ratio > signs.far[1])
    speak(Cause.DECAY_TOO_HIGH, _BY_SCALE_ALONE, where=is_odd and ratio < signs.far[0])
    speak(Cause.DECAY_TOO_HIGH, 0.6 if row.traps else 0.9, where=Finding.SHRUNK in found)
    speak(Cause.DECAY_TOO_HIGH, 0.7 if is_small else 0.6, where=has_lost)
    speak(Cause.NOT_MOVED, 0.85, where=Finding.MOVED_LITTLE in found and not has_lost)
    return {cause: max(likelihoods) for cause, likelihoods in spoken.items()}


def _of_another(row: LayerDiagnostics) -> dict[Cause, float]:
    """The same of what no score looks at: what its findings say, which are few."""
    causes = {Finding.QUANTISED: Cause.ROUNDED, Finding.TRAP: Cause.HUGE_ENTRY, Finding.MOVED_LITTLE: Cause.NOT_MOVED}
    return {cause: 0.95 for finding, cause in causes.items() if finding in row.findings}


def _of_net(layers: Sequence[LayerDiagnostics], signs: Signs) -> float:
    """Likelihood that the whole net has learnt too little; 0 where nothing speaks for it."""
    if not layers:
        return 0.0
    if _all_have(Finding.MOVED_LITTLE, layers):
        return 0.95
    rank = np.mean([row.effective_rank / row.null_effective_rank for row in layers])
    # before norms, layers of nets that have learnt all there is keep their rank too
    if rank > signs.fresh_rank and all(row.normed is False for row in layers):
        return 0.88
    return 0.7 if np.mean([row.largest_entry for row in layers]) < signs.fresh_entry else 0.0


def _caveat(cause: Cause, names: Mapping[str, float]) -> str:
    by_scale = cause in (Cause.RATE_TOO_HIGH, Cause.DECAY_TOO_HIGH) and max(names.values()) <= _BY_SCALE_ALONE
    return ", and only if no norm follows" if by_scale else ""


def _all_have(finding: Finding, layers: Iterable[LayerDiagnostics]) -> bool:
    return all(finding in row.findings for row in layers)
