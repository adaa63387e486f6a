"""One layer before and after -> the rules that it broke.

Each rule asks for two things: a number outside the band in which layers of healthy nets lie, and a change from OLD
larger than healthy pairs show (:mod:`ww_opt.spectral.comparing.bands`). Alpha is no rule: from seed to seed it moves by
more than most damage moves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ww_opt.spectral.comparing.bands import BANDS, Bands, is_outside
from ww_opt.spectral.comparing.shifts import Break, LayerShift, Mark, Rule
from ww_opt.spectral.findings import NARROW, Role, Status
from ww_opt.spectral.rows import LayerDiagnostics
from ww_opt.spectral.rules import LIMITS, has_lost_rank

__all__ = ["breaks", "is_taken_back"]

_NO_LAYER = (Role.TABLE, Role.UNSURE)
# what need not be said where the other is
_SAID = {
    Rule.NOT_FINITE: frozenset(Rule) - {Rule.NOT_FINITE},
    Rule.ZEROED: frozenset(Rule) - {Rule.NOT_FINITE, Rule.ZEROED},
    Rule.REPLACED: frozenset({Rule.UNLEARNT, Rule.ODD_SCALE}),
    Rule.RESCALED: frozenset({Rule.ODD_SCALE}),
    Rule.CLIPPED: frozenset({Rule.ODD_SCALE}),
    Rule.PRUNED: frozenset({Rule.UNLEARNT, Rule.ODD_SCALE, Rule.RANK_LOST, Rule.TRAP}),
    Rule.ROUNDED: frozenset({Rule.PRUNED, Rule.UNLEARNT, Rule.CLIPPED}),
}


def breaks(row: LayerShift, others: float, bands: Bands = BANDS) -> tuple[Break, ...]:
    """Say which rules a layer broke, without those that another one explains.

    Args:
        row: the layer on both sides.
        others: median cosine of the other layers with OLD; NaN where too few can be compared.
        bands: where rules begin.
    """
    found = tuple(_breaks(row, others, bands))
    rules = {item.rule for item in found}
    return tuple(item for item in found if not any(item.rule in _SAID.get(rule, ()) for rule in rules))


def _breaks(row: LayerShift, others: float, bands: Bands) -> Iterator[Break]:
    if row.new.fit_status == Status.NON_FINITE.value:
        if row.new.role not in _NO_LAYER:  # a file's masks may well hold infinity
            yield _not_finite(row)
        return
    if row.new.role in _NO_LAYER or not row.new.is_analysed or not row.old.is_analysed:
        return
    rules: tuple[Callable[[LayerShift, Bands], Break | None], ...] = (
        _zeroed, _rescaled, _odd_scale, _clipped, _rounded, _pruned, _trap, _rank_lost, _unlearnt,
    )  # fmt: skip
    replaced = _replaced(row, others, bands)
    yield from (item for item in (replaced, *(rule(row, bands) for rule in rules)) if item is not None)


def _not_finite(row: LayerShift) -> Break:
    was = row.old.fit_status == Status.NON_FINITE.value
    seen = f"holds NaN or infinity{', as in OLD' if was else '; OLD is finite'}"
    return Break(Rule.NOT_FINITE, Mark("finite", 0, 1), Mark("finite in OLD", float(not was), math.nan), seen)


def _zeroed(row: LayerShift, _bands: Bands) -> Break | None:
    if row.new.frobenius_norm > 0 or row.old.frobenius_norm == 0:
        return None
    return Break(
        Rule.ZEROED,
        Mark("share of zeros", 1.0, 1.0),
        Mark("share of zeros in OLD", row.pair.old.zeros, 1.0),
        f"all its weights are 0; OLD's norm was {row.old.frobenius_norm:.3g}",
    )


def _replaced(row: LayerShift, others: float, bands: Bands) -> Break | None:
    own = row.pair.cosine
    if row.role is Role.ADAPTER or not (own < bands.unrelated and others - own > bands.gap):
        return None
    seen = f"has little in common with OLD (cosine {own:.2f}), while the other layers have (median {others:.2f})"
    if row.pair.reordered > 0.5:
        seen += f"; {row.pair.reordered:.0%} of its outputs are others of OLD's, so their order changed"
    elif row.role is Role.HEAD:
        seen += "; right only if the output layer was trained anew"
    return Break(
        Rule.REPLACED,
        Mark("cosine with OLD", own, bands.unrelated),
        Mark("cosine under the other layers' median", others - own, bands.gap),
        seen,
    )


def _near(value: float, band: tuple[float, float]) -> float:
    """The end of the band that a value passed."""
    return band[0] if value < band[0] else band[1]


def is_taken_back(row: LayerShift, bands: Bands) -> bool:
    """Whether a norm behind the layer takes its scale back: one without running statistics, or whose moved along."""
    if row.new.normed is not True:
        return False
    return math.isnan(row.norm_ratio) or not is_outside(row.pair.ratio / row.norm_ratio, bands.moved_along)


def _of_norm(row: LayerShift) -> str:
    if row.new.normed is None:
        return "; harmless only if a norm follows, which is not known here"
    if row.new.normed:
        return (
            f"; the running deviation of the norm behind it is x{row.norm_ratio:.3g}, so that in evaluation its scale "
            "is not taken back"
        )
    return "; no norm takes that back"


def _rescaled(row: LayerShift, bands: Bands) -> Break | None:
    own = row.pair
    if not (own.cosine >= bands.alike and is_outside(own.ratio, bands.factors)) or is_taken_back(row, bands):
        return None
    return Break(
        Rule.RESCALED,
        Mark("cosine with OLD", own.cosine, bands.alike),
        Mark("factor of the norm", own.ratio, _near(own.ratio, bands.factors)),
        f"the weights of OLD times {own.ratio:.3g} (cosine {own.cosine:.3f}){_of_norm(row)}",
    )


def _odd_scale(row: LayerShift, bands: Bands) -> Break | None:
    scale = _scale(row.new)
    if row.role in (Role.EMBEDDING, Role.ADAPTER) or is_taken_back(row, bands):
        return None
    ratio = row.pair.ratio
    is_same_way = (scale < bands.scale[0]) == (ratio < bands.grown[0])
    if not (is_outside(scale, bands.scale) and is_outside(ratio, bands.grown) and is_same_way):
        return None
    return Break(
        Rule.ODD_SCALE,
        Mark("scale over Xavier's", scale, _near(scale, bands.scale)),
        Mark("factor of the norm", ratio, _near(ratio, bands.grown)),
        f"its norm is x{ratio:.3g}, and its scale {scale:.2g} times that of an initialisation{_of_norm(row)}",
    )


def _scale(row: LayerDiagnostics) -> float:
    """Root mean square of the entries in units of Xavier's initialisation, kernel positions counted into the fan."""
    return row.frobenius_norm / math.sqrt(row.N * row.M) * math.sqrt((row.N + row.M) / 2)


def _clipped(row: LayerShift, bands: Bands) -> Break | None:
    own, new = row.pair, row.pair.new
    if not (new.at_limit >= bands.at_limit and own.overshoot >= bands.overshoot):
        return None
    return Break(
        Rule.CLIPPED,
        Mark("share of entries at the limit", new.at_limit, bands.at_limit),
        Mark("mean of OLD's over the limit", own.overshoot, bands.overshoot),
        f"{new.at_limit:.1%} of its weights stand exactly at a limit ({new.largest:.3g} at most, {own.old.largest:.3g} "
        f"in OLD), where OLD's were x{own.overshoot:.2f}",
    )


def _rounded(row: LayerShift, bands: Bands) -> Break | None:
    old, new = row.pair.old, row.pair.new
    if not (0 < new.levels <= bands.levels and (old.levels == 0 or old.levels > new.levels)):
        return None
    if not row.pair.distance >= bands.rounding:
        return None
    return Break(
        Rule.ROUNDED,
        Mark("distinct values of an output channel", new.levels, bands.levels),
        Mark("relative distance", row.pair.distance, bands.rounding),
        f"{new.levels} distinct values are left in a channel; that moved its weights by {row.pair.distance:.0%}",
    )


def _pruned(row: LayerShift, bands: Bands) -> Break | None:
    old, new = row.pair.old, row.pair.new
    if not (new.zeros >= bands.zeros and new.zeros > old.zeros and row.pair.ratio <= bands.pruned):
        return None
    return Break(
        Rule.PRUNED,
        Mark("share of zeros", new.zeros, bands.zeros),
        Mark("factor of the norm", row.pair.ratio, bands.pruned),
        f"{new.zeros:.0%} of its weights are 0 ({old.zeros:.0%} in OLD), and {1 - row.pair.ratio:.0%} of its norm went "
        "with them",
    )


def _trap(row: LayerShift, bands: Bands) -> Break | None:
    old, new = row.old, row.new
    if not (new.traps > 0 and new.largest_entry >= bands.entry):
        return None
    if not new.largest_entry >= bands.entry_grown * old.largest_entry:
        return None
    return Break(
        Rule.TRAP,
        Mark("largest entry in standard deviations", new.largest_entry, bands.entry),
        Mark("factor over OLD's", new.largest_entry / old.largest_entry, bands.entry_grown),
        f"its largest entry lies {new.largest_entry:.0f} standard deviations out ({old.largest_entry:.1f} in OLD)",
    )


def _rank_share(row: LayerDiagnostics) -> float:
    return row.effective_rank / row.null_effective_rank


def _rank_lost(row: LayerShift, bands: Bands) -> Break | None:
    share, before = _rank_share(row.new), _rank_share(row.old)
    if row.new.M < 8 or row.role in (Role.ADAPTER, Role.EMBEDDING) or before == 0:
        return None
    if not (has_lost_rank(row.new, bands.rank) and share < bands.rank_kept * before):
        return None
    return Break(
        Rule.RANK_LOST,
        Mark("effective rank over a random matrix's", share, bands.rank),
        Mark("share of OLD's", share / before, bands.rank_kept),
        f"its effective rank fell from {row.old.effective_rank:.1f} to {row.new.effective_rank:.1f} of {row.new.M}",
    )


def _unlearnt(row: LayerShift, _bands: Bands) -> Break | None:
    old, new = row.old, row.new
    if row.role in (Role.ADAPTER, Role.EMBEDDING) or new.M < NARROW:
        return None
    noise = LIMITS.uneven / math.sqrt(new.n_matrices * new.N * new.M)
    is_noise = new.spikes == 0 and new.excess < noise and _rank_share(new) > LIMITS.fresh
    # twice as uneven as noise: a layer at the edge may fall on either side of it
    if not (is_noise and (old.spikes > 0 or old.excess > 2 * noise)):
        return None
    return Break(
        Rule.UNLEARNT,
        Mark("excess over noise's", new.excess / noise, 1.0),
        Mark("excess in OLD over noise's", old.excess / noise, 2.0),
        f"its spectrum is that of noise; in OLD {old.spikes} eigenvalues stood out",
    )
