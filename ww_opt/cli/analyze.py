"""``ww-opt analyze``: the spectra of a model, layer by layer."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ww_opt.cli.sources import source_of

if TYPE_CHECKING:
    from ww_opt.spectral.reading.weights import LayerWeight
    from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics

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
@click.option("--layers", "patterns", multiple=True, metavar="PATTERN", help="Only layers of such a name: 'encoder.*'.")
@click.option("--kind", "kinds", multiple=True, help="Only layers of this kind: linear, conv2d, attention, ...")
@click.option("--min-width", type=int, default=0, help="Only layers whose smaller side is at least this.")
@click.option("--domain", help="vision (alpha near 2), language (3 to 4), or a number: what alphas are compared with.")
@click.option("--in-order", is_flag=True, help="Layers as in the model, not by what needs attention.")
@click.option("--plot", "folder", type=click.Path(path_type=Path), help="Draw all layers, and each one, into a folder.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path), help="Write all of it on one page that needs no network."
)
@click.option(
    "--convention", type=click.Choice(["default", "weightwatcher"]), default="default", show_default=True,
    help="Ours, or the numbers that WeightWatcher gives.",
)  # fmt: skip
def analyze(source: str, as_json: bool, as_csv: bool, convention: Any, **asked: Any) -> None:
    """Read the spectra of a model, layer by layer. No data is needed.

    SOURCE is a checkpoint (.pt, .pth, .th, .bin, .safetensors, a folder of them), or a function without arguments that
    returns a model: module:factory or path/to/file.py:factory.

    What needs attention stands first; --json and --csv keep the model's order.
    """
    from ww_opt.spectral.diagnostics import diagnose_some
    from ww_opt.spectral.measuring.measure import Options
    from ww_opt.spectral.terms import band

    if as_json and as_csv:
        raise click.UsageError("Only one of --json and --csv can be given.")
    usual = None if asked["domain"] is None else band(asked["domain"])
    model, wanted = source_of(source), _wanted(asked["patterns"], asked["kinds"], asked["min_width"])
    diagnosis = diagnose_some(model, Options(convention), wanted)
    if as_json:
        click.echo(json.dumps(_json_rows(diagnosis), indent=1, allow_nan=False))
    elif as_csv:
        click.echo(diagnosis.to_frame().to_csv(index=False), nl=False)
    else:
        _print_analysis(diagnosis, usual, in_order=asked["in_order"])
    if asked["page"] is not None:
        from ww_opt.reporting.page import model_report, write_text

        write_text(model_report(source, model, diagnosis), asked["page"])
        click.echo(f"Page: {asked['page']}", err=True)
    if asked["folder"] is not None:
        _draw(model, diagnosis, asked["folder"])


def _wanted(patterns: Sequence[str], kinds: Sequence[str], min_width: int) -> Callable[[LayerWeight], bool] | None:
    """Which layers are asked for; ``None``: all."""
    if not patterns and not kinds and min_width <= 0:
        return None

    def is_wanted(weight: LayerWeight) -> bool:
        width = 0 if weight.matrices is None else min(weight.matrices.shape[1:])
        named = not patterns or any(fnmatchcase(weight.name, pattern) for pattern in patterns)
        return named and (not kinds or weight.kind in kinds) and width >= min_width

    return is_wanted


def _draw(model: Any, diagnosis: Diagnosis, folder: Path) -> None:
    """One figure of all layers, and one of each that has a spectrum; a line says where they lie."""
    from tqdm import tqdm

    from ww_opt.reporting.plots import layers_figure, weight_figure
    from ww_opt.spectral.reading.weights import named_weights

    folder.mkdir(parents=True, exist_ok=True)
    layers_figure(diagnosis).savefig(folder / "layers.png", dpi=110)
    drawn = {row.name for row in diagnosis if row.is_analysed}
    weights = (weight for weight in named_weights(model) if weight.name in drawn)
    for number, weight in enumerate(tqdm(weights, "figures", total=len(drawn), delay=3, disable=None, leave=False)):
        # names of layers may hold anything; the number keeps apart what is left of them
        name = re.sub(r"[^\w.-]+", "_", weight.name)[:80]
        weight_figure(weight).savefig(folder / f"{number:03d}-{name}.png", dpi=110)
    click.echo(f"{len(drawn) + 1} figures in {folder}: layers.png shows all of them", err=True)


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


def _print_analysis(diagnosis: Diagnosis, usual: tuple[float, float] | None, *, in_order: bool) -> None:
    from ww_opt.reporting.terminal import in_network_order, layer_table, legend, table, unread
    from ww_opt.spectral.advice import CANNOT_TELL, by_attention, nothing_learnt, suggestions
    from ww_opt.spectral.rows import Diagnosis, why_not_judged
    from ww_opt.spectral.scores import SCORES

    found = suggestions(diagnosis)
    ordered = Diagnosis(tuple(in_network_order(diagnosis)), diagnosis.convention)
    rows = ordered.rows if in_order else by_attention(ordered, found)
    click.echo(layer_table(rows, None if usual is None else partial(_off, usual)))
    if usual is not None:
        click.echo(f"\n{_wrapped(_beside(diagnosis, usual))}\n")
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


def _off(usual: tuple[float, float], row: LayerDiagnostics) -> float | None:
    """How far above (or below, negative) the usual alphas a judged layer lies."""
    if not row.is_judged or math.isnan(row.alpha):
        return None
    return max(row.alpha - usual[1], 0.0) + min(row.alpha - usual[0], 0.0)


def _beside(diagnosis: Diagnosis, usual: tuple[float, float]) -> str:
    """One sentence on all layers beside what is usual."""
    distances = [own for row in diagnosis if (own := _off(usual, row)) is not None]
    about = f"{usual[0]:g}" if usual[0] == usual[1] else f"{usual[0]:g} to {usual[1]:g}"
    if not distances:
        return f"No judged layer has an alpha to compare with {about}."
    above, below = sum(own > 1 for own in distances), sum(own < -0.5 for own in distances)
    return (
        f"off: alpha beyond {about}. Of {len(distances)} judged layers {above} lie more than 1 above (thin tails: less "
        f"learnt, or before a norm) and {below} more than 0.5 below (over-trained, if a second sign joins it)."
    )


def _wrapped(text: str, bullet: str = "") -> str:
    return textwrap.fill(text, 100, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_on_hyphens=False)
