"""What can be said about a layer, in words. No torch here: records and pruners read the names."""

from __future__ import annotations

from enum import Enum

__all__ = ["NARROW", "Finding", "Role", "Status"]

NARROW = 32
"""Matrices narrower than this say little: no finding on alpha or spikes is made of them."""


class Finding(Enum):
    """A sentence about a layer. The name is what records keep; the value is what people read."""

    HEALTHY = "healthy"
    UNDER_TRAINED = "under-trained: alpha above 6, the tail is too thin for a layer that has learnt"
    OVER_TRAINED = "over-trained: alpha below 2 together with a trap or lost rank"
    HEAVY_TAIL = "very heavy tail: alpha below 2; over-trained only if a second sign joins it"
    RANDOM = "random: no eigenvalue beyond the edge of its null, and no more uneven than it, as if it were untrained"
    TRAP = "correlation trap: a few huge entries; clip gradients, regularise or lower the learning rate"
    RANK_COLLAPSE = "rank collapse: directions have died; lower the weight decay or the learning rate"
    OVERGROWN = "overgrown: its weights are four times larger than those of the other layers; lower its learning rate"
    SHRUNK = "shrunk: its weights are far smaller than those of the other layers; lower its weight decay"
    QUANTISED = (
        "coarse: its rows hold few distinct values, as after rounding to 4 bits; alpha does not see what that cost"
    )
    NOT_FITTED = "not fitted"
    TOO_SMALL = "too small to judge: under 32 wide, thresholds on alpha mean nothing"


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
