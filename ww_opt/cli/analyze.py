"""``ww-opt analyze``: the spectra of a model, layer by layer."""

from __future__ import annotations

import json
import math
import textwrap
from typing import TYPE_CHECKING, Any

import click

from ww_opt.cli.sources import source_of

if TYPE_CHECKING:
    from ww_opt.spectral.rows import Diagnosis

__all__ = ["analyze"]

_COMPARE = (
    "So compare models of one architecture, trained equally long on the same data. Of two checkpoints of one run the "
    "scores do not say which is better: further training on wrong labels and rounding to 4 bits can move them the way "
    "that learning does."
)


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
    diagnosis = diagnose(source_of(source), convention=convention)
    if as_json:
        click.echo(json.dumps(_json_rows(diagnosis), indent=1, allow_nan=False))
    elif as_csv:
        click.echo(diagnosis.to_frame().to_csv(index=False), nl=False)
    else:
        _print_analysis(diagnosis)


def _json_rows(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """The rows, and with each the suggestions for which it, or the whole net, speaks."""
    from ww_opt.spectral.advice import suggestions

    found = suggestions(diagnosis)
    return [
        {
            **{key: None if isinstance(own, float) and not math.isfinite(own) else own for key, own in row.items()},
            "suggestions": [item.words for item in found if not item.layers or row["name"] in item.layers],
        }
        for row in diagnosis.records()
    ]


def _print_analysis(diagnosis: Diagnosis) -> None:
    from ww_opt.reporting.terminal import layer_table, legend, table, unread
    from ww_opt.spectral.advice import CANNOT_TELL, nothing_learnt, suggestions
    from ww_opt.spectral.rows import why_not_judged
    from ww_opt.spectral.scores import SCORES

    click.echo(layer_table(diagnosis))
    for words in (legend(diagnosis), unread(diagnosis)):
        if words:
            click.echo(words)
    left_out: dict[str, list[str]] = {}
    for row in diagnosis:
        if row.is_analysed and not row.is_judged:
            left_out.setdefault(row.in_score.removeprefix("no: "), []).append(row.name)
    if left_out:
        click.echo("\nNot in the scores\n")
        for reason, names in left_out.items():
            click.echo(_wrapped(f"{', '.join(names)}: {reason}", "- "))
    if diagnosis.note:
        click.echo(f"\n{_wrapped(diagnosis.note)}")
    if words := nothing_learnt(diagnosis):
        click.echo(f"\n{words}")
    found = suggestions(diagnosis)
    if found:
        click.echo("\nWhat this may come from, most likely first\n")
        for item in found:
            click.echo(_wrapped(item.words, "- "))
    click.echo(f"\nScores\n\n{_wrapped(f'{CANNOT_TELL} {_COMPARE}')}\n")
    click.echo(table(("score", "value"), [(item.name, item(diagnosis)) for item in SCORES.values()]))
    if words := why_not_judged(diagnosis.rows):
        click.echo(f"\n{_wrapped(words)}")
    ways = {way: [item.name for item in SCORES.values() if item.direction == way] for way in ("minimize", "maximize")}
    words = f"minimises {', '.join(ways['minimize'])} and maximises {', '.join(ways['maximize'])}"
    click.echo(f"\n{_wrapped(f'A search that has nothing else {words}.')}")


def _wrapped(text: str, bullet: str = "") -> str:
    return textwrap.fill(text, 100, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_on_hyphens=False)
