"""Names and shapes of two sides -> which tensors are the same one, and which stand on one side only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ww_opt.spectral.reading.headers import Headers

__all__ = ["Difference", "Matching", "match", "shape_of"]

_N_ANCHORS = 24
# what people and frameworks put in front of all names
_USUAL = re.compile(r"((base_model|model|module|backbone|network|net|encoder)\.)+")


@dataclass(frozen=True)
class Difference:
    """A tensor that stands on one side only, or has another shape; ``None`` is the side without it."""

    name: str
    old: tuple[int, ...] | None
    new: tuple[int, ...] | None


@dataclass(frozen=True)
class Matching:
    """Names of both sides.

    Attributes:
        common: names on both sides with one shape.
        differences: all others, OLD's first.
        prefixes: what is left out in front of OLD's names, and of NEW's, beside wrappers.
        notes: what of this a reader must know.
    """

    common: tuple[str, ...]
    differences: tuple[Difference, ...]
    prefixes: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()


def match(old: Headers, new: Headers) -> Matching:
    """Match two sides by name; a prefix that one side has in front of its names is found and told.

    A prefix is taken where it more than doubles the names in common, and half of the smaller side's names match then.

    Raises:
        ValueError: no tensor of two or more dimensions is in common, by name and shape.
    """
    sides = (set(old.entries), set(new.entries))
    prefixes = _prefixes(*sides)
    left = {name.removeprefix(prefixes[0]): own.shape for name, own in old.entries.items()}
    right = {name.removeprefix(prefixes[1]): own.shape for name, own in new.entries.items()}
    common = tuple(name for name, shape in left.items() if right.get(name) == shape)
    if not any(len(left[name]) >= 2 for name in common):
        raise ValueError(
            "Two checkpoints must have a layer in common, by name and shape, but these have none: OLD has "
            f"{_some(left)}; NEW has {_some(right)}. Compare checkpoints of one architecture."
        )
    names = [*left, *(name for name in right if name not in left)]
    differences = [Difference(name, left.get(name), right.get(name)) for name in names]
    return Matching(
        common,
        tuple(item for item in differences if item.old != item.new),
        prefixes,
        tuple(
            f"the names of {side} begin with `{prefix}`, which is left out here"
            for side, own, other in (
                ("OLD", old.wrapper + prefixes[0], new.wrapper + prefixes[1]),
                ("NEW", new.wrapper + prefixes[1], old.wrapper + prefixes[0]),
            )
            if (prefix := own) and own != other
        ),
    )


def _prefixes(old: set[str], new: set[str]) -> tuple[str, str]:
    """What to leave out in front of OLD's names and of NEW's."""
    usual = (_shared(old), _shared(new))
    choices = [("", prefix) for prefix in _candidates(new, old)] + [(prefix, "") for prefix in _candidates(old, new)]
    choices += [usual] if all(usual) else []
    best = max(choices, key=lambda own: _n_common(old, new, own), default=("", ""))
    found, plain = _n_common(old, new, best), _n_common(old, new, ("", ""))
    return best if found > 2 * plain and 2 * found >= min(len(old), len(new)) else ("", "")


def _candidates(longer: set[str], shorter: set[str]) -> list[str]:
    """Prefixes with which names of one side would be some names of the other."""
    names = sorted(shorter)
    anchors = names[:: max(1, len(names) // _N_ANCHORS)]
    found = {name[: -len(anchor)] for name in longer for anchor in anchors if name.endswith(f".{anchor}")}
    return sorted(found, key=lambda prefix: (len(prefix), prefix))  # of equals the shortest


def _shared(names: set[str]) -> str:
    """The usual prefix that all names of a side have."""
    found = _USUAL.match(next(iter(sorted(names)), ""))
    return found[0] if found and all(name.startswith(found[0]) for name in names) else ""


def _n_common(old: set[str], new: set[str], prefixes: tuple[str, str]) -> int:
    left = {name.removeprefix(prefixes[0]) for name in old}
    return len(left & {name.removeprefix(prefixes[1]) for name in new})


def _some(entries: Mapping[str, tuple[int, ...]]) -> str:
    layers: Iterable[str] = (f"{name} {shape_of(shape)}" for name, shape in entries.items() if len(shape) >= 2)
    named = list(layers)
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "") if named else "none"


def shape_of(shape: tuple[int, ...]) -> str:
    """A shape as people write it: ``64x10``."""
    return "x".join(map(str, shape))
