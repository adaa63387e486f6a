"""The judge's tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence import alphas
from benchmarks.evidence.candidates import FAMILIES, LATE_CANDIDATES, LATE_FAMILIES
from benchmarks.evidence.judge import Figures, Study, agreement, by_seed, figures, left_out, rules, splits, studies
from benchmarks.evidence.kept import DATA, Record, read
from benchmarks.evidence.search import LONG_SEARCHES, METHODS, SEARCHED, read_searches
from benchmarks.evidence.seen import Array, Mask, Rule
from benchmarks.evidence.statistics import interval
from benchmarks.evidence.tasks import CASES, Case
from benchmarks.evidence.verdicts import of_causes, of_findings, of_good_runs

__all__ = ["incumbents", "report", "searched"]

Table = Mapping[str, Sequence[Figures]]
_WORTH = (5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300)
_SHARES = (0.05, 0.10, 0.20)


def report(folder: Path = DATA, cases: Sequence[Case] = CASES) -> str:
    """Judge everything that is kept and return the tables."""
    base = studies("base", folder, cases)
    if not base:
        return "No task has ten runs yet: `python -m benchmarks.evidence generate` makes them."
    table = {name: [figures(study, rule) for study in base] for name, rule in rules().items()}
    parts = [_runs(base), _averages("Base runs", base, table), _per_task(base, table)]
    if len(base) > 2:
        parts.append(_left_out("Base runs", base, {**FAMILIES, **alphas.FAMILIES}))
    late = studies("late", folder, cases)
    late_table: Table = {}
    if late:
        late_table = {name: [figures(study, rule) for study in late] for name, rule in LATE_CANDIDATES.items()}
        parts += [_averages("Late-entry runs", late, late_table), _per_task(late, late_table), _cost(base, late)]
        if len(late) > 2:
            parts.append(_left_out("Late-entry runs", late, {**LATE_FAMILIES, **alphas.LATE_FAMILIES}))
            parts.append(_alpha(base, late))
    holdout = studies("holdout", folder, cases)
    if holdout:
        parts.append(_validation(base, holdout, {**table, **late_table}))
    parts += [text for text in (searched(folder), _long(folder), _faults(folder)) if text]
    seeds = studies("seed", folder, cases)
    if seeds:
        parts.append(_seed_noise(base, seeds))
    return "\n\n".join(parts) + "\n"


def _lines(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _runs(base: Sequence[Study]) -> str:
    def rows() -> Iterator[Sequence[str]]:
        for study in base:
            truth, loss = study.test(100), np.array([run.train_loss for run in study.seen(100)])
            yield (
                study.case.name,
                f"{len(study.trials)}",
                f"{study.n_diverged}",
                *(f"{value:.3f}" for value in np.quantile(truth, (0, 0.5, 1))),
                *(f"{value:.3f}" for value in np.quantile(loss, (0, 0.5, 1))),
            )

    head = ("task", "runs", "diverged", "test: worst", "median", "best", "training loss: least", "median", "most")
    return "### Tasks\n\n" + _lines(head, rows())


def _averages(title: str, of: Sequence[Study], table: Table) -> str:
    """Means over tasks; in brackets the 95 % interval of the mean over bootstraps of the trials."""
    noise = np.array([study.case.label_noise for study in of])
    mild, heavy = noise <= 0.2, noise > 0.2

    def rows() -> Iterator[Sequence[str]]:
        for name, own in table.items():
            yield (
                name,
                _mean(own, lambda item: item.end),
                _mean(own, lambda item: item.half),
                _mean(own, lambda item: item.ahead),
                _mean(own, lambda item: item.end, mild),
                _mean(own, lambda item: item.end, heavy),
                _mean(own, lambda item: item.given),
                _mean(own, lambda item: item.beyond),
                _mean(own, lambda item: item.lost, digits=1),
                _mean(own, lambda item: item.lost, noise > 0, digits=1),
            )

    head = ["score", "end", "half", "half, test at end", "end, to 20 % wrong", "end, 40 % wrong"]
    head += ["given settings", "and loss", "points lost", "lost, wrong labels"]
    return f"### {title}: Spearman with test accuracy, means over {len(of)} tasks\n\n" + _lines(head, rows())


def _mean(own: Sequence[Figures], of: Callable[[Figures], Array], keep: Mask | None = None, digits: int = 2) -> str:
    chosen = [of(item) for place, item in enumerate(own) if keep is None or keep[place]]
    if not chosen:
        return ""
    mean = np.mean(chosen, axis=0)
    low, high = interval(mean[1:])
    return f"{mean[0]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _per_task(of: Sequence[Study], table: Table) -> str:
    def rows() -> Iterator[Sequence[str]]:
        for name, own in table.items():
            cells = []
            for item in own:
                star = "*" if interval(item.beyond[1:])[0] > 0 else ""
                cells.append(f"{item.end[0]:.2f} / {item.beyond[0]:.2f}{star} / {item.lost[0]:.1f}")
            yield (name, *cells)

    title = "### Per task: Spearman at the end / given settings and loss (* interval above 0) / points lost\n\n"
    return title + _lines(("score", *(study.case.name for study in of)), rows())


def _left_out(title: str, of: Sequence[Study], families: Mapping[str, Mapping[str, Rule]]) -> str:
    """Constants chosen on the other tasks, by mean Spearman or by mean points lost."""
    merits: Mapping[str, Callable[[Figures], float]] = {
        "Spearman": lambda own: float(own.end[0]),
        "points lost": lambda own: -float(own.lost[0]),
    }

    def rows() -> Iterator[Sequence[str]]:
        for name, settings in families.items():
            for by, merit in merits.items():
                found = left_out(settings, of, merit)
                cells = [f"{own.figures.end[0]:.2f} / {own.figures.lost[0]:.1f} ({own.setting})" for own in found]
                mean = np.mean([(own.figures.end[0], own.figures.lost[0]) for own in found], axis=0)
                yield f"{name}, by {by}", f"{mean[0]:.2f} / {mean[1]:.1f}", *cells

    head = ("score, chosen by", "mean", *(study.case.name for study in of))
    about = "Spearman / points lost with the constants that are best on the other tasks"
    return f"### {title}, left out: {about}\n\n" + _lines(head, rows())


def _alpha(base: Sequence[Study], late: Sequence[Study]) -> str:
    own = list(alphas.differences(base, late))
    return "### Alpha in the default: what each form changes, against none\n\n" + _lines(own[0], iter(own[1:]))


def _cost(base: Sequence[Study], late: Sequence[Study]) -> str:
    """What late entry costs: the same configurations with and without it."""

    def rows() -> Iterator[Sequence[str]]:
        for study in late:
            known = {trial.number: trial.test[100] for own in base if own.case is study.case for trial in own.trials}
            gaps = [100 * (trial.test[100] - known[trial.number]) for trial in study.trials if trial.number in known]
            error = np.std(gaps) / np.sqrt(max(len(gaps), 1))
            best = 100 * (study.test(100).max() - max(known.values()))
            yield study.case.name, f"{np.mean(gaps):+.2f} +- {error:.2f}", f"{best:+.2f}"

    head = ("task", "test accuracy against the base run, points", "best against best")
    return "### What late entry costs\n\n" + _lines(head, rows())


def _validation(base: Sequence[Study], holdout: Sequence[Study], table: Table) -> str:
    shown = [name for name in table if name.startswith("ww_opt default") or name == "training loss"]

    def rows() -> Iterator[Sequence[str]]:
        for place, study in enumerate(base):
            own = next((other for other in holdout if other.case is study.case), None)
            if own is None:
                continue
            n_train = int(study.case.options["n_train"])
            shares = splits(study, own, [round(share * n_train) for share in _SHARES])
            grid = splits(study, own, _WORTH)
            worth = []
            for name in shown:
                if len(table[name]) <= place:
                    worth.append("")
                    continue
                item = table[name][place]
                by_pick = next((str(split.n) for split in grid if split.lost <= item.lost[0]), f"> {grid[-1].n}")
                by_rank = next((str(split.n) for split in grid if split.end >= item.end[0]), f"> {grid[-1].n}")
                worth.append(f"{by_pick} / {by_rank}")
            yield study.case.name, *(f"{split.end:.2f} / {split.lost:.1f}" for split in shares), *worth

    head = ("task", *(f"{share:.0%} split" for share in _SHARES), *(f"{name} is worth" for name in shown))
    title = "### Validation splits: Spearman / points lost; examples a score is worth, by pick / by Spearman\n\n"
    return title + _lines(head, rows())


def searched(folder: Path = DATA) -> str:
    """Tabulate the end-to-end searches: points lost against the oracle search of the same seed, means over seeds."""
    picks: dict[tuple[str, int], dict[str, float]] = {}
    for record in read_searches(folder):
        if record["n_trials"] < min(LONG_SEARCHES):
            picks.setdefault((record["case"], record["seed"]), {})[record["method"]] = record["pick"]
    whole = {place: own for place, own in picks.items() if len(own) == len(METHODS)}
    names = [case for case in SEARCHED if any(place[0] == case for place in whole)]
    if not names:
        return ""
    seeds = {name: [own for place, own in whole.items() if place[0] == name] for name in names}

    def rows() -> Iterator[Sequence[str]]:
        for method in METHODS:
            lost = {name: [100 * (own["oracle"] - own[method]) for own in seeds[name]] for name in names}
            values = [value for own in lost.values() for value in own]
            error = np.std(values) / np.sqrt(len(values))
            mean = np.mean([np.mean(own) for own in lost.values()])
            accuracy = 100 * np.mean([own[method] for name in names for own in seeds[name]])
            yield (method, f"{mean:.1f} +- {error:.1f}", f"{accuracy:.1f}", *(f"{np.mean(lost[n]):.1f}" for n in names))

    head = ("objective of the search", "points lost", "accuracy", *(f"{name} ({len(seeds[name])})" for name in names))
    title = (
        "### Searches of 40 trials, end to end: points of accuracy lost against the search on the test set (seeds)\n\n"
    )
    return title + _lines(head, rows())


def _long(folder: Path) -> str:
    """Test accuracy of the incumbent along long searches on the score."""
    marks = (10, 20, 40, 80, 120, 160, 200)

    def rows() -> Iterator[Sequence[str]]:
        for record in read_searches(folder):
            if record["n_trials"] in LONG_SEARCHES:
                test = incumbents(record)
                cells = [f"{100 * test[min(mark, len(test)) - 1]:.1f}" for mark in marks]
                yield (record["case"], record["method"], *cells, f"{100 * max(record['test']):.1f}")

    found = list(rows())
    head = ("task", "objective", *(f"{mark} trials" for mark in marks), "best of all")
    title = "### Does the accuracy rise while the score does? Test accuracy of the incumbent, %\n\n"
    return title + _lines(head, iter(found)) if found else ""


def incumbents(record: Record) -> Array:
    """Test accuracy of the trial with the best value so far, after each trial."""
    values, test = np.array(record["values"]), np.array(record["test"])
    best = [int(np.argmin(values[: place + 1])) for place in range(len(values))]
    return np.asarray(test[best])


def _faults(folder: Path) -> str:
    """Tabulate the planted causes."""
    if not read("faults", folder):
        return ""
    causes, findings, good = list(of_causes(folder)), list(of_findings(folder)), list(of_good_runs(folder))
    return (
        "### Planted causes: what is suggested, told from the last weights alone\n\n"
        + _lines(causes[0], iter(causes[1:]))
        + "\n\n### Findings: of how many layers each was said, and of how many rightly\n\n"
        + _lines(findings[0], iter(findings[1:]))
        + "\n\n### What is said of the best quarter of 60 runs with settings drawn at random\n\n"
        + _lines(good[0], iter(good[1:]))
    )


def _seed_noise(base: Sequence[Study], seeds: Sequence[Study]) -> str:
    pairs = [(study, other) for study in base for other in seeds if other.case is study.case]
    groups = [by_seed(*pair) for pair in pairs]
    named: dict[str, Rule] = rules()

    def rows() -> Iterator[Sequence[str]]:
        yield "**test accuracy**", *(f"{agreement([study.test(100) for study in own]):.2f}" for own in groups)
        for name, rule in named.items():
            yield name, *(f"{agreement([rule(study.seen(100)) for study in own]):.2f}" for own in groups)

    title = "### Seed noise: mean Spearman between seeds of the same configurations\n\n"
    return title + _lines(("score", *(study.case.name for study, _ in pairs)), rows())
