"""Sections -> one HTML page: the template, the styles and the script lie beside this file."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ww_opt.reporting.page.section import PICK, Drawing, Section
from ww_opt.reporting.page.svg import inline_svg
from ww_opt.reporting.terminal import number

__all__ = ["model_page", "page"]

_HERE = "ww_opt.reporting.page"
_WAS = "was"
_LONG = 40
"""Letters from which a cell is broken into lines."""
_MANY = 20_000
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class _Cell:
    text: str
    is_number: bool

    @property
    def is_long(self) -> bool:
        return len(self.text) > _LONG


@dataclass(frozen=True)
class _Picture:
    caption: str
    svg: str = ""
    fault: str = ""


def page(study: str, sections: Sequence[Section]) -> str:
    """Render a report. Whatever comes from a user is escaped: names, settings, reasons."""
    by_key = {own.key: own for own in sections}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            study=study,
            sections=by_key,
            cards=list(_cards(by_key["gain"].frame)),
            number=_number_of_pick(by_key["scores"].frame),
            pair=_pair(by_key["compare"].frame),
            data=_data(by_key["trials"].frame),
        )
    )


def model_page(name: str, sections: Sequence[Section]) -> str:
    """Render the sections of one model, the answer first. Names are escaped."""
    return _environment().get_template("model.html.j2").render(name=name, sections=list(sections))


@cache
def _environment() -> Environment:
    own = Environment(
        loader=PackageLoader(_HERE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    own.filters |= {"cells": _cells, "heads": _heads, "number": number}
    own.globals |= {"pictures": _pictures, "style": _file("page.css"), "script": _file("page.js")}
    return own


def _file(name: str) -> str:
    return files(_HERE).joinpath(name).read_text(encoding="utf-8")


def _pictures(section: Section) -> list[_Picture]:
    return [_picture(own, f"{section.key}-{place}") for place, own in enumerate(section.drawings)]


def _picture(own: Drawing, key: str) -> _Picture:
    try:
        return _Picture(own.caption, svg=inline_svg(own.draw(), key, own.words))
    except Exception as error:  # one figure that fails costs no page; its numbers stand in the table
        return _Picture(own.caption, fault=f"This figure could not be drawn: {type(error).__name__}: {error}")


def _heads(frame: pd.DataFrame) -> list[_Cell]:
    """Names of columns, and whether most of the column are numbers."""
    return [_Cell(_told(str(name)), _is_numeric(frame[name])) for name in frame]


def _told(column: str) -> str:
    """A column's name in words; what a user named stays as it is."""
    if column.endswith("_before"):
        return _WAS
    return column if "/" in column or " of " in column else column.replace("_", " ")


def _is_numeric(column: pd.Series[Any]) -> bool:
    known = column.dropna()
    return 2 * sum(isinstance(own, numbers.Real) and not isinstance(own, bool) for own in known) > len(known)


def _cells(frame: pd.DataFrame) -> Iterator[list[_Cell]]:
    for row in frame.itertuples(index=False, name=None):
        yield [_cell(own) for own in row]


def _cell(own: Any) -> _Cell:
    own = own.item() if hasattr(own, "item") else own
    if own is None or (isinstance(own, float) and math.isnan(own)):
        return _Cell(number(None), True)
    if isinstance(own, bool):
        return _Cell("yes" if own else "no", False)
    if isinstance(own, float) and own.is_integer() and abs(own) < 1e15:
        own = int(own)  # a column of counts with a gap in it
    return _Cell(number(own), isinstance(own, numbers.Real))


def _cards(frame: pd.DataFrame) -> Iterator[dict[str, str]]:
    """The gains, large: the number, its interval, over what."""
    for row in frame.to_dict("records"):
        of = str(row["of"])
        is_share = of.startswith("accuracy") and 0.0 <= row["pick"] <= 1.0
        if is_share:
            text, unit = f"{100 * row['gained']:+.1f}", "points"
            beside = f"{row['pick']:.1%} against {row['other']:.1%}, one training each"
        else:
            text, unit = f"{row['gained']:+.2g}", "of the score" if of == "score" else of
            known = math.isfinite(row["low"])
            beside = f"{row['low']:+.2g} to {row['high']:+.2g} (95 %)" if known else "interval not known"
        yield {
            "number": text.replace("-", _MINUS),
            "unit": unit,
            "beside": beside.replace("-", _MINUS),
            "sure": "sure" if row["low"] > 0.0 or is_share else "",
            "over": f"over {row['over']}" + (f", {of}" if is_share else ""),
        }


def _number_of_pick(scores: pd.DataFrame) -> int | None:
    found = scores[scores["what"] == PICK]["trial"]
    return None if found.empty else int(found.iloc[0])


def _pair(compare: pd.DataFrame) -> list[int]:
    """Numbers of the two trials that are compared at first; its columns are named after them."""
    return [int(str(name).removeprefix("trial ")) for name in compare if str(name) != "what"]


def _data(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """All columns of all trials for the script, numbers in four digits; in two where there are very many."""
    digits = 4 if frame.size < _MANY else 2
    names = [str(name) for name in frame if not str(name).startswith("median ")]
    return {name: [_short(own, digits if "/" in name else 4) for own in frame[name]] for name in names}


def _short(own: Any, digits: int) -> Any:
    own = own.item() if hasattr(own, "item") else own
    if isinstance(own, float):
        if not math.isfinite(own):
            return None
        return int(own) if own.is_integer() and abs(own) < 1e15 else float(f"{own:.{digits}g}")
    return own if own is None or isinstance(own, int | str) else str(own)
