"""What both frameworks' trials are made of, without a framework: batches, ranks, and what is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import nn

import ww_opt
from tests import tiny
from ww_opt.integrations.hosted import Asked, EntryBatches, Hosted, Plan, Team, is_settled, steps_of
from ww_opt.search import records

X, Y = (torch.cat(part) for part in zip(*tiny.batches(), strict=True))
SPACE = ww_opt.LayerwiseSpace(lr=FloatDistribution(1e-3, 1e-1, log=True), init_scale=FloatDistribution(0.5, 2.0))


def late(batch_size: int = 16, **options: Any) -> ww_opt.LateExamples:
    return ww_opt.LateExamples(
        96, batch_size, lambda i: (X[i], Y[i]), lambda model, batch: (model(batch[0]), batch[1]), **options
    )


@pytest.mark.parametrize(
    ("n_batches", "accumulate", "n_epochs", "max_steps", "n_steps"),
    [
        (13, 1, 3, -1, 39),
        (13, 2, 3, 0, 21),
        (13, 1, 1.5, -1, 20),
        (13, 1, 3, 10, 10),
        (13, 1, None, 50, 50),
        (None, 4, None, 7, 7),
    ],
)
def test_the_length_of_a_run(
    n_batches: int | None, accumulate: int, n_epochs: float | None, max_steps: int, n_steps: int
) -> None:
    assert steps_of(n_batches, accumulate, n_epochs, max_steps) == n_steps


def test_a_run_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="give `max_steps`"):
        steps_of(None, 1, 3, -1)


class TestBatches:
    def drawn(self, plan: Plan, n_epochs: int = 2, seed: int = 0) -> list[list[int]]:
        done = 0
        batches = EntryBatches(lambda: plan, lambda: done, seed)
        found: list[list[int]] = []
        for _ in range(n_epochs):
            found += list(batches)
            done = len(found) // plan.accumulate
        return found

    def test_one_rank_gets_the_batches_of_the_entry_epoch_after_epoch(self) -> None:
        plan = Plan(12, 6, late=late())
        expected = late().over(12).batches(torch.Generator().manual_seed(0))
        assert self.drawn(plan) == [batch.tolist() for batch in expected]
        assert self.drawn(plan, seed=1) != self.drawn(plan)

    def test_ranks_and_accumulated_batches_share_out_a_step(self) -> None:
        whole = late(32, drop_last=True)
        expected = [batch.tolist() for batch in whole.over(6).batches(torch.Generator().manual_seed(0))]
        ranks = [self.drawn(Plan(6, 6, 2, Team(2, rank), late=whole)) for rank in (0, 1)]
        assert {len(batch) for own in ranks for batch in own} == {8}
        for step, batch in enumerate(expected):
            parts = [part for own in ranks for part in own[2 * step : 2 * step + 2]]
            assert sorted(chain(*parts)) == sorted(batch)

    def test_latecomers_come_no_earlier_than_their_step(self) -> None:
        found = self.drawn(Plan(60, 6, late=late()), n_epochs=10)
        entry = late().over(60)
        for cohort, first in zip(entry.cohorts, entry.steps, strict=True):
            steps = [step for step, batch in enumerate(found) if set(batch) & set(cohort.tolist())]
            assert min(steps) >= first

    def test_an_epoch_begins_where_the_run_stands(self) -> None:
        plan = Plan(12, 6, late=late())
        done = 0
        batches = EntryBatches(lambda: plan, lambda: done)
        fetched = [batch for batch, _ in zip(batches, range(5), strict=False)]
        done = 3  # two were fetched in vain
        assert list(batches)[:2] == fetched[3:5]
        assert len(batches) == 6

    def test_nothing_is_drawn_from_the_global_stream(self) -> None:
        torch.manual_seed(0)
        expected = float(torch.rand(()))
        torch.manual_seed(0)
        self.drawn(Plan(12, 6, late=late()))
        assert float(torch.rand(())) == expected


def study_of(pruner: optuna.pruners.BasePruner) -> optuna.Study:
    return optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))


def trained(hosted: Hosted) -> optuna.TrialPruned | None:
    optimizer = hosted.optimizer(torch.optim.SGD)
    batches = EntryBatches(lambda: hosted.plan, lambda: 0)
    for index in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(hosted.model(X[index]), Y[index])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (ended := hosted.step(loss.detach(), loss)) is not None:
            return ended
    return None


def built() -> nn.Module:
    torch.manual_seed(0)
    return tiny.build_model()


class TestRanks:
    """Rank 0 runs first, and what it said is given to rank 1 in the same order: each asks as often as the other."""

    def both(self, pruner: optuna.pruners.BasePruner) -> tuple[Hosted, Hosted, list[Any]]:
        said: list[Any] = []

        def speak(value: Any) -> Any:
            said.append(value)
            return value

        study = study_of(pruner)
        asked = Asked(SPACE, looks={"interval_steps": 4})
        first = Hosted(study.ask(), built(), Plan(12, 12, 1, Team(2, 0, speak), late()), asked)
        weights = [own.detach().clone() for own in first.model.parameters()]
        ends = [trained(first)]
        heard = iter(said)
        listen: Callable[[Any], Any] = lambda value: next(heard)  # noqa: E731
        second = Hosted(None, built(), Plan(12, 12, 1, Team(2, 1, listen), late()), asked)
        assert all(map(torch.equal, weights, second.model.parameters())), "scaled alike"
        ends.append(trained(second))
        assert next(heard, "all") == "all"
        return first, second, ends

    def test_the_others_have_the_settings_and_no_word(self) -> None:
        first, second, ends = self.both(optuna.pruners.NopPruner())
        assert ends == [None, None]
        assert second.run is None
        assert math.isnan(second.value)
        assert first.value == records.looks(first.trial)[-1].value  # type: ignore[arg-type]
        for own, other in zip(first.groups, second.groups, strict=True):
            assert (own["name"], own["lr"]) == (other["name"], other["lr"])

    def test_all_hear_that_it_is_pruned(self) -> None:
        *_, ends = self.both(optuna.pruners.ThresholdPruner(upper=-100.0))
        assert [type(own) for own in ends] == [optuna.TrialPruned] * 2
        assert str(ends[0]) == str(ends[1]) != ""


def test_a_loss_that_is_no_cross_entropy_is_known_by_its_graph() -> None:
    for loss, in_nats in ((nn.functional.mse_loss, False), (nn.functional.cross_entropy, True)):
        hosted = Hosted(study_of(optuna.pruners.NopPruner()).ask(), built(), Plan(2, 2), Asked(late=False))
        own = loss(hosted.model(X), nn.functional.one_hot(Y, 3).float())
        hosted.step(own.detach(), own)
        assert records.read(hosted.trial, "in_nats") is in_nats  # type: ignore[arg-type]


def test_settings_that_are_fixed_are_trained_and_not_judged() -> None:
    trial = optuna.trial.FixedTrial(
        {"lr/0": 0.01, "lr/2": 0.02, "lr/4": 0.03} | {f"init_scale/{n}": 1.0 for n in (0, 2, 4)}
    )
    assert is_settled(trial)
    assert not is_settled(study_of(optuna.pruners.NopPruner()).ask())
    hosted = Hosted(trial, built(), Plan(2, 2), Asked(SPACE))
    assert [own["lr"] for own in hosted.groups[::2]] == [0.01, 0.02, 0.03]
    assert hosted.step(math.nan) is None
    assert math.isnan(hosted.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"space": {}}, "`space` must be a ww_opt.LayerwiseSpace, but got a dict"),
        ({"late": [0.1]}, "`late` must be True, False or a mapping of options, but got a list"),
        ({"late": {"share": 0.1}}, "`late` takes the options .* but got share"),
        ({"looks": 5}, "`looks` must be a mapping of options, but got a int"),
        ({"looks": {"n_steps": 5}}, "`looks` takes the options .* but got n_steps"),
    ],
)
def test_options(options: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Asked(**options)
