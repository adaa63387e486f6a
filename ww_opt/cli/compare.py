"""``ww-opt compare``: what changed between two checkpoints, and a gate that fails on it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from ww_opt.cli.exit_codes import FAILED
from ww_opt.cli.sources import source_of

if TYPE_CHECKING:
    from ww_opt.spectral.comparing.shifts import Break, Comparison, Mark

__all__ = ["compare"]

_SHIFTS = (
    "name", "distance", "cosine", "ratio", "alpha", "D", "spikes", "traps", "stable_rank", "effective_rank",
    "spectral_norm", "levels", "zeros", "stands_out", "note",
)  # fmt: skip


@click.command()
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--json", "as_json", is_flag=True, help="Print a short JSON for monitors.")
@click.option(
    "--fail-on", type=click.Choice(["broken", "missing", "changed"]),
    help="End with exit code 1 on broken layers; also on missing or reshaped tensors; also on any change.",
)  # fmt: skip
def compare(old: str, new: str, as_json: bool, fail_on: Any) -> int:
    """Say what changed between two checkpoints; broken layers first. No data is needed.

    OLD is the one that is known to be good, NEW the one to be judged. Each is a checkpoint (.pt, .pth, .th, .bin,
    .safetensors, a folder of them), or a function without arguments that returns a model: module:factory or
    path/to/file.py:factory.

    \b
    ww-opt compare model.pt model-int4.pt                    what quantisation did to each layer
    ww-opt compare live.safetensors next.safetensors --fail-on broken   a gate: exit code 1 if a layer broke
    """
    from ww_opt.reporting.comparison_text import comparison_text, headline
    from ww_opt.spectral.comparing.comparison import compare as compared

    found = compared(source_of(old), source_of(new))
    click.echo(json.dumps(_summary(found), indent=1, allow_nan=False) if as_json else comparison_text(found))
    if fail_on is None or not found.fails(fail_on):
        return 0
    click.echo(f"Failed on {fail_on!r}: {headline(found)}.", err=True)
    return FAILED


def _summary(found: Comparison) -> dict[str, Any]:
    """What a monitor needs: the verdict, why, how many, and how far each changed layer moved. NaN is null."""
    differences = [
        {"name": item.name, "old": item.old and list(item.old), "new": item.new and list(item.new)}
        for item in found.differences
    ]
    return {
        "verdict": found.verdict,
        "broken": [{"name": item.name, **_why(one)} for item in found.broken for one in item.breaks],
        "counts": {
            "layers": len(found),
            "broken": len(found.broken),
            "changed": len(found.changed),
            "unchanged": len(found.unchanged),
            "differences": len(differences),
            "unread": len(found.unread),
            "vectors": found.n_vectors,
            "changed_vectors": found.n_changed_vectors,
        },
        "kinds": list(found.kinds),
        "differences": differences,
        "unread": dict(found.unread),
        "notes": list(found.notes),
        "layers": [_shift(row.record()) for row in found if not row.is_unchanged],
    }


def _why(one: Break) -> dict[str, Any]:
    return {
        "rule": one.rule.label,
        "band": _mark(one.band),
        "change": _mark(one.change),
        "seen": one.seen,
        "try": one.rule.remedy,
    }


def _mark(mark: Mark) -> dict[str, Any]:
    return {"what": mark.what, "value": _short(mark.value), "limit": _short(mark.limit)}


def _shift(record: dict[str, Any]) -> dict[str, Any]:
    """The columns that monitors watch; of what both sides have, ``[old, new]``."""
    return {
        name: _short(record[name]) if name in record else [_short(record[f"{name}_old"]), _short(record[f"{name}_new"])]
        for name in _SHIFTS
    }


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
