"""``python -m benchmarks.evidence.pruning``: what pruners save and lose, replayed on kept runs, task by task.

The order of trials is drawn anew some hundred times: any order, and one in which later trials are better, as in a
search that learns. Points are lost beside the pick of all 60 by latecomers; accuracies are those of other, plain runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.evidence.planted import report as of_faults
from benchmarks.evidence.replay import (
    Array,
    Index,
    Outcome,
    Rung,
    after,
    asha,
    halving,
    hyperband,
    median,
    orders,
    outcome,
)
from benchmarks.evidence.tapes import Tape, tapes
from ww_opt.search.rungs import LATE, WEIGHTS, Ranks

__all__ = ["GRID", "POLICIES", "TRENDS", "draw", "judged", "left_out", "ours", "report"]

N_DRAWS = 200
TRENDS = (0.0, 1.0, 2.0)
"""How much a search learns, in standard deviations from its first trial to its last: the kept searches, of 40 trials,
have a Spearman of order with accuracy of .6 in the median; 2 gives .5."""
Values = Callable[[Tape], Mapping[int, Array]]
Policy = Callable[[Tape, Index], Array]
"""A task and an order of its trials -> the percent of its run that each trial came to."""

_JUDGES: Mapping[str, Values] = {
    "late": lambda tape: tape.ahead(),
    "one cohort": lambda tape: tape.ahead(1),
    "weights": lambda tape: tape.score,
    "training loss": lambda tape: tape.train,
    "validation": lambda tape: tape.validation,
}


def ours(judge: str, ranks: Ranks | None = None) -> Policy:
    """Return the ranks of :class:`ww_opt.SpectralPruner`, by one judge."""
    own = ranks or Ranks()
    rule = WEIGHTS if judge == "weights" else LATE

    def policy(tape: Tape, drawn: Index) -> Array:
        values = _JUDGES[judge](tape)
        rungs = [Rung(100 * one, values[round(100 * one)], own.share_at(rule, one)) for one in own.fractions]
        return halving(rungs, drawn, own.n_startup_trials)

    return policy


def _with(pruner: Callable[[Mapping[int, Array], Index], Array], judge: str) -> Policy:
    return lambda tape, drawn: pruner(_JUDGES[judge](tape), drawn)


def _cut(percent: int) -> Policy:
    return lambda _, drawn: after(percent, drawn)


POLICIES: Mapping[str, Policy] = {
    "ours: late": ours("late"),
    "ours: one cohort of 5 %": ours("one cohort"),
    "ours: weights": ours("weights"),
    "our rungs by training loss": ours("training loss"),
    "MedianPruner, training loss": _with(median, "training loss"),
    "SuccessiveHalving, training loss": _with(asha, "training loss"),
    "Hyperband, training loss": _with(hyperband, "training loss"),
    "MedianPruner, validation": _with(median, "validation"),
    "SuccessiveHalving, validation": _with(asha, "validation"),
    "Hyperband, validation": _with(hyperband, "validation"),
    "i-Epoch 20 %, late": _cut(20),
    "i-Epoch 50 %, late": _cut(50),
    "i-Epoch 20 %, training loss": _cut(20),
    "i-Epoch 50 %, training loss": _cut(50),
    "i-Epoch 20 %, weights": _cut(20),
    "i-Epoch 50 %, weights": _cut(50),
    "i-Epoch 20 %, validation": _cut(20),
    "i-Epoch 50 %, validation": _cut(50),
}
GRID: Mapping[str, Policy] = {
    f"{first} and {second} %, {share:.2f}": ours("late", Ranks(fractions=(first / 100, second / 100), share=share))
    for first, second in ((10, 30), (10, 40), (20, 40), (20, 50), (25, 50), (30, 50))
    for share in (0.5, 0.4, 1 / 3, 0.3, 0.25, 0.2)
} | {
    f"{first} and {second} %, a half then {share:.2f}": ours(
        "late", Ranks(fractions=(first / 100, second / 100), share=(0.5, share))
    )
    for first, second in ((10, 40), (20, 40), (20, 50), (25, 50))
    for share in (0.4, 1 / 3, 0.25, 0.2)
}
"""Settings among which rungs and share are chosen, each on the tasks that are not judged."""


def judged(name: str, policy: Policy, tape: Tape, trend: float = 0.0) -> Outcome:
    """Replay one policy on one task; a validation split picks by itself, i-Epoch by what it ranked by."""
    drawn = orders(len(tape.truth), N_DRAWS, trend, tape.truth)
    came = policy(tape, drawn)
    final, is_cut = tape.final, name.startswith("i-Epoch")
    judge = name.rpartition(", ")[2]
    if is_cut:
        final = _JUDGES[judge](tape)[int(came.flat[0])]
    elif judge == "validation":
        final = tape.validation[100]
    own = outcome(came, drawn, final, tape.truth, is_cut=is_cut)
    # beside one pick for all: what latecomers choose among all 60
    behind = 100.0 * float(tape.truth[tape.final.argmin()] - tape.truth[final.argmin()])
    return Outcome(own.saved, own.lost + behind, own.ninth + behind)


def left_out(of: Sequence[Tape], least_saved: float) -> list[tuple[str, str, Outcome]]:
    """Choose rungs and share on all tasks but one: least points lost among those that save enough there.

    Returns:
        Task, what was chosen for it, and what that saves and loses on it, on the mean over the trends.
    """
    table = {
        name: [_mean([judged(name, own, tape, trend) for trend in TRENDS]) for tape in of] for name, own in GRID.items()
    }
    found = []
    for place, tape in enumerate(of):
        others = {name: _mean([*row[:place], *row[place + 1 :]]) for name, row in table.items()}
        enough = {name: own for name, own in others.items() if own.saved >= least_saved}
        best = min(enough, key=lambda name: enough[name].lost)
        found.append((tape.case, best, table[best][place]))
    return found


def _mean(of: Sequence[Outcome]) -> Outcome:
    return Outcome(*(float(np.mean([getattr(own, name) for own in of])) for name in ("saved", "lost", "ninth")))


def report() -> str:
    """Return all tables as text."""
    of = tapes()
    lines = [f"{len(of)} tasks, {N_DRAWS} orders. Points lost beside the pick of all, by task; steps saved.", ""]
    head = " ".join(f"{tape.case[:12]:>12}" for tape in of)
    lines += [f"{'':34}{'saved':>7}{'lost':>7}{'learns':>15}  {head}"]
    for name, policy in POLICIES.items():
        asked = [tape for tape in of if "validation" not in name or tape.split]
        if not asked:
            continue
        rows = [judged(name, policy, tape) for tape in asked]
        mean, last = _mean(rows), _mean([judged(name, policy, tape, TRENDS[-1]) for tape in asked])
        by_case = {tape.case: own.lost for tape, own in zip(asked, rows, strict=True)}
        cells = " ".join(f"{by_case[tape.case]:12.1f}" if tape.case in by_case else " " * 12 for tape in of)
        lines.append(f"{name:34}{mean.saved:7.0%}{mean.lost:7.2f}{last.saved:8.0%}{last.lost:7.2f}  {cells}")
    for least in (0.5, 0.55, 0.6):
        chosen = left_out(of, least)
        mean = _mean([own for _, _, own in chosen])
        lines += ["", f"Chosen on the other tasks to save {least:.0%}: {mean.saved:.0%} saved, {mean.lost:.2f} lost"]
        lines += [f"  {case:20}{name:22}{own.saved:6.0%}{own.lost:7.2f}" for case, name, own in chosen]
    lines += ["", "Weights alone, where they pick as well (no late examples):"]
    lines += [f"  trend {trend:.0f}: {_of_weights(of, trend)}" for trend in TRENDS]
    return "\n".join([*lines, "", of_faults(of)])


def _of_weights(of: Sequence[Tape], trend: float) -> str:
    rows = []
    for tape in of:
        drawn = orders(len(tape.truth), N_DRAWS, trend, tape.truth)
        rows.append(outcome(ours("weights")(tape, drawn), drawn, tape.score[100], tape.truth))
    mean = _mean(rows)
    return f"{mean.saved:.0%} saved, {mean.lost:.2f} lost; by task " + " ".join(f"{own.lost:.1f}" for own in rows)


def draw(target: Path = Path("docs/pruning.png")) -> Path:
    """Draw steps saved against points lost."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    of = tapes()
    for name, policy in POLICIES.items():
        asked = [tape for tape in of if "validation" not in name or tape.split]
        if asked:
            mean = _mean([judged(name, policy, tape) for tape in asked])
            is_ours = name.startswith("ours")
            axes.plot(100 * mean.saved, mean.lost, "o" if is_ours else "s", color="C3" if is_ours else "0.5")
            offset = (5, -9) if "validation" in name else (5, 3)
            axes.annotate(name, (100 * mean.saved, mean.lost), offset, textcoords="offset points", fontsize=7)
    axes.axhline(0.5, color="0.8", lw=1)
    axes.axvline(50, color="0.8", lw=1)
    axes.set(xlim=(45, 102), xlabel="steps saved, %", ylabel="points lost by the pick (lower is better)")
    figure.savefig(target, dpi=120)
    return target


@click.command()
@click.option("--figure", is_flag=True, help="Draw docs/pruning.png as well.")
def main(figure: bool) -> None:
    """Print the tables; deterministic."""
    click.echo(report())
    if figure:
        click.echo(draw())


if __name__ == "__main__":
    main()
