"""Two sources -> what changed between them, and which layers broke."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from ww_opt.spectral.comparing.changes import kinds_of_change
from ww_opt.spectral.comparing.distances import Pair, pair
from ww_opt.spectral.comparing.judging import judged_shifts
from ww_opt.spectral.comparing.matching import Matching, match
from ww_opt.spectral.comparing.shifts import Broken, Comparison, LayerShift
from ww_opt.spectral.comparing.vectors import not_finite, vectors
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.findings import Role, Status
from ww_opt.spectral.reading.headers import Headers, headers
from ww_opt.spectral.reading.matrices import unwrapped
from ww_opt.spectral.reading.weights import LayerWeight, Source, named_weights
from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics

__all__ = ["compare"]

_CUT = "it is cut into other matrices on one side; give both as modules or both as files"


def compare(old: Source, new: Source) -> Comparison:
    """Say what changed from one checkpoint to another, and which layers broke.

    Names and shapes are compared first, from headers alone where the format has them; then the weights and spectra of
    the layers that both sides have. A layer is broken where a rule finds a number outside the band of healthy layers
    *and* a change that healthy pairs do not show (``docs/compare.md``). No data is needed, and nothing of either side
    is changed. What a layer computes is not known: a net that learnt wrong labels breaks no rule.

    NaN policy: a layer of ``new`` with NaN or infinity is broken, also where ``old`` has them; numbers that could not
    be had are NaN. A layer without numbers on one side (meta tensors) is in ``unread``.

    Args:
        old: the checkpoint that is known to be good: a module, a state dict or a path.
        new: the one to be judged.

    Returns:
        One row per layer that both have; what stands on one side only; what broke.

    Raises:
        ValueError: they have no layer in common by name and shape, no common layer holds numbers on both sides, or a
            file is damaged.
        FileNotFoundError: there is no such file.
        TypeError: a source is neither module, state dict nor path.
    """
    sides = headers(old), headers(new)
    matching = match(*sides)
    met = _meet(old, new, sides, matching)
    left = _by_name(diagnose(old), matching.prefixes[0])
    is_same = not matching.differences and all(own.is_identical for own in met.pairs.values())
    right = left if is_same and not isinstance(new, nn.Module) else _by_name(diagnose(new), matching.prefixes[1])
    unread = {name: why for name, row in right.items() if name in left and (why := _unread(left[name], row, name, met))}
    small = vectors(*sides, matching)
    rows = judged_shifts(
        [
            LayerShift(
                name, left[name], row, met.pairs.get(name, Pair()), small.norm_ratios.get(met.keys[name], math.nan)
            )
            for name, row in right.items()
            if name in left and name in met.keys and name not in unread and row.fit_status != Status.VECTOR.value
        ]
    )
    if not rows:
        why = "; ".join(sorted(set(unread.values()))) or "none has matrices on both sides"
        raise ValueError(f"A layer in common must hold numbers on both sides, but none does: {why}.")
    # a tensor that one side keeps in another form, parametrised or tied, is no difference
    is_shown = [item.name not in met.covered or (item.old and item.new) for item in matching.differences]
    differences = tuple(item for item, shown in zip(matching.differences, is_shown, strict=True) if shown)
    compared = {row.name for row in rows}
    alone = [name for name, row in right.items() if name not in compared and _is_broken(row)]
    return Comparison(
        rows=rows,
        differences=differences,
        unread=tuple(unread.items()),
        others_broken=(*small.broken, *(Broken(name, (not_finite(is_new=name not in left),)) for name in alone)),
        n_vectors=small.n,
        n_changed_vectors=small.n_changed,
        kinds=kinds_of_change(rows, small.n_changed, len(differences)),
        notes=(
            *matching.notes,
            *(
                f"{side} was read from the checkpoint's {own.where}"
                for side, own in zip(("OLD", "NEW"), sides, strict=True)
                if own.where
            ),
        ),
    )


@dataclass
class _Met:
    """Layers of both sides: how far those with matrices moved, the first tensor of each, and all that they are of."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    covered: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)


def _meet(old: Source, new: Source, sides: tuple[Headers, Headers], matching: Matching) -> _Met:
    """Go through both sides at once; a layer waits until the other side comes to it, so that few are held at a time."""
    met, common = _Met(), set(matching.common)
    waiting: tuple[dict[str, LayerWeight], dict[str, LayerWeight]] = ({}, {})
    for place, weight in _alternately(named_weights(old), named_weights(new)):
        name = weight.name.removeprefix(matching.prefixes[place])
        partner = waiting[1 - place].pop(name, None)
        if partner is None:
            waiting[place][name] = weight
            continue
        first, second = (partner, weight) if place else (weight, partner)
        names = [
            _names(layer, own.wrapper, prefix)
            for layer, own, prefix in zip((first, second), sides, matching.prefixes, strict=True)
        ]
        met.keys[name] = names[1][0]
        if first.matrices is None or second.matrices is None:
            continue
        if first.matrices.shape == second.matrices.shape:
            met.covered.update(*names)
            met.pairs[name] = pair(first.matrices, second.matrices)
        elif names[1][0] in common:
            met.cut.add(name)
        else:
            del met.keys[name]  # it changed its shape, and is named among the differences
    return met


def _names(layer: LayerWeight, wrapper: str, prefix: str) -> list[str]:
    """Names of the tensors that a layer is made of, then of those tied to it, as a matching has them."""
    keys = (*layer.parameter.split("+"), *layer.facts.ties)
    return [unwrapped(key, wrapper).removeprefix(prefix) for key in keys]


def _alternately(old: Iterator[LayerWeight], new: Iterator[LayerWeight]) -> Iterator[tuple[int, LayerWeight]]:
    open_ = [(0, old), (1, new)]
    while open_:
        for place, weights in list(open_):
            weight = next(weights, None)
            if weight is None:
                open_.remove((place, weights))
            else:
                yield place, weight


def _by_name(diagnosis: Diagnosis, prefix: str) -> Mapping[str, LayerDiagnostics]:
    return {row.name.removeprefix(prefix): row for row in diagnosis}


def _unread(old: LayerDiagnostics, new: LayerDiagnostics, name: str, met: _Met) -> str:
    """Why a layer cannot be compared; empty where it can, and where it is a vector, which is compared as such."""
    if name in met.cut:
        return _CUT
    unread = (Status.NON_FINITE.value, Status.VECTOR.value)
    for side, row in (("OLD", old), ("NEW", new)):
        if not row.is_analysed and row.fit_status not in unread:
            return f"{side} is {row.fit_status}"
    return ""


def _is_broken(row: LayerDiagnostics) -> bool:
    return row.fit_status == Status.NON_FINITE.value and row.role not in (Role.TABLE, Role.UNSURE)
