"""Rows -> what is found in them: from a row's own numbers, and from its scale beside that of the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ww_opt.spectral.findings import NARROW, SAID_OF, SAID_OF_ALL, Finding, Role, agreed
from ww_opt.spectral.rows import LayerDiagnostics

__all__ = ["COLLAPSED", "LIMITS", "Limits", "has_lost_rank", "scale_ratios", "with_findings"]

COLLAPSED = 0.1
"""Share of the null's effective rank under which a layer counts as collapsed. A quarter, tried first, flagged 25 of 330
half-trained runs of the evidence, the best run of one task among them; a tenth flagged one, and that was a bad one."""
_WITHOUT_FAN = (Role.EMBEDDING, Role.TABLE, Role.ADAPTER)


@dataclass(frozen=True)
class Limits:
    """Where findings begin.

    Attributes:
        uneven: excess, times the root of the number of entries, under which a layer without spikes has moved little.
            Noise has a mean of 0 and a spread of 0.7 to 1.8, unequal rows and a shifted mean included; layers that did
            not move reached 2.5, layers of healthy runs began at 4.3.
        fresh: share of the null's effective rank that it must have kept besides. Layers that did not move kept .99.
        learnt: share of spikes from which alpha above 6 no longer reads as under-trained.
        huge: largest entry, in standard deviations, from which traps are a finding while the rank is whole. A layer of
            a healthy public ResNet has 9.
        overgrown: scale beside the median of the other layers from which a layer is overgrown. The first and the last
            layers of healthy models differ from the others by factors up to 2.2.
        shrunk: pairs of such a scale and of a share of the null's effective rank: a layer under both is shrunk. The
            nearer its scale to that of the others, the more of its rank must be gone, for scales at the start differ.
    """

    uneven: float = 4.0
    fresh: float = 0.93
    learnt: float = 0.05
    huge: float = 12.0
    overgrown: float = 4.0
    shrunk: tuple[tuple[float, float], ...] = ((0.2, math.inf), (0.35, 0.75), (0.5, 0.35))


LIMITS = Limits()


def with_findings(rows: Iterable[LayerDiagnostics], limits: Limits = LIMITS) -> tuple[LayerDiagnostics, ...]:
    """Say anew, from their numbers, what is found in the rows of one model in the ``default`` convention."""
    rows = tuple(rows)
    ratios = scale_ratios(rows)
    result = []
    for row in rows:
        found = [*_own(row, limits), *_beside(row, ratios.get(row.name, math.nan), limits)]
        findings = agreed(SAID_OF.get(row.role, SAID_OF_ALL).intersection(found))
        result.append(row if findings == row.findings else replace(row, findings=findings))
    return tuple(result)


def scale_ratios(rows: Iterable[LayerDiagnostics]) -> dict[str, float]:
    """Scale of each layer over the median of the others, by name; empty where fewer than three can be compared.

    Of three layers over the median of all: of two others one alone would decide. Scales are compared inside a model
    alone: what is usual depends on the initialisation. Layers before a norm are left out, since their scale means
    nothing, and so is what is no layer with a fan.
    """
    scales = {row.name: own for row in rows if row.normed is not True and (own := _scale(row)) > 0}
    if len(scales) < 3:
        return {}
    return {
        name: own / statistics.median(value for other, value in scales.items() if other != name or len(scales) == 3)
        for name, own in scales.items()
    }


def has_lost_rank(row: LayerDiagnostics, share: float) -> bool:
    """Whether the effective rank lies under a share of the null's, and not just because a few entries are huge.

    One entry of a hundred standard deviations takes most of the energy, and the effective rank with it.
    """
    is_by_entries = 0 < row.traps <= 3 and 4 * row.rank_loss <= row.n_eigenvalues
    return not is_by_entries and row.effective_rank < share * row.null_effective_rank


def _beside(row: LayerDiagnostics, ratio: float, limits: Limits) -> list[Finding]:
    """What follows from a layer's scale beside that of the others."""
    if row.M < NARROW:
        return []
    share = row.effective_rank / row.null_effective_rank
    if ratio > limits.overgrown:
        found = Finding.OVERGROWN
    elif any(ratio < scale and share < rank for scale, rank in limits.shrunk):
        found = Finding.SHRUNK
    else:
        return []
    return [Finding.ODD_SCALE if row.normed is None else found]


def _scale(row: LayerDiagnostics) -> float:
    """Root mean square of the entries in units of Xavier's initialisation; 0 for what is no layer with a fan."""
    if not row.is_analysed or row.role in _WITHOUT_FAN:
        return 0.0
    return row.frobenius_norm / math.sqrt(row.N * row.M) * math.sqrt((row.N + row.M) / 2)


def _own(row: LayerDiagnostics, limits: Limits) -> list[Finding]:
    """What follows from a row's own numbers."""
    found: list[Finding] = []
    if not row.is_analysed:
        return [Finding.NOT_FITTED]
    fitted = not math.isnan(row.alpha)
    dead = row.rank_loss > row.n_eigenvalues // 2 or has_lost_rank(row, COLLAPSED)
    has_trap = row.traps > 0 and (dead or row.largest_entry >= limits.huge)
    if not fitted:
        found.append(Finding.NOT_FITTED)
    if row.M < NARROW:
        found.append(Finding.TOO_SMALL)
    elif fitted:
        is_noise = row.spikes == 0 and row.excess < limits.uneven / math.sqrt(row.n_matrices * row.N * row.M)
        if is_noise and row.effective_rank > limits.fresh * row.null_effective_rank:
            found.append(Finding.MOVED_LITTLE)
        if row.alpha > 6 and row.spikes < limits.learnt * row.n_eigenvalues:
            found.append(Finding.UNDER_TRAINED)
        elif row.alpha < 2:
            found.append(Finding.OVER_TRAINED if has_trap or dead else Finding.HEAVY_TAIL)
    if has_trap:
        found.append(Finding.TRAP)
    if dead and row.M >= 8:
        found.append(Finding.RANK_COLLAPSE)
    if row.levels:
        found.append(Finding.QUANTISED)
    return found
