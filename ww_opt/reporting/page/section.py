"""What a report is made of: sections, each with a title, sentences, a data frame, and figures of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICK", "Drawing", "Section"]

PICK = "the pick"
"""What a trial is that was picked, in the section of scores."""


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn where it is wanted: a page wants it, JSON does not.

    Attributes:
        words: what it shows, for who cannot see it.
        draw: makes it.
        caption: what stands above it; may be empty.
    """

    words: str
    draw: Callable[[], Figure]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        key: its name in JSON and in links.
        title: in words.
        sentences: what was found.
        frame: the numbers behind it; NaN and ``None`` where one is not known.
        drawings: figures of the frame.
        notes: how it was found and how to read it, in small print.
        shown: columns that people are shown, where the frame has more; ``None``: all.
        n_rows: rows that people are shown, from the first.
        command: what to type, if there is something to; passwords hidden.
    """

    key: str
    title: str
    sentences: tuple[str, ...] = ()
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    drawings: tuple[Drawing, ...] = ()
    notes: tuple[str, ...] = ()
    shown: tuple[str, ...] | None = None
    n_rows: int | None = None
    command: str = ""

    @property
    def table(self) -> pd.DataFrame:
        """The frame as people are shown it."""
        own = self.frame if self.shown is None else self.frame[list(self.shown)]
        return own.head(self.n_rows) if self.n_rows is not None else own
