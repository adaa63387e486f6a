"""The words of ``ww-opt compare``: what broke first, then what changed much, then a line on the rest."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence

from ww_opt.reporting.terminal import table
from ww_opt.spectral.comparing.matching import Difference, shape_of
from ww_opt.spectral.comparing.shifts import Comparison, LayerShift, Rule

__all__ = ["comparison_text", "headline"]

_WIDTH = 100
_N_LISTED = 12


def headline(found: Comparison) -> str:
    """Say in one sentence what was found."""
    n = f"{len(found)} layer{'s' * (len(found) != 1)} in common"
    if found.broken:
        return f"{len(found.broken)} broken, of {n}: {_names([item.name for item in found.broken])}"
    if found.verdict == "unchanged":
        return f"Nothing changed: {n}, every number is the same"
    if found.differences:
        count = len(found.differences)
        what = f"{count} tensor{'s' * (count != 1)} missing, new or of another shape"
        return f"No layer is broken, of {n}; {what}"
    return f"No layer is broken, of {n}; {len(found.changed)} changed"


def comparison_text(found: Comparison) -> str:
    """Lay out a comparison for people."""
    much = [row for row in found.changed if row.stands_out]
    parts = [f"{headline(found)}.", *_broken(found), *_kinds(found), *_differences(found.differences)]
    if much:
        parts.append("Changed much, the farthest first")
        parts.append(_shifts(much))
    if found.verdict != "unchanged":
        parts.append(_wrapped(_rest(found, [row for row in found.changed if not row.stands_out])))
    harmless = [_wrapped(f"{row.name}: {row.note}", "- ") for row in found if row.note]
    if harmless:
        parts.append("\n".join(["Not counted as broken", *harmless[:_N_LISTED]]))
    if found.unread:
        parts.append("\n".join(["Not compared", *(_wrapped(f"{name}: {why}", "- ") for name, why in found.unread)]))
    parts += [_wrapped(f"Note: {note}.") for note in found.notes]
    return "\n\n".join(part for part in parts if part)


def _broken(found: Comparison) -> Iterator[str]:
    """What broke, by rule, so that what to try is said once."""
    shapes = {row.name: f" ({_shape(row)})" for row in found}
    for rule in Rule:
        own = [(item.name, one.seen) for item in found.broken for one in item.breaks if one.rule is rule]
        if not own:
            continue
        lines = [_wrapped(f"{name}{shapes.get(name, '')}: {seen}", "- ") for name, seen in own[:_N_LISTED]]
        if len(own) > _N_LISTED:
            lines.append(
                _wrapped(f"{len(own) - _N_LISTED} more: {_names([name for name, _ in own[_N_LISTED:]])}", "- ")
            )
        yield "\n".join([f"Broken: {rule.label}", *lines, _wrapped(f"Try: {rule.remedy}.")])


def _kinds(found: Comparison) -> Iterator[str]:
    if found.kinds and found.verdict != "unchanged":
        yield "\n".join(["What kind of change this is", *(_wrapped(kind, "- ") for kind in found.kinds)])


def _differences(differences: Sequence[Difference]) -> Iterator[str]:
    for title, own in (
        ("Only in OLD", [f"{item.name} {shape_of(item.old)}" for item in differences if item.old and not item.new]),
        ("Only in NEW", [f"{item.name} {shape_of(item.new)}" for item in differences if item.new and not item.old]),
        (
            "Another shape",
            [
                f"{item.name} {shape_of(item.old)} -> {shape_of(item.new)}"
                for item in differences
                if item.old and item.new
            ],
        ),
    ):
        if own:
            yield _wrapped(f"{title}: {_names(own)}.")


def _shifts(rows: Sequence[LayerShift]) -> str:
    header = ("layer", "shape", "moved by", "norm", "alpha", "D", "spikes", "what stands out")
    cells = [
        (
            row.name,
            _shape(row),
            f"{row.pair.distance:.0%}" if not math.isnan(row.pair.distance) else "-",
            f"x{row.pair.ratio:.3g}" if not math.isnan(row.pair.ratio) else "-",
            _both(row.old.alpha, row.new.alpha),
            _both(row.old.D, row.new.D),
            f"{row.old.spikes} -> {row.new.spikes}",
            "; ".join(row.stands_out),
        )
        for row in rows[:_N_LISTED]
    ]
    more = f"\n{len(rows) - _N_LISTED} more; --json has all of them" if len(rows) > _N_LISTED else ""
    return table(header, cells) + more


def _rest(found: Comparison, little: Sequence[LayerShift]) -> str:
    """One line on what neither broke nor stands out."""
    told = []
    distances = [row.pair.distance for row in little if not math.isnan(row.pair.distance)]
    if little:
        by = f", by {statistics.median(distances):.2%} in the median, {max(distances):.2%} at most" if distances else ""
        told.append(f"{len(little)} changed little{by}")
    told.append(f"{len(found.unchanged)} unchanged")
    if found.n_vectors:
        told.append(f"{found.n_changed_vectors} of {found.n_vectors} vectors (biases, norms) changed")
    return f"The rest of the layers: {'; '.join(told)}."


def _shape(row: LayerShift) -> str:
    return f"{row.new.N}x{row.new.M}" + (f", {row.new.n_matrices} of them" if row.new.n_matrices > 1 else "")


def _both(old: float, new: float) -> str:
    return " -> ".join("-" if math.isnan(value) else f"{value:.2f}" for value in (old, new))


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _N_LISTED} more" if len(names) > _N_LISTED else ""
    return ", ".join(names[:_N_LISTED]) + more


def _wrapped(text: str, bullet: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_on_hyphens=False
    )
