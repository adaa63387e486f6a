"""SOURCE on the command line -> what is read: a path as it is, or the model that a factory returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["source_of"]


def source_of(source: str) -> Any:
    """Return the path, or the model.

    Raises:
        BadReference: the reference names no factory.
    """
    from ww_opt.study.references import BadReference, load

    if source.endswith(".py"):
        raise BadReference(f"A Python file needs the function that returns a model, but got {source!r}: {source}:NAME.")
    if Path(source).exists() or ":" not in source:
        return source

    factory = load(source)
    if not callable(factory):
        raise BadReference(
            f"SOURCE must name a function that returns a model, but {source!r} is a {type(factory).__name__}."
        )
    return factory()
