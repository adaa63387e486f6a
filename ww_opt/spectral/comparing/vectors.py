"""Biases, norms and running statistics on both sides -> which changed, which broke, and how far norms moved along."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ww_opt.spectral.comparing.matching import Matching
from ww_opt.spectral.comparing.shifts import Break, Broken, Mark, Rule
from ww_opt.spectral.reading.headers import Headers, is_vector

__all__ = ["Vectors", "not_finite", "vectors"]

_NUMBER = re.compile(r"\D(\d+)$")
_RUNNING = ".running_var"


@dataclass(frozen=True)
class Vectors:
    """What became of the vectors of both sides.

    Attributes:
        n, n_changed: vectors on both sides, and how many of them differ.
        broken: vectors of NEW with NaN or infinity.
        norm_ratios: factor by which the running deviation of the norm behind a weight moved, median over channels, by
            the weight's name; only where such a norm was found.
    """

    n: int
    n_changed: int
    broken: tuple[Broken, ...]
    norm_ratios: dict[str, float]


def vectors(old: Headers, new: Headers, matching: Matching) -> Vectors:
    """Read the vectors of both sides, one at a time."""
    before, after = (
        {name.removeprefix(prefix): name for name in own.entries}
        for own, prefix in zip((old, new), matching.prefixes, strict=True)
    )
    common = [name for name in matching.common if is_vector(new.entries[after[name]].shape)]
    changed, ratios = 0, {}
    for name in common:
        a, b = old.vector(before[name]), new.vector(after[name])
        if a is None or b is None:
            continue
        changed += not torch.equal(a.nan_to_num(), b.to(a).nan_to_num())
        if name.endswith(_RUNNING):
            ratios[name] = _factor(a, b)
    bad = [name for name, own in after.items() if not _is_finite(new.vector(own))]
    sizes = {name: new.entries[own].shape for name, own in after.items()}
    behind = {name: _norm_of(name, shape, sizes) for name, shape in sizes.items() if not is_vector(shape)}
    return Vectors(
        len(common),
        changed,
        tuple(Broken(name, (not_finite(is_new=name not in before),)) for name in bad),
        {name: ratios[norm] for name, norm in behind.items() if norm in ratios},
    )


def not_finite(*, is_new: bool = False) -> Break:
    """What is said of a tensor with NaN or infinity."""
    seen = "holds NaN or infinity" + (", and stands in NEW only" if is_new else "")
    return Break(Rule.NOT_FINITE, Mark("finite", 0.0, 1.0), Mark("finite in OLD", math.nan, math.nan), seen)


def _is_finite(vector: Tensor | None) -> bool:
    return vector is None or bool(vector.isfinite().all())


def _factor(old: Tensor, new: Tensor) -> float:
    """Median over channels of the factor of the running deviation; dead channels, of variance 0, left out."""
    a, b = old.double(), new.double()
    alive = (a > 0) & (b > 0)
    return float((b[alive] / a[alive]).sqrt().median()) if bool(alive.any()) else math.nan


def _norm_of(weight: str, shape: tuple[int, ...], sizes: dict[str, tuple[int, ...]]) -> str:
    """Running variance of the norm beside a weight that bears its number, else of the next one; empty: none is there.

    Which norms follow a layer at all :mod:`ww_opt.spectral.reading.norms` tells; here it is only found.
    """
    owner = weight.rpartition(".")[0]
    parent, _, own = owner.rpartition(".")
    names = list(sizes)
    after = names[names.index(weight) + 1 :]
    beside = [
        name
        for name in names
        if name.endswith(_RUNNING)
        and name.removesuffix(_RUNNING).rpartition(".")[0] == parent
        and sizes[name][0] in shape[:2]
    ]
    number = _NUMBER.search(own)
    for name in beside:
        other = _NUMBER.search(name.removesuffix(_RUNNING))
        if number and other and number[1] == other[1]:
            return name
    return next((name for name in after if name in beside), "")
