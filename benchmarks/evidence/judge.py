"""Judge scores and rivals from the kept runs: figures with their bootstrap draws, seed noise, left-out constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.evidence.candidates import CANDIDATES
from benchmarks.evidence.kept import DATA
from benchmarks.evidence.rivals import RIVALS, each, validation
from benchmarks.evidence.seen import Array, Rule, Seen, Trial, trials
from benchmarks.evidence.statistics import lost, partial_spearman, resamples, spearman
from benchmarks.evidence.tasks import CASES, Case
from ww_opt.spectral.scores import SCORES, Score

__all__ = [
    "Figures",
    "LeftOut",
    "Split",
    "Study",
    "agreement",
    "by_seed",
    "figures",
    "left_out",
    "rules",
    "splits",
    "studies",
]


@dataclass(frozen=True)
class Study:
    """One task's runs of one kind, without those that diverged."""

    case: Case
    trials: Sequence[Trial]
    n_diverged: int = 0

    def seen(self, percent: int) -> list[Seen]:
        """What may be seen of each run."""
        return [trial.seen[percent] for trial in self.trials]

    def test(self, percent: int) -> Array:
        """Sealed accuracies, in the same order."""
        return np.array([trial.test[percent] for trial in self.trials])

    def covariates(self) -> Array:
        """Hyperparameters, ``[p, n]``."""
        runs = self.seen(100)
        return np.array([[run.parameters[name] for run in runs] for name in runs[0].parameters])


@dataclass(frozen=True)
class Figures:
    """What a rule is worth on one study; each with its bootstrap draws ``[b]`` behind the figure itself, first.

    Attributes:
        end: Spearman at the end of training.
        half: Spearman of the score with the test accuracy, both at half of the schedule.
        ahead: Spearman of the score at half with the test accuracy at the end.
        given: partial Spearman at the end, given the hyperparameters.
        beyond: the same, given the training loss as well.
        lost: accuracy lost by the pick, in points.
    """

    end: Array
    half: Array
    ahead: Array
    given: Array
    beyond: Array
    lost: Array


def studies(kind: str = "base", folder: Path = DATA, cases: Iterable[Case] = CASES) -> list[Study]:
    """Read what there is; tasks with fewer than ten runs are left out."""
    found = []
    for case in cases:
        own = trials(case.name, kind, case.n_epochs, folder)
        whole = [trial for trial in own if np.isfinite(trial.seen[100].train_loss)]
        if len(whole) >= 10:
            found.append(Study(case, whole, len(own) - len(whole)))
    return found


def rules() -> dict[str, Rule]:
    """List every rule for base runs: rivals, the product's scores with and without guard, candidates."""
    own: dict[str, Rule] = {}
    for name, score in SCORES.items():
        own |= {f"ww_opt {name}": _of(score.unguarded()), f"ww_opt {name}, guarded": _of(score.guarded())}
    return {**RIVALS, **own, **CANDIDATES}


def _of(score: Score) -> Rule:
    sign = -1.0 if score.direction == "minimize" else 1.0

    def value(run: Seen) -> float:
        return sign * score(run.diagnosis(), train_loss=run.train_loss, first_loss=run.first_loss)

    return each(value)


def figures(study: Study, rule: Rule, n_bootstraps: int = 300) -> Figures:
    """Judge one rule on one study."""
    half, end = rule(study.seen(50)), rule(study.seen(100))
    truth, truth_half = study.test(100), study.test(50)
    loss = np.array([run.train_loss for run in study.seen(100)])
    settings = study.covariates()
    index = np.concatenate([np.arange(len(truth))[None], resamples(len(truth), n_bootstraps)])
    with_loss = np.concatenate([settings, loss[None]])
    return Figures(
        end=spearman(end[index], truth[index]),
        half=spearman(half[index], truth_half[index]),
        ahead=spearman(half[index], truth[index]),
        given=partial_spearman(end[index], truth[index], np.swapaxes(settings[:, index], 0, 1)),
        beyond=partial_spearman(end[index], truth[index], np.swapaxes(with_loss[:, index], 0, 1)),
        lost=100 * lost(end[index], truth[index]),
    )


@dataclass(frozen=True)
class Split:
    """What picking by ``n`` labelled validation examples is worth: means over many draws of them.

    Args:
        n: examples, wrong labels among them as in training.
        end: Spearman of the validation accuracy with the sealed accuracy of the run on all training examples.
        lost: accuracy lost by its pick, in points.
    """

    n: int
    end: float
    lost: float


def splits(study: Study, holdout: Study, sizes: Iterable[int], n_draws: int = 200) -> list[Split]:
    """Judge validation splits: trained without a fifth of the training set, picked by ``n`` examples of that fifth.

    The pick is trained again on everything, as careful people do: its accuracy is that of the base run.
    """
    known = {trial.number: trial.test[100] for trial in study.trials}
    runs = [trial for trial in holdout.trials if trial.number in known]
    seen, truth = [trial.seen[100] for trial in runs], np.array([known[trial.number] for trial in runs])
    best = study.test(100)
    n_pool = len(seen[0].held_out[100].right)
    generator = np.random.default_rng(0)
    found = []
    for n in sizes:
        draws = n_draws if n < n_pool else 1
        index = [generator.permutation(n_pool)[:n] for _ in range(draws)]
        values = np.array([validation(seen, own) for own in index])
        own_truth = np.broadcast_to(truth, values.shape)
        points = 100 * lost(values, own_truth, np.broadcast_to(best, (draws, len(best))))
        found.append(Split(min(n, n_pool), float(spearman(values, own_truth).mean()), float(points.mean())))
    return found


def agreement(values: Sequence[Array]) -> float:
    """Mean Spearman between seeds of values of the same configurations; 1 is free of seed noise."""
    return float(np.mean([spearman(a, b) for a, b in combinations(values, 2)]))


def by_seed(base: Study, seeds: Study) -> list[Study]:
    """Split runs of the same configurations by seed; configurations that some seed lacks are left out."""
    every = [*base.trials, *seeds.trials]
    numbers = {seed: {trial.number for trial in every if trial.seed == seed} for seed in {t.seed for t in every}}
    shared = set.intersection(*numbers.values())
    return [
        Study(base.case, [trial for trial in every if trial.seed == seed and trial.number in shared])
        for seed in sorted(numbers)
    ]


@dataclass(frozen=True)
class LeftOut:
    """The setting that is best on all other tasks, and what it is worth on this one."""

    case: str
    setting: str
    figures: Figures


def left_out(
    settings: Mapping[str, Rule], of: Sequence[Study], merit: Callable[[Figures], float] = lambda own: float(own.end[0])
) -> list[LeftOut]:
    """Choose among settings of a rule's constants with each task left out once; report the left-out figures only.

    Args:
        settings: the rule at each setting, by a name that says which.
        of: studies.
        merit: what is maximised, on the mean over the other studies.
    """
    table = {name: [figures(study, rule) for study in of] for name, rule in settings.items()}
    merits = {name: np.array([merit(own) for own in row]) for name, row in table.items()}
    found = []
    for place, study in enumerate(of):
        best = max(merits, key=lambda name: np.delete(merits[name], place).mean())
        found.append(LeftOut(study.case.name, best, table[best][place]))
    return found
