"""Those who are still to join are asked at a pruner's rungs, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial, TrialState

import ww_opt
from tests import tiny
from tests.search.test_own_loop import LATE, loop
from ww_opt import LateEntry, SpectralObjective, SpectralPruner
from ww_opt.reporting.closing_text import closing_text
from ww_opt.search import records
from ww_opt.search.decisions import decisions
from ww_opt.search.repeats import repeat_of
from ww_opt.search.rungs import Ranks
from ww_opt.spectral import diagnose, score
from ww_opt.study.alarms import about_ends
from ww_opt.study.closing import closing
from ww_opt.study.study import open_study, run

RANKS = Ranks(n_startup_trials=2, n_examples=10)
TASK = replace(tiny.TASK, late_entry=replace(LATE, shares=(0.1, 0.1, 0.1)))
OBJECTIVE = SpectralObjective(TASK, tiny.SPACE, n_steps=20, interval_steps=2, guard="late")


def ours(pruner: Any, n_trials: int = 1) -> list[FrozenTrial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    study.optimize(OBJECTIVE, n_trials=n_trials)
    return study.trials


def test_nobody_is_asked_who_has_joined() -> None:
    entry = LateEntry(100, 10, 200)
    assert [len(entry.waiting(step)) for step in (0, 99, 100, 101, 150, 151, 180, 181)] == [15, 15, 15, 10, 10, 5, 5, 0]
    joined = torch.cat(list(entry)[:120])
    assert not torch.isin(entry.waiting(120), joined).any()


def test_they_are_asked_at_rungs_alone_and_by_a_pruner_that_wants_it() -> None:
    (asked,), (unasked,) = ours(SpectralPruner(ranks=RANKS)), ours(NopPruner())
    assert [look.n_ahead for look in records.looks(asked)] == [0, 30, 0, 0, 30, 0, 0, 0, 0, 0]
    assert [look.n_ahead for look in records.looks(unasked)] == [0] * 10
    assert asked.intermediate_values == unasked.intermediate_values, "no value changes, nor any weight"
    assert asked.value == unasked.value
    assert [look.n_late for look in records.looks(asked)] == [0, 0, 0, 0, 10, 10, 10, 20, 30, 30]
    first, second = (look.ahead_loss for look in records.looks(asked) if look.n_ahead)
    assert second < first, "it learns"


def test_a_loop_of_ones_own_asks_the_same() -> None:
    def objective(trial: optuna.Trial) -> float:
        return float(loop(trial, late=replace(LATE, shares=(0.1, 0.1, 0.1))).value())

    found = []
    for pruner in (SpectralPruner(ranks=RANKS), NopPruner()):
        study = optuna.create_study(pruner=pruner)
        study.optimize(objective, n_trials=1)
        found.append(study.trials[0])
    assert [look.n_ahead for look in records.looks(found[0])] == [0, 30, 0, 0, 30, 0, 0, 0, 0, 0]
    assert found[0].intermediate_values == found[1].intermediate_values


def test_a_guard_that_is_not_late_asks_nobody() -> None:
    study = optuna.create_study(pruner=SpectralPruner(ranks=RANKS))
    study.optimize(replace(OBJECTIVE, guard=True), n_trials=1)
    assert not any(look.n_ahead for look in records.looks(study.trials[0]))
    assert {own.rule for own in decisions(study.trials[0])} == {"weights"}


def test_trials_are_pruned_by_what_they_said() -> None:
    trials = ours(SpectralPruner(ranks=RANKS), 8)
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert pruned
    assert all(records.reason(trial).startswith("rule late: place ") for trial in pruned)
    for trial in pruned:
        own = decisions(trial)[-1]
        losses = {look.step: look.ahead_loss for look in records.looks(trial)}
        assert own.value == losses[own.step] > own.threshold
        others = {look.ahead_loss for n in own.compared for look in records.looks(trials[n]) if look.step == own.step}
        assert own.threshold in others
    assert about_ends(trials) == [], "most were outrun, which is no cause for alarm"


def test_a_study_spares_its_start_and_its_repeats_and_says_what_was_saved(tmp_path: Path) -> None:
    study = replace(
        tiny.STUDY, objective=OBJECTIVE, pruner=SpectralPruner(ranks=RANKS), n_trials=16, start={"lr/0": 1e-3}
    )
    host = open_study(study)
    run(study, host, tmp_path)
    first = host.trials[0]
    assert first.state is TrialState.COMPLETE
    assert sum(look.n_ahead > 0 for look in records.looks(first)) == 2, "others are compared with it"
    assert any(0 in own.compared for trial in host.trials for own in decisions(trial))
    repeats = [trial for trial in host.trials if repeat_of(trial)]
    assert repeats
    assert all(trial.state is TrialState.COMPLETE for trial in repeats)
    found = closing(study, host)
    n_pruned = sum(trial.state is TrialState.PRUNED for trial in host.trials)
    assert found.ended_by == {"late": n_pruned}
    assert found.saved > 0.1
    text = " ".join(closing_text(found, {}).split())
    assert f"pruning saved {found.saved:.0%} of the steps (trials ended by each rule: late {n_pruned})." in text


@pytest.mark.parametrize("lrs", [(0.05, 0.05, 0.05, 1e-6, 0.05)])
def test_the_three_line_form_is_ranked_by_its_weights(lrs: tuple[float, ...]) -> None:
    def objective(trial: optuna.Trial) -> float:
        torch.manual_seed(0)
        model = tiny.build_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lrs[trial.number])
        for step in range(1, 11):
            for batch in tiny.batches():
                loss = tiny.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            ww_opt.report(trial, model, step, n_steps=10)
        return score(diagnose(model))

    study = optuna.create_study(pruner=SpectralPruner(ranks=Ranks(n_startup_trials=3)))
    study.optimize(objective, n_trials=len(lrs))
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.PRUNED, TrialState.COMPLETE]
    assert records.reason(study.trials[3]).startswith("rule weights: place 4 of 4 at 20% of the run")
