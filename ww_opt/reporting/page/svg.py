"""A figure as SVG inside a page: small, the same every time, its colours the page's own."""

from __future__ import annotations

import io
import re
import warnings
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from ww_opt.reporting.plots.drawing import Colour

__all__ = ["inline_svg"]

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_SPACES = re.compile(r"(?<![\d.])\s+|\s+(?=[A-Za-z])|(\s)\s+")
_NUMBER = re.compile(r"-?\d+\.\d+")
_SHADES = {colour.value.lower(): f"var(--{colour.name.lower()})" for colour in Colour} | {"#000000": "var(--ink)"}
_DEFAULTS = ("stroke-linejoin: miter", "stroke-linecap: butt", "fill-opacity: 1", "stroke-opacity: 1")
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_PIXELS = 1.8
"""Largest width on a page, in pixels a point of the figure."""


def inline_svg(figure: Figure, key: str, words: str) -> str:
    """Draw a figure as an ``<svg>`` element.

    Text stays text, in the page's font; colours are the page's variables, so that they follow light and dark.

    Args:
        figure: what is drawn.
        key: letters, digits and ``-``; no other figure of the page has it, so that no two ids are equal.
        words: what the figure shows, for who cannot see it.
    """
    written = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ww_opt"}), warnings.catch_warnings():
        # the page's font has signs that the one for measuring lacks
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from", category=UserWarning)
        figure.savefig(written, format="svg", transparent=True, metadata=_METADATA)
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] == "metadata":
                parent.remove(child)
    _make_own(root, key)
    width = float(root.attrib["viewBox"].split()[2])
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{key}-title", "style": f"max-width:{_PIXELS * width:.0f}px"}
    title = ElementTree.Element("title", {"id": f"{key}-title"})
    title.text = words
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _make_own(root: ElementTree.Element, key: str) -> None:
    """Strip what says nothing, and give ids that are referred to the figure's key."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = {name: f"{key}-{place}" for place, name in enumerate(sorted(set(re.findall(r"#([\w-]+)", text))))}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        own = element.attrib
        if (name := own.pop("id", None)) in used:
            own["id"] = used[str(name)]
        if (target := own.pop(_LINK, None)) is not None:
            own["href"] = f"#{used[target[1:]]}"
        if "clip-path" in own:
            own["clip-path"] = re.sub(r"#([\w-]+)", lambda found: f"#{used[found[1]]}", own["clip-path"])
        for name in ("d", "x", "y", "transform", "width", "height", "points"):
            if name in own:
                own[name] = _SPACES.sub(r"\1", _NUMBER.sub(_rounded, own[name])).strip()
        if own.get("transform", "").startswith("rotate(-0 "):
            del own["transform"]
        if "style" in own and (style := _style(own.pop("style"))) != "":
            own["style"] = style
        if element.tag not in ("text", "tspan"):
            element.text = None
        element.tail = None
    _flatten(root)


def _flatten(parent: ElementTree.Element) -> None:
    """Take out what is not seen and groups that say nothing; say once what all copies of a sign share."""
    children = []
    for child in parent:
        _flatten(child)
        if child.tag == "style" or child.attrib.get("style") == "fill:none" or (child.tag == "defs" and not len(child)):
            continue
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    parent[:] = children
    if parent.tag != "g" or len(children) < 2 or {child.tag for child in children} not in ({"use"}, {"path"}):
        return
    for name in ("style", "clip-path"):
        common = {child.attrib.get(name) for child in children}
        if len(common) == 1 and None not in common and name not in parent.attrib:
            parent.attrib[name] = str(common.pop())
            for child in children:
                del child.attrib[name]


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.1f}".removesuffix(".0").replace("-0", "0" if float(found[0]) > -0.05 else "-0", 1)


def _style(text: str) -> str:
    parts = [part.strip() for part in text.split(";")]
    kept = [part for part in parts if part and part not in _DEFAULTS and not part.startswith("font-family")]
    style = ";".join(part.replace(": ", ":") for part in kept)
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _SHADES.get(found[0], found[0]), style)
