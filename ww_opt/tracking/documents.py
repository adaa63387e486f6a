"""What is sent to MLflow, as values that know all that MLflow needs: no study and no storage are asked any more.

Each can be written twice and change nothing by it: it says which run it is of, by the study's digest and the trial's
number, and at what moment its points were taken, for MLflow takes equal points at equal times for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["Document", "End", "Ended", "File", "Parent", "State", "Weights", "from_json", "to_json"]


@dataclass(frozen=True)
class Parent:
    """Which study: by its digest, and what its run is made with where there is none yet."""

    id: str
    name: str
    direction: str
    start: int


@dataclass(frozen=True)
class Weights:
    """The best state dict: a file on this machine, of a trial."""

    path: str
    trial: int


@dataclass(frozen=True)
class State:
    """What was known of a study at a moment, in milliseconds; later knowledge is never overwritten by earlier."""

    moment: int
    note: str
    best: int | None = None
    weights: Weights | None = None


@dataclass(frozen=True)
class Ended:
    """A trial that has ended, as its own run, and what that changes in its parent.

    Attributes:
        parent: of which study.
        trial: its number.
        start, end: in milliseconds since 1970; ``end`` is also the time of all its points.
        status: MLflow's.
        params: never written again.
        tags: its note and reason among them.
        points: curves, as (name, step, value), finite.
        table: columns and rows of its layers.
        curves: the parent's own points at its end, by name.
        state: of the study at its end.
    """

    parent: Parent
    trial: int
    start: int
    end: int
    status: str
    state: State
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    points: tuple[tuple[str, int, float], ...] = ()
    table: tuple[tuple[Any, ...], ...] = ()
    curves: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """What a study's run gets at its end.

    Attributes:
        parent: of which study.
        step: the number of its last trial, where its metrics stand.
        state: at its end.
        params: never written again.
        tags: those of an earlier end that this one does not have go.
        metrics: finite.
        files: artifacts, each by its path.
        register: under which name the weights are registered; empty: they are not.
    """

    parent: Parent
    step: int
    state: State
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    register: str = ""


@dataclass(frozen=True)
class File:
    """One artifact of a study's run: a file on this machine, and in which folder it goes."""

    parent: Parent
    path: str
    folder: str = ""


Document = Ended | End | File
_KINDS: Mapping[str, type[Document]] = {"trial": Ended, "end": End, "file": File}


def to_json(document: Document) -> dict[str, Any]:
    """As JSON, with its kind."""
    kind = next(name for name, own in _KINDS.items() if isinstance(document, own))
    own = {item.name: getattr(document, item.name) for item in fields(document)}  # `asdict` copies every cell
    return {"kind": kind, **own, **{name: asdict(own[name]) for name in ("parent", "state") if name in own}}


def from_json(value: Mapping[str, Any]) -> Document:
    """Read back what :func:`to_json` made.

    Raises:
        ValueError: it is of no kind that this version knows, or lacks what it needs.
    """
    own = dict(value)
    kind = _KINDS.get(str(own.pop("kind", "")))
    if kind is None:
        raise ValueError(f"A record must be of a kind in {sorted(_KINDS)}, but got {value.get('kind')!r}.")
    try:
        own["parent"] = Parent(**own["parent"])
        if "state" in own:
            weights = own["state"].get("weights")
            own["state"] = State(**{**own["state"], "weights": Weights(**weights) if weights else None})
        for name in ("points", "table"):
            if name in own:
                own[name] = tuple(tuple(row) for row in own[name])
        return kind(**own)
    except (KeyError, TypeError) as error:
        raise ValueError(f"A record of kind {value.get('kind')!r} must have its fields, but: {error}.") from error
