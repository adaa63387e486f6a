"""``ww-opt analyze``: the spectra of a model, layer by layer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ww_opt.spectral.rows import Diagnosis

__all__ = ["analyze"]


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as a JSON list.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
@click.option(
    "--convention", type=click.Choice(["default", "weightwatcher"]), default="default", show_default=True,
    help="Ours, or the numbers that WeightWatcher gives.",
)  # fmt: skip
def analyze(source: str, as_json: bool, as_csv: bool, convention: Any) -> None:
    """Read the spectra of a model, layer by layer. No data is needed.

    SOURCE is a checkpoint (.pt, .pth, .th, .bin, .safetensors, a folder of them), or a function without arguments that
    returns a model: module:factory or path/to/file.py:factory.
    """
    from ww_opt.spectral.diagnostics import diagnose

    if as_json and as_csv:
        raise click.UsageError("Only one of --json and --csv can be given.")
    diagnosis = diagnose(_source(source), convention=convention)
    if as_json:
        click.echo(json.dumps([_json_row(row) for row in diagnosis.records()], indent=1, allow_nan=False))
    elif as_csv:
        click.echo(diagnosis.to_frame().to_csv(index=False), nl=False)
    else:
        _print_analysis(diagnosis)


def _source(source: str) -> Any:
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


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _print_analysis(diagnosis: Diagnosis) -> None:
    from ww_opt.reporting.terminal import layer_table, legend, table, unread
    from ww_opt.spectral.scores import SCORES

    click.echo(layer_table(diagnosis))
    for words in (legend(diagnosis), unread(diagnosis)):
        if words:
            click.echo(words)
    better = {"minimize": "lower", "maximize": "higher"}
    scores = [(item.name, item(diagnosis), better[item.direction]) for item in SCORES.values()]
    click.echo("\nScores, to compare models of one architecture only\n")
    click.echo(table(("score", "value", "better"), scores))
