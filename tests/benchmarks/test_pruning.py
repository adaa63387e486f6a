"""The replay prunes as the pruners do that it stands for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner

from benchmarks.evidence.planted import fault_of
from benchmarks.evidence.pruning import POLICIES, judged
from benchmarks.evidence.replay import Array, Index, Rung, after, asha, halving, median, orders, outcome
from benchmarks.evidence.tapes import PERCENTS, tapes
from tests.search.test_pruner import layer
from ww_opt import SpectralPruner
from ww_opt.search import records
from ww_opt.search.records import Look
from ww_opt.search.rungs import Ranks

N = 40
QUALITY = np.random.default_rng(0).normal(size=N)
VALUES = {
    percent: np.random.default_rng(percent).normal(QUALITY, 200 / (percent + 50)) for percent in PERCENTS
}  # more noise at first
RANKS = Ranks()


def replayed(pruner: BasePruner, drawn: Index) -> list[float]:
    """Percent that each trial came to, trials one after the other, a look each twentieth; the first is spared."""
    study = optuna.create_study(pruner=pruner)
    came = []
    for place, number in enumerate(drawn):
        trial, ended = study.ask(), 100.0
        for percent in PERCENTS:
            value = float(VALUES[percent][number])
            shown = Look(percent, 100, value, 1.0, layers=(layer(),), ahead_loss=value, n_ahead=60)
            records.write_look(trial, shown)
            trial.report(value, percent)
            if percent < 100 and trial.should_prune() and place:
                ended = float(percent)
                break
        study.tell(trial, None if ended < 100 else value, state=None if ended == 100 else PRUNED)
        came.append(ended)
    return came


PRUNED = optuna.trial.TrialState.PRUNED


def ours(drawn: Index) -> Array:
    rungs = [Rung(100 * own, VALUES[round(100 * own)], RANKS.share) for own in RANKS.fractions]
    return halving(rungs, drawn, RANKS.n_startup_trials)


@pytest.mark.parametrize(
    ("pruner", "replay"),
    [
        (SpectralPruner(ranks=RANKS), ours),
        (MedianPruner(n_warmup_steps=1), lambda drawn: median(VALUES, drawn)),
        (SuccessiveHalvingPruner(min_resource=5), lambda drawn: asha(VALUES, drawn)),
    ],
    ids=["ours", "median", "successive halving"],
)
def test_it_prunes_as_the_pruner_does(pruner: BasePruner, replay: Callable[[Index], Array]) -> None:
    drawn = orders(N, 3, seed=1)
    came = replay(drawn)
    assert (came[1] < 100).sum() > N / 3
    for place in range(len(drawn)):
        # the first trial that a pruner would end is spared in ours alone; it ends nothing before there are others
        assert came[place].tolist() == replayed(pruner, drawn[place])


def test_what_is_lost_is_counted_beside_the_pick_of_all() -> None:
    truth, final = np.array([0.5, 0.9, 0.7]), np.array([3.0, 1.0, 2.0])
    drawn = np.array([[0, 1, 2], [2, 1, 0]])
    came = np.array([[100.0, 20.0, 100.0], [100.0, 100.0, 50.0]])
    found = outcome(came, drawn, final, truth)
    assert found.saved == pytest.approx((80 + 50) / 600)
    assert found.lost == pytest.approx((100 * 0.2 + 0.0) / 2)
    cut = outcome(after(20, drawn), drawn, final, truth, is_cut=True)
    assert (cut.saved, cut.lost) == (pytest.approx(0.8 - 1 / 3), 0.0), "the pick is trained once more"


def test_a_search_that_learns_brings_better_trials_later() -> None:
    drawn = orders(N, 200, 2.0, QUALITY)
    later = [np.corrcoef(np.arange(N), QUALITY[own])[0, 1] for own in drawn]
    assert np.mean(later) == pytest.approx(0.5, abs=0.05)
    assert sorted(drawn[0]) == list(range(N))


def test_what_is_kept_says_what_the_readme_says() -> None:
    of = tapes()
    assert [len(tape.truth) for tape in of] == [60] * 10
    found = [judged("ours: late", POLICIES["ours: late"], tape) for tape in of]
    assert np.mean([own.saved for own in found]) == pytest.approx(0.57, abs=0.01)
    assert np.mean([own.lost for own in found]) == pytest.approx(0.12, abs=0.05)


def test_a_kept_run_is_read_as_its_looks() -> None:
    def at(percent: int, norm: float) -> dict[str, object]:
        rows = {
            "name": ["a"], "role": ["HIDDEN"], "N": [64], "M": [48], "n_eigenvalues": [48], "spikes": [1],
            "traps": [0], "rank_loss": [0], "stable_rank": [5.0], "spectral_norm": [norm], "findings": [["NO_FAULT"]],
        }  # fmt: skip
        return {"percent": percent, "train_loss": 1.0, "score": 0.5, "rows": rows}

    looks = [{"percent": 0, "train_loss": 2.3}, at(10, 4.0), at(15, 99.0), at(20, 4.0), at(30, 80.0), at(40, 90.0)]
    assert fault_of({"n_steps": 200, "looks": looks}) == ("broken", 40.0)
    assert fault_of({"n_steps": 200, "looks": looks[:5]})[0] == ""
