"""What can be said about a layer, in words. No torch here: records and pruners read the names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

__all__ = [
    "CALLS_TO_ACT",
    "NARROW",
    "OUTWEIGHS",
    "SAID_OF",
    "SAID_OF_ALL",
    "Finding",
    "Role",
    "Status",
    "agreed",
    "current_name",
    "label",
]

NARROW = 32
"""Matrices narrower than this say little: no finding on alpha or spikes is made of them."""


class Role(Enum):
    """What a weight is in its network, which says whether a score looks at it. The value is the reason, in words."""

    HIDDEN = "hidden layer"
    HEAD = "an output layer, whose spectrum follows the number of outputs"
    EMBEDDING = "an embedding, whose spectrum follows the frequencies of tokens"
    TABLE = "a table, mask or state that no layer multiplies with"
    ADAPTER = "part of an adapter; what the network multiplies with is the merged weight"
    BASE = "a base weight beneath an adapter; what the network multiplies with is the merged weight"
    FROZEN = "frozen, so that no optimizer step changes it, while other hidden layers are trained"
    UNSURE = "not sure to be a hidden layer, as the note says"


class Finding(Enum):
    """A sentence about a layer: its label, what was seen, how sure that is, what to try.

    Records keep the name; tables show the label; legends show the whole sentence. How often each was right on planted
    causes stands in ``docs/findings.md``.
    """

    NO_FAULT = "no fault: none that a spectrum shows; whether what it has learnt is right, weights cannot say"
    UNDER_TRAINED = (
        "under-trained: alpha above 6, a thin tail, and few spikes; unsure, and no reason to act alone: layers before "
        "a norm look so"
    )
    OVER_TRAINED = "over-trained: alpha below 2 together with a trap or lost rank; likely; lower its learning rate"
    HEAVY_TAIL = "heavy tail: alpha below 2; no fault alone, over-trained if a second sign joins it"
    MOVED_LITTLE = (
        "moved little: as uneven as noise and of full rank, so little has changed since its start; right where it is "
        "frozen, its rate is low or labels are few or wrong; try its rate only where none of these is meant"
    )
    TRAP = "trap: a few entries are huge; sure; clip gradients, or lower its learning rate where rank is lost as well"
    RANK_COLLAPSE = "rank collapse: most directions have died; sure; lower its learning rate, or its weight decay"
    OVERGROWN = (
        "overgrown: its weights are four times larger than those of the other layers, and no norm takes that back; "
        "likely; lower its learning rate"
    )
    SHRUNK = (
        "shrunk: its weights are far smaller than those of the other layers, and no norm takes that back; likely; "
        "lower its weight decay"
    )
    ODD_SCALE = (
        "odd scale: its weights are far larger or smaller than those of the other layers; unsure, and no reason to act "
        "alone: where a norm follows, which is not known here, scale means nothing"
    )
    QUANTISED = (
        "quantised: its rows hold few distinct values, as after rounding to 4 bits; sure; alpha does not see what that "
        "cost, so measure it on data"
    )
    NOT_FITTED = "not fitted"
    TOO_SMALL = "too small: under 32 wide, where thresholds on alpha mean nothing; not judged"

    # what records of earlier versions call them
    HEALTHY = NO_FAULT
    RANDOM = MOVED_LITTLE

    @property
    def label(self) -> str:
        """The word or two by which tables, legends, plots and MLflow call it."""
        return self.value.partition(":")[0]


def current_name(name: str) -> str:
    """Today's name of a finding in a record of an earlier version; an unknown name as it is."""
    return Finding[name].name if name in Finding.__members__ else name


def label(name: str) -> str:
    """Label of a finding by its name in a record; an unknown name in small letters."""
    return Finding[name].label if name in Finding.__members__ else name.lower().replace("_", " ")


CALLS_TO_ACT: Final = frozenset(
    {
        Finding.OVER_TRAINED,
        Finding.TRAP,
        Finding.RANK_COLLAPSE,
        Finding.OVERGROWN,
        Finding.SHRUNK,
        Finding.QUANTISED,
    }
)
"""Findings that say that something is wrong with a layer. The others only tell what is seen."""

SAID_OF_ALL: Final = frozenset({Finding.NOT_FITTED, Finding.TOO_SMALL, Finding.QUANTISED})
"""Findings that make sense of weights that are no hidden layer, such as embeddings: they do not speak of training."""

SAID_OF: Mapping[Role, frozenset[Finding]] = MappingProxyType(
    {
        Role.HIDDEN: frozenset(Finding),
        Role.HEAD: SAID_OF_ALL | {Finding.TRAP},
        Role.FROZEN: SAID_OF_ALL | {Finding.MOVED_LITTLE},  # told from a pretrained one, which has moved
    }
)
"""Findings that make sense of a weight by its role; of other roles those of ``SAID_OF_ALL``."""

_ORDER: Final = {finding: place for place, finding in enumerate(Finding)}
_LEARNT: Final = frozenset({Finding.UNDER_TRAINED, Finding.OVER_TRAINED, Finding.HEAVY_TAIL, Finding.MOVED_LITTLE})
_SCALE: Final = frozenset({Finding.OVERGROWN, Finding.SHRUNK, Finding.ODD_SCALE})
_LITTLE: Final = frozenset({Finding.UNDER_TRAINED, Finding.MOVED_LITTLE})

OUTWEIGHS: Mapping[Finding, frozenset[Finding]] = MappingProxyType(
    {
        **{finding: frozenset({Finding.NO_FAULT}) for finding in Finding if finding is not Finding.NO_FAULT},
        Finding.TOO_SMALL: _LEARNT | _SCALE | {Finding.NO_FAULT},
        Finding.NOT_FITTED: _LEARNT - {Finding.MOVED_LITTLE} | {Finding.NO_FAULT},
        # a trap lifts the null's edge, so that what the layer has learnt lies under it
        Finding.TRAP: frozenset({Finding.MOVED_LITTLE, Finding.NO_FAULT}),
        Finding.RANK_COLLAPSE: _LITTLE | {Finding.NO_FAULT},
        Finding.OVERGROWN: _LITTLE | _SCALE - {Finding.OVERGROWN} | {Finding.NO_FAULT},
        Finding.SHRUNK: _LITTLE | _SCALE - {Finding.SHRUNK, Finding.OVERGROWN} | {Finding.NO_FAULT},
        Finding.OVER_TRAINED: _LEARNT - {Finding.OVER_TRAINED} | {Finding.NO_FAULT},
        Finding.MOVED_LITTLE: frozenset({Finding.UNDER_TRAINED, Finding.HEAVY_TAIL, Finding.NO_FAULT}),
        Finding.UNDER_TRAINED: frozenset({Finding.HEAVY_TAIL, Finding.NO_FAULT}),
    }
)
"""Which findings contradict each other: where the first is said of a layer, the others are not."""


def agreed(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Leave out what another finding of the same layer outweighs; ``NO_FAULT`` where nothing is left."""
    found = sorted(set(found), key=_ORDER.__getitem__)
    silenced = frozenset[Finding]().union(*(OUTWEIGHS.get(finding, frozenset()) for finding in found))
    return tuple(finding for finding in found if finding not in silenced) or (Finding.NO_FAULT,)


class Status(Enum):
    """How a fit or an analysis ended. The value is the message, remedy included."""

    SUCCESS = "success"
    TOO_FEW = "not fitted: fewer than 8 non-zero eigenvalues; a tail needs more"
    ALL_EQUAL = "not fitted: all eigenvalues are equal (identity, orthogonal), so there is no tail"
    ALL_ZERO = "not fitted: the matrix is zero"
    NO_OPTIMUM = "not fitted: the optimizer found no optimum of the likelihood"
    NON_FINITE = "not analysed: the weights contain NaN or infinity; training diverged or the file is damaged"
    META = "not analysed: the weights are on the meta device and hold no numbers; load them first"
    EMPTY = "not analysed: the weights have no entries"
    VECTOR = "not analysed: one of its dimensions is 1, so it is a vector and has a single singular value"
    UNREADABLE = "not analysed: computing the weights failed, as the note says; a forward pass would fail as well"
    NOT_NUMERIC = "not analysed: the weights are neither floating-point nor quantised numbers"
