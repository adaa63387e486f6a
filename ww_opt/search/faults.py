"""Rules that tell a broken run from its looks alone: named, measured on planted faults, slow to believe one look.

How often each found what was planted, and how often a healthy run, stands in ``docs/pruning.md``. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from ww_opt.search.decisions import NOT_FINITE
from ww_opt.search.records import LayerRecord, Look
from ww_opt.spectral.findings import NARROW

__all__ = ["DEFAULT_FAULTS", "FAULTS", "N_LAST", "WARM", "Fault", "Seen", "fatal", "lasting"]

WARM = 0.2
"""Share of the run from which the rules apply."""
N_LAST = 3
"""Looks that must be read beside the first one: the last two, and the one before them."""
UNLEARNT = 0.9
"""Share of what the training loss had fallen by from which its loss again means that training diverged."""
LEAST_LEARNT = 0.02
"""Share of the first loss that it must have fallen by, or risen by where it never fell: less is noise."""
OUT_OF_SCALE = 10.0
"""Factor by which a layer's spectral norm differs from that of the first look when it is broken. Of 600 runs drawn at
random none came beyond 4.6; of planted faults two came below a tenth, both back at chance."""
TRAPS_GROWN = 1
"""Traps that a layer must have gained since its first look."""
SEVERE_TRAPS = 20
"""Traps gained by one layer alone from which the others need not have any."""
_MAJORITY = 0.5


@dataclass(frozen=True)
class Fault:
    """What is wrong: the rule, the layers, a number and what it was held against, in words without the step."""

    rule: str
    words: str
    layers: tuple[str, ...] = ()
    value: float = math.nan
    threshold: float = math.nan


@dataclass(frozen=True)
class Seen:
    """A look with what came before it.

    Attributes:
        now: the look.
        first: of the trial.
        before: the look before this one; ``None``: there was none.
        first_loss: training loss before the first step, else at the first look; NaN: not known.
        lowest_loss: lowest training loss of the looks before; infinite where there was none.
    """

    now: Look
    first: Look
    before: Look | None
    first_loss: float = math.nan
    lowest_loss: float = math.inf


Rule = Callable[[Seen], Fault | None]


def fatal(look: Look) -> Fault | None:
    """What ends a trial at once: weights or a score that are not finite."""
    weights = [layer for layer in look.layers if layer.role not in ("TABLE", "UNSURE")]
    broken = tuple(layer.name for layer in weights if layer.M > 0 and layer.n_eigenvalues == 0)
    if broken:
        return Fault(NOT_FINITE, f"the weights of {list(broken)} are not finite", broken)
    return Fault(NOT_FINITE, "the score is not finite", value=look.value) if math.isnan(look.value) else None


def lasting(
    looks: Sequence[Look], rules: Sequence[str], losses: Mapping[int, float], first_loss: float | None = None
) -> Fault | None:
    """What a rule finds at the last look and found at the one before, so that a passing sign ends nothing.

    Args:
        looks: the first of the trial and its last three, by step.
        rules: names of ``FAULTS`` that apply, the first one that finds something speaks.
        losses: training losses of all looks, by step; NaN where none was given.
        first_loss: training loss before the first step.

    Returns:
        What is found at the last look; ``None`` where nothing is, or it was not there at the look before.
    """
    if len(looks) < 2:
        return None
    first = looks[0]
    loss = first_loss if isinstance(first_loss, int | float) else first.train_loss

    def seen(look: Look, before: Look | None) -> Seen:
        earlier = (own for step, own in losses.items() if step < look.step and not math.isnan(own))
        return Seen(look, first, before, loss, min(earlier, default=math.inf))

    now = seen(looks[-1], looks[-2])
    before = seen(looks[-2], looks[-3] if len(looks) > 2 else None)
    for name in rules:
        found = FAULTS[name](now)
        if found is not None and FAULTS[name](before) is not None:
            return replace(found, words=f"rule {name}: {found.words}")
    return None


def _judged(look: Look) -> list[LayerRecord]:
    """Hidden layers that are wide enough; records of earlier versions do not say what is hidden."""
    wide = [layer for layer in look.layers if layer.n_eigenvalues > 0 and layer.M >= NARROW]
    return [layer for layer in wide if layer.role in ("", "HIDDEN")]


def _diverged(seen: Seen) -> Fault | None:
    """The training loss lost again what it had learnt, or is above the first one and rises."""
    now, learnt, least = seen.now.train_loss, seen.first_loss - seen.lowest_loss, LEAST_LEARNT * abs(seen.first_loss)
    if learnt >= least:
        limit, said = seen.first_loss - (1.0 - UNLEARNT) * learnt, f", {seen.lowest_loss:.4g} at its lowest"
    else:
        limit, said = seen.first_loss + least, ""
    is_rising = seen.before is not None and now > seen.before.train_loss
    if not (now > limit and (learnt >= least or is_rising)):
        return None
    words = f"the training loss is {now:.4g}, and was {seen.first_loss:.4g} at the start{said}"
    return Fault("diverged", words, value=now, threshold=limit)


def _traps(seen: Seen) -> Fault | None:
    """Correlation traps that were not there at the first look: huge entries, in most layers or many in one."""
    layers, first = _judged(seen.now), {layer.name: layer for layer in seen.first.layers}
    gained = {
        layer.name: layer.traps - first[layer.name].traps
        for layer in layers
        if layer.name in first and "TRAP" in layer.findings
    }
    grown = tuple(name for name, own in gained.items() if own >= TRAPS_GROWN)
    severe = tuple(name for name in grown if gained[name] >= SEVERE_TRAPS)
    if not severe and not len(grown) > _MAJORITY * len(layers):
        return None
    found, threshold = (severe, SEVERE_TRAPS) if severe else (grown, TRAPS_GROWN)
    most = max(gained[name] for name in found)
    words = f"correlation traps grew by up to {most} in {len(found)} of {len(layers)} layers: {list(found)}"
    return Fault("traps", words, found, most, threshold)


def _rank_collapse(seen: Seen) -> Fault | None:
    found = tuple(layer.name for layer in _judged(seen.now) if "RANK_COLLAPSE" in layer.findings)
    return Fault("rank_collapse", f"rank collapse in {list(found)}", found, len(found)) if found else None


def _broken(seen: Seen) -> Fault | None:
    """A layer's spectral norm has left the scale of the first look, upwards or downwards."""
    first = {layer.name: layer.spectral_norm for layer in seen.first.layers}
    ratios = {
        layer.name: layer.spectral_norm / first[layer.name]
        for layer in _judged(seen.now)
        if first.get(layer.name, 0.0) > 0.0
    }
    found = tuple(name for name, own in ratios.items() if own > OUT_OF_SCALE or own < 1.0 / OUT_OF_SCALE)
    if not found:
        return None
    worst = max((ratios[name] for name in found), key=lambda own: abs(math.log(own)) if own > 0.0 else math.inf)
    words = f"the spectral norm of {list(found)} is {worst:.3g} times that of the first look"
    return Fault("broken", words, found, worst, OUT_OF_SCALE if worst > 1.0 else 1.0 / OUT_OF_SCALE)


def _moved_little(seen: Seen) -> Fault | None:
    layers = _judged(seen.now)
    found = tuple(layer.name for layer in layers if "MOVED_LITTLE" in layer.findings)
    if not len(found) > _MAJORITY * len(layers):
        return None
    words = f"little moved in {len(found)} of {len(layers)} layers: {list(found)}"
    return Fault("moved_little", words, found, len(found), _MAJORITY * len(layers))


FAULTS: Mapping[str, Rule] = MappingProxyType(
    {
        "diverged": _diverged,
        "traps": _traps,
        "rank_collapse": _rank_collapse,
        "broken": _broken,
        "moved_little": _moved_little,
    }
)
"""Rules by name: each finds a fault at a look, or nothing."""
DEFAULT_FAULTS = ("diverged", "broken")
"""Rules that apply unless others are named: those that ended nothing but what was lost. Traps and lost rank are signs,
and no faults: on planted runs what they found was better than the healthy run as often as worse."""
