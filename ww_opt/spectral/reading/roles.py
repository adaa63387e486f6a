"""What each weight is in its network: from itself alone first, then from all weights together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ww_opt.spectral.findings import NARROW, Role
from ww_opt.spectral.reading.heads import Layer, find_heads
from ww_opt.spectral.reading.names import could_be_embedding, is_embedding, is_norm, is_stack, is_table, is_weight_like

__all__ = ["Facts", "Settled", "Unsettled", "Verdict", "role_of", "settle"]

NO_HEAD = "the output layer cannot be told from names and shapes: none is left out of the score"
_STACK = "stacked matrices count as one layer; a file that keeps them apart has a row for each"
_NO_BIAS = "read without its module: an embedding would look the same"


@dataclass(frozen=True)
class Facts:
    """What is known of a weight beside its numbers.

    Args:
        path: dotted path of the module that holds it, wrappers left out.
        leaf: its name in that module, such as ``weight``.
        shape: as it is stored.
        bias: shape of the bias beside it; ``None``: there is none.
        is_told: its kind comes from its module's class, not from names and shapes.
        is_frozen: no optimizer step changes it.
        ties: other names of the same weight.
    """

    path: str
    leaf: str
    shape: tuple[int, ...] = ()
    bias: tuple[int, ...] | None = None
    is_told: bool = False
    is_frozen: bool = False
    ties: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A role, and what a reader should know about it."""

    role: Role
    note: str = ""


@dataclass(frozen=True)
class Unsettled:
    """A weight before the others are known: its kind, its own verdict, and the width of its matrices (0: unread)."""

    kind: str
    role: Role
    width: int
    facts: Facts


@dataclass(frozen=True)
class Settled:
    """A verdict for each weight, and a note on all of them."""

    verdicts: tuple[Verdict, ...]
    note: str = ""


def role_of(kind: str, facts: Facts) -> Verdict:
    """What a weight is by itself; an output layer counts as hidden here, for only all weights together tell it."""
    if kind == "embedding":
        guess = "" if facts.is_told else "read without its module: taken as an embedding by its name"
        return Verdict(Role.EMBEDDING, guess)
    if kind == "lora":
        return Verdict(Role.ADAPTER)
    if kind == "parameter":
        return _bare(facts)
    if not facts.is_told and (is_norm(facts.path) or len(facts.bias or ()) > 1) and len(facts.shape) == 2:
        return Verdict(Role.TABLE, "the weight of a norm: no layer multiplies with it")
    return Verdict(Role.HIDDEN)


def _bare(facts: Facts) -> Verdict:
    """Of a bare parameter, or of a file's entry that is no layer's ``weight``."""
    is_stack_of_matrices = len(facts.shape) > 2 and min(facts.shape) > 1
    if facts.is_told:
        return Verdict(Role.TABLE)
    if facts.leaf == "weight":
        if is_norm(facts.path) or (len(facts.bias or ()) > 1 and len(facts.shape) == 2):
            return Verdict(Role.TABLE, "the weight of a norm: no layer multiplies with it")
        if len(facts.shape) == 2 and facts.bias is None and is_embedding(facts.path):
            return Verdict(Role.EMBEDDING, "taken as an embedding by its name")
        if len(facts.shape) == 2:
            return Verdict(Role.HIDDEN)
        if len(facts.shape) == 3 and is_stack_of_matrices:
            return Verdict(Role.HIDDEN, _STACK)
        return Verdict(Role.UNSURE, "a weight of this shape belongs to no layer that is known")
    if is_stack_of_matrices and is_stack(facts.path, facts.leaf):
        return Verdict(Role.HIDDEN, _STACK)
    if is_table(facts.leaf) or (len(facts.shape) == 2 and not is_weight_like(facts.leaf)):
        return Verdict(Role.TABLE)
    return Verdict(Role.UNSURE, "a bare parameter: whether a layer multiplies with it cannot be told")


@lru_cache(maxsize=16)
def settle(weights: tuple[Unsettled, ...]) -> Settled:
    """Find the output layers and the frozen ones: a matter of names, shapes and flags, told once for each net."""
    tied = [weight.role is Role.EMBEDDING and _has_output_tie(weight.facts.ties) for weight in weights]
    layers = [
        Layer(
            path=weight.facts.path,
            kind=weight.kind,
            shape=weight.facts.shape,
            is_hidden=weight.role is Role.HIDDEN,
            is_layer=weight.role in (Role.HIDDEN, Role.UNSURE),
            is_ambiguous=_is_ambiguous(weight),
        )
        for weight in weights
    ]
    heads = find_heads(layers, any(tied))
    roles = [weight.role for weight in weights]
    for place in heads.places:  # tied: whichever name comes first, it is an embedding as well
        roles[place] = Role.EMBEDDING if weights[place].facts.ties else Role.HEAD
    for place in heads.doubtful:
        roles[place] = Role.UNSURE
    is_trained = any(
        role is Role.HIDDEN and weight.width >= NARROW and not weight.facts.is_frozen
        for role, weight in zip(roles, weights, strict=True)
    )
    verdicts = []
    for place, (role, weight) in enumerate(zip(roles, weights, strict=True)):
        notes = [NO_HEAD] if place in heads.candidates and role is Role.HIDDEN else []
        if place in heads.doubtful:
            notes.append(f"{_NO_BIAS}, so it is an output layer or an embedding")
        elif role is Role.HIDDEN and layers[place].is_ambiguous and _is_loose(weight):
            notes.append(_NO_BIAS)
        if weight.facts.is_frozen and role is Role.HIDDEN:
            if is_trained:
                role = Role.FROZEN
                notes.append("a file does not tell frozen layers from trained ones and would have it judged")
            else:
                notes.append("frozen, as all hidden layers are: training cannot change it")
        verdicts.append(Verdict(role, "; ".join(notes)))
    is_missing = not heads.is_found and not any(tied) and sum(role is Role.HIDDEN for role in roles) > 1
    return Settled(tuple(verdicts), NO_HEAD if is_missing else "")


def _is_ambiguous(weight: Unsettled) -> bool:
    facts = weight.facts
    is_plain = not facts.is_told and facts.bias is None and weight.kind == "linear"
    return is_plain and could_be_embedding(facts.path)


def _has_output_tie(ties: Sequence[str]) -> bool:
    """Whether an embedding shares its weight with something that is none: with the output layer."""
    return any(not is_embedding(name.rpartition(".")[0] or name) for name in ties)


def _is_loose(weight: Unsettled) -> bool:
    """Whether it is a matrix on its own, not inside numbered blocks, where embeddings do not occur."""
    return len(weight.facts.shape) == 2 and not any(part.isdigit() for part in weight.facts.path.split(".")[:-1])
