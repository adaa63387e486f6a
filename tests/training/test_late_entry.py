"""Who comes late comes no earlier than said, and nobody is lost."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import ww_opt
from tests import tiny
from ww_opt.reporting.summary import curves
from ww_opt.search import records
from ww_opt.spectral.scores import LATE_SHARE, guard
from ww_opt.training.judging import Judgement, judge, late_loss
from ww_opt.training.late_entry import LateEntry, LateExamples
from ww_opt.training.run import Task, train


def make(**changes: Any) -> LateEntry:
    return LateEntry(**{"n_examples": 100, "batch_size": 7, "n_steps": 200, **changes})


def test_cohorts_have_their_shares_and_are_apart() -> None:
    entry = make(shares=(0.05, 0.1, 0.001))
    assert [len(cohort) for cohort in entry.cohorts] == [5, 10, 1]
    assert len(torch.cat(entry.cohorts).unique()) == 16


def test_nobody_comes_before_his_time_and_all_come_after() -> None:
    entry = make()
    batches = list(entry)
    assert len(batches) == len(entry) == 200
    for cohort, first in zip(entry.cohorts, (100, 150, 180), strict=True):
        before, after = torch.cat(batches[:first]), torch.cat(batches[first:])
        assert not torch.isin(cohort, before).any()
        assert torch.isin(cohort, after).all()
    assert len(torch.cat(batches).unique()) == 100


def test_every_epoch_shows_everyone_present_once() -> None:
    entry = make(n_examples=20, batch_size=6, n_steps=16, shares=(0.2,), times=(0.5,))
    batches = list(entry)
    assert [len(batch) for batch in batches[:6]] == [6, 6, 4, 6, 6, 4]  # 16 are there from the start
    assert len(torch.cat(batches[:3]).unique()) == 16
    # step 8 is the last of an epoch with 4 left; the 4 newcomers join them
    assert [len(batch) for batch in batches[8:14]] == [6, 2, 6, 6, 6, 2]
    assert torch.isin(entry.cohorts[0], torch.cat(batches[8:10])).all()
    assert len(torch.cat(batches[10:14]).unique()) == 20


@settings(max_examples=300, deadline=None)
@given(st.integers(10, 300), st.integers(1, 70), st.integers(1, 60), st.booleans())
def test_no_batch_is_smaller_than_the_loaders_own(n: int, batch_size: int, n_steps: int, drop_last: bool) -> None:
    try:
        entry = LateEntry(n, batch_size, n_steps, shares=(0.1, 0.2, 0.05), drop_last=drop_last)
    except ValueError:
        assert drop_last  # no whole batch of those who are there from the start
        return
    present, left = set(entry.present.tolist()), set[int]()
    smallest = batch_size if drop_last else n % batch_size or batch_size
    for step, batch in enumerate(entry):
        newcomers = {number for cohort in entry.joining(step) for number in cohort.tolist()}
        present |= newcomers
        left |= newcomers if left else set()
        if not left or (drop_last and len(left) < batch_size):
            left = set(present)
        assert min(smallest, len(present)) <= len(batch) <= batch_size + smallest - 1
        shown = set(batch.tolist())
        assert len(shown) == len(batch)
        assert shown <= left  # nobody twice in an epoch, and nobody is left out: the next begins when none is left
        left -= shown


def test_batches_of_one_where_the_loader_makes_none() -> None:
    """The pairs of size and batch that once ended in a batch of one."""
    for n, batch_size in ((500, 8), (1437, 10), (1437, 20), (1500, 8), (1500, 16), (1797, 8), (1797, 16)):
        entry = LateEntry(n, batch_size, 3 * -(-n // batch_size))
        sizes = [len(batch) for batch in entry]
        assert min(sizes) >= n % batch_size
        assert max(sizes) <= batch_size + 2


class TestTheDraw:
    n = 1000

    def orders(self, seed: int) -> dict[str, Any]:
        """What users draw subsets, splits and wrong labels by."""
        import random

        import numpy as np
        from sklearn.model_selection import ShuffleSplit, train_test_split
        from sklearn.utils import shuffle

        shuffled = list(range(self.n))
        random.Random(seed).shuffle(shuffled)
        generator = torch.Generator().manual_seed(seed)
        return {
            "torch": torch.randperm(self.n, generator=torch.Generator().manual_seed(seed)).tolist(),
            "torch, the second draw": [torch.randperm(self.n, generator=generator).tolist() for _ in range(2)][1],
            "torch, random_split": torch.utils.data.random_split(
                range(self.n),  # type: ignore[arg-type]
                [self.n],
                torch.Generator().manual_seed(seed),
            )[0].indices,
            "torch, by rand": torch.rand(self.n, generator=torch.Generator().manual_seed(seed)).argsort().tolist(),
            "numpy": np.random.default_rng(seed).permutation(self.n).tolist(),
            "numpy of old": np.random.RandomState(seed).permutation(self.n).tolist(),
            "numpy, choice": np.random.default_rng(seed).choice(self.n, self.n, replace=False).tolist(),
            "random": shuffled,
            "sklearn": shuffle(range(self.n), random_state=seed),
            "sklearn, split": [*itertools.chain(*train_test_split(range(self.n), random_state=seed))],
            "sklearn, ShuffleSplit": next(ShuffleSplit(1, test_size=0.5, random_state=seed).split(shuffled))[0],
        }

    @pytest.mark.parametrize("seed", [0, 1, 42])
    def test_is_no_usual_one(self, seed: int) -> None:
        cohorts = set(torch.cat(LateEntry(self.n, 10, 100, seed=seed).cohorts).tolist())
        expected = len(cohorts) ** 2 / self.n  # 22.5 +- 4
        for name, order in self.orders(seed).items():
            for part in (order[: len(cohorts)], order[-len(cohorts) :]):
                assert abs(len(cohorts & {int(number) for number in part}) - expected) < 16, name

    def test_is_fixed(self) -> None:
        """Another draw would change every study."""
        assert [cohort.tolist() for cohort in LateEntry(40, 4, 10).cohorts] == [[1, 13], [3, 26], [38, 10]]
        assert not torch.equal(LateEntry(40, 4, 10, seed=1).cohorts[0], LateEntry(40, 4, 10).cohorts[0])


def test_joining_says_when_to_judge() -> None:
    entry = make(n_steps=10, times=(0.25, 0.5, 0.9))
    found = {step: entry.joining(step) for step in range(10)}
    assert [step for step, cohorts in found.items() if cohorts] == [3, 5, 9] == list(entry.steps)
    assert torch.equal(found[5][0], entry.cohorts[1])


@pytest.mark.parametrize("n_steps", [1, 2, 9])
def test_everybody_joins_in_a_run_however_short(n_steps: int) -> None:
    entry = make(n_steps=n_steps)
    joined = [cohort for step in range(n_steps) for cohort in entry.joining(step)]
    assert len(joined) == len(entry.cohorts)


def test_drop_last_leaves_out_small_batches_and_nobody_for_good() -> None:
    entry = make(n_examples=65, batch_size=8, n_steps=200, drop_last=True)
    batches = list(entry)
    assert {len(batch) for batch in batches} == {8}
    assert len(torch.cat(batches).unique()) == 65
    assert min(len(batch) for batch in make(n_examples=65, batch_size=8, n_steps=200)) < 8
    with pytest.raises(ValueError, match=r"whole batch.*of 85 batch_size=90 leaves none"):
        make(batch_size=90, drop_last=True)


def test_labels_that_torch_ignores_are_not_judged() -> None:
    logits = torch.eye(4).repeat(2, 1)
    labels = torch.tensor([0, 1, 2, 3, -100, -100, -100, -100])
    assert judge(logits, labels) == judge(logits[:4], labels[:4])
    with pytest.raises(ValueError, match="all 4 are -100"):
        judge(logits[4:], labels[4:])


def test_order_follows_the_global_generator_and_cohorts_the_seed() -> None:
    torch.manual_seed(0)
    first = torch.cat(list(make()))
    assert not torch.equal(torch.cat(list(make())), first)
    torch.manual_seed(0)
    assert torch.equal(torch.cat(list(make())), first)
    assert not torch.equal(make(seed=1).cohorts[0], make().cohorts[0])


def test_it_is_a_batch_sampler() -> None:
    entry = make(n_steps=4)
    loader = DataLoader(list(range(100)), batch_sampler=entry)
    assert [len(batch) for batch in loader] == [7, 7, 7, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_examples": 0}, "n_examples=0"),
        ({"shares": (0.05,)}, "a share and a time"),
        ({"times": (0.5, 0.75, 1.0)}, r"lie in \(0, 1\)"),
        ({"times": (0.5, 0.5, 0.9)}, "must rise"),
        ({"shares": (0.4, 0.4, 0.3)}, "lower `shares`"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("option", ["n_examples", "batch_size", "n_steps", "seed"])
def test_numbers_are_whole(option: str) -> None:
    for value in (7.0, None):
        with pytest.raises(TypeError, match=f"`{option}` must be a whole number"):
            make(**{option: value})


def logits_of(labels: torch.Tensor, right: float, sharpness: float) -> torch.Tensor:
    """Logits that predict a share of the labels, and are as sure of the wrong ones."""
    generator = torch.Generator().manual_seed(1)
    shown = labels.clone()
    wrong = torch.rand(len(labels), generator=generator) > right
    shown[wrong] = (shown[wrong] + 1) % 4
    return sharpness * nn.functional.one_hot(shown, 4).double()


class TestJudgement:
    labels = torch.arange(200) % 4

    def test_of_chance(self) -> None:
        own = judge(torch.zeros(200, 4), self.labels, 7)
        assert (own.step, own.n, own.accuracy) == (7, 200, 0.25)
        assert late_loss([own]) == pytest.approx(math.log(4) - 0.5 * 0.25)

    def test_over_confidence_costs_nothing(self) -> None:
        calm, sure = (late_loss([judge(logits_of(self.labels, 0.7, own), self.labels)]) for own in (2.0, 40.0))
        assert sure == pytest.approx(calm, abs=2e-3)
        assert late_loss([judge(logits_of(self.labels, 0.9, 40.0), self.labels)]) < sure

    def test_cohorts_weigh_by_their_size(self) -> None:
        few = judge(logits_of(self.labels[:8], 0.0, 5.0), self.labels[:8])
        many = judge(logits_of(self.labels, 1.0, 5.0), self.labels)
        both = late_loss([few, many])
        assert late_loss([many]) < both < late_loss([few])
        assert both - late_loss([many]) < late_loss([few]) - both

    def test_many_labels_an_example(self) -> None:
        logits = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(2))
        labels = torch.arange(30).view(5, 6) % 4
        assert judge(logits, labels) == judge(logits.flatten(0, 1), labels.flatten())

    def test_without_judgements_or_numbers(self) -> None:
        assert math.isnan(late_loss([]))
        assert late_loss([judge(torch.full((8, 4), math.nan), self.labels[:8])]) == math.inf
        assert late_loss([Judgement(3, 10, math.nan, (0.4,)), Judgement(5, 30, math.nan, (0.8,))]) == pytest.approx(0.7)

    def test_survives_json(self) -> None:
        for own in (judge(torch.zeros(4, 4), self.labels[:4], 3), Judgement(3, 10, math.nan, (0.4, math.inf))):
            kept = json.loads(json.dumps(asdict(own)).replace("NaN", "null").replace("Infinity", "null"))
            read = Judgement.from_record(kept)
            assert (read.step, read.n) == (own.step, own.n)
            assert late_loss([read]) == pytest.approx(late_loss([own]))


class TestFromLoader:
    def test_takes_what_the_loader_would(self) -> None:
        data = TensorDataset(torch.arange(12.0).view(12, 1), torch.arange(12))
        late = LateExamples.from_loader(DataLoader(data, batch_size=4, shuffle=True))
        x, y = late.take(torch.tensor([3, 9]))
        assert (x.flatten().tolist(), y.tolist()) == ([3.0, 9.0], [3, 9])
        assert (late.n_examples, late.batch_size, late.logits) == (12, 4, None)
        assert late.over(50).batch_size == 4

    def test_takes_drop_last(self) -> None:
        late = LateExamples.from_loader(DataLoader(list(range(50)), batch_size=4, shuffle=True, drop_last=True))
        assert late.over(50).drop_last

    def test_takes_options(self) -> None:
        loader = DataLoader(list(range(50)), batch_size=4, shuffle=True, drop_last=True)
        late = LateExamples.from_loader(loader, seed=3, class_dim=1, drop_last=False)
        assert (late.seed, late.class_dim, late.drop_last) == (3, 1, False)
        assert torch.equal(late.over(9).cohorts[0], LateEntry(50, 4, 9, seed=3).cohorts[0])
        with pytest.raises(TypeError, match="sede"):
            LateExamples.from_loader(loader, sede=3)

    def test_takes_several_at_once_where_the_dataset_can(self) -> None:
        class Table(Dataset[int]):
            def __len__(self) -> int:
                return 30

            def __getitem__(self, index: int) -> int:
                raise AssertionError(index)

            def __getitems__(self, index: list[int]) -> list[int]:
                return [10 * own for own in index]

        late = LateExamples.from_loader(DataLoader(Table(), batch_size=4, shuffle=True, collate_fn=tuple))
        assert late.take(torch.tensor([3, 9])) == (30, 90)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sampler": WeightedRandomSampler([1.0] * 30, 30)}, "a WeightedRandomSampler"),
            ({"sampler": SubsetRandomSampler(range(9))}, "a SubsetRandomSampler"),
            ({"sampler": DistributedSampler(list(range(30)), num_replicas=2, rank=0)}, "a DistributedSampler"),
            ({"sampler": RandomSampler(range(30), replacement=True)}, "draws 30 of 30 with replacement"),
            ({"sampler": RandomSampler(range(30), num_samples=10)}, "draws 10 of 30:"),
            ({"sampler": RandomSampler(range(20))}, "draws 20 of 30:"),
            ({"sampler": SequentialSampler(range(20))}, "draws 20 of 30:"),
            ({"batch_sampler": [[0, 1], [2, 3]]}, "batch_size"),
            ({"batch_size": None}, "batch_size"),
        ],
    )
    def test_refuses_what_would_be_left_out(self, options: dict[str, Any], message: str) -> None:
        data = list(range(30))
        with pytest.raises(ValueError, match=message) as told:
            LateExamples.from_loader(DataLoader(data, **options))
        # the remedies that are printed work
        assert "`shuffle=True` instead" in str(told.value)
        assert LateExamples.from_loader(DataLoader(data, batch_size=3, shuffle=True)).n_examples == 30
        assert LateExamples(30, 3, list).over(9).n_examples == 30
        part = Subset(data, range(9))  # type: ignore[arg-type]
        late = LateExamples.from_loader(DataLoader(part, batch_size=3, shuffle=True, collate_fn=list))
        assert late.take(torch.tensor([1, 2])) == [1, 2]

    def test_a_generator_that_is_left_out_is_told(self) -> None:
        loader = DataLoader(list(range(9)), batch_size=3, shuffle=True, generator=torch.Generator())
        with pytest.warns(UserWarning, match="generator is left out"):
            LateExamples.from_loader(loader)

    def test_refuses_examples_without_numbers(self) -> None:
        class Stream(IterableDataset[int]):
            def __iter__(self) -> Any:
                return iter(range(3))

        class Sized(Stream):
            def __len__(self) -> int:
                return 3

        for stream in (Stream(), Sized()):
            with pytest.raises(TypeError, match=r"by number, but those of .* have none.*guard=True"):
                LateExamples.from_loader(DataLoader(stream, batch_size=2))
        named = {"cat": 0, "dog": 1}
        with pytest.raises(TypeError, match=r"keys of this dict are not 0 to 1.*list of its values"):
            LateExamples.from_loader(DataLoader(named, batch_size=2))  # type: ignore[arg-type]
        values = list(named.values())
        assert LateExamples.from_loader(DataLoader(values, batch_size=2)).n_examples == 2  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="got list"):
            LateExamples.from_loader([1, 2])  # type: ignore[arg-type]

    def test_callables_are_callable(self) -> None:
        with pytest.raises(TypeError, match=r"take must be callable, but got Tensor"):
            LateExamples(9, 3, torch.zeros(9))  # type: ignore[arg-type]


def late_task(seen: list[torch.Tensor], logits: Any) -> Task:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(100, 40, generator=generator)
    y = x[:, :3].argmax(dim=1)
    index = torch.arange(100)

    def take(numbers: torch.Tensor) -> Any:
        return x[numbers], y[numbers], index[numbers]

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if model.training:
            seen.append(batch[2])
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    late = LateExamples(100, 16, take, logits, shares=(0.1, 0.05), times=(0.5, 0.8))
    return replace(tiny.TASK, loss=loss, late_entry=late)


def both(model: nn.Module, batch: Any) -> Any:
    assert not model.training
    return model(batch[0]), batch[1]


@pytest.mark.parametrize("logits", [both, None])
def test_training_judges_before_it_learns(logits: Any) -> None:
    seen: list[torch.Tensor] = []
    task = late_task(seen, logits)
    torch.manual_seed(0)
    model = tiny.build_model()
    groups = [{"params": list(model.parameters()), "lr": 0.01}]
    checkpoints = [
        (own.step, [(j.step, j.n) for j in own.late])
        for own in train(model, task, groups, n_steps=40, interval_steps=10)
    ]
    assert checkpoints == [(10, []), (20, [(20, 10)]), (30, [(20, 10)]), (40, [(20, 10), (32, 5)])]
    first, second = task.late_entry.over(40).cohorts if task.late_entry else ((), ())
    assert len(seen) == 40
    assert not torch.isin(torch.cat(seen[:20]), first).any()
    assert torch.isin(first, torch.cat(seen[20:])).all()
    assert not torch.isin(torch.cat(seen[:32]), second).any()


def test_what_judging_draws_changes_no_step() -> None:
    def drawing(model: nn.Module, batch: Any) -> Any:
        torch.rand(3)
        return both(model, batch)

    found = []
    for logits, interval in ((both, 10), (drawing, 10), (drawing, 7)):
        torch.manual_seed(0)
        model = tiny.build_model()
        groups = [{"params": list(model.parameters()), "lr": 0.01}]
        *_, last = train(model, late_task([], logits), groups, n_steps=40, interval_steps=interval)
        found.append((last.train_loss, [own.losses for own in last.late]))
    assert found[0] == found[1] == found[2]


class TestObjective:
    def test_the_late_guard_goes_by_what_they_say(self) -> None:
        objective = replace(tiny.OBJECTIVE, task=late_task([], both), guard="late")
        study = optuna.create_study(pruner=optuna.pruners.NopPruner())
        study.optimize(objective, n_trials=1)
        looks = records.looks(study.trials[0])
        first_loss = records.read(study.trials[0], "first_loss")
        assert [math.isnan(look.late_loss) for look in looks] == [True, False, False, False]
        assert looks[0].value == pytest.approx(looks[0].score + guard(looks[0].train_loss, first_loss))
        last = looks[-1]
        assert last.value == pytest.approx(LATE_SHARE * last.score + last.late_loss - first_loss)
        assert 0 <= last.late_accuracy <= 1
        assert "late_loss" in {name for name, _ in curves(study.trials[0])}

    def test_without_the_guard_nobody_comes_late(self) -> None:
        seen: list[torch.Tensor] = []
        values = []
        for task in (late_task(seen, both), replace(late_task([], both), late_entry=None)):
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
            study.optimize(replace(tiny.OBJECTIVE, task=replace(task, loss=tiny.loss), guard=True), n_trials=1)
            values.append(study.best_value)
        assert values[0] == values[1]

    def test_mistakes_are_told(self) -> None:
        with pytest.raises(ValueError, match=r"needs the examples by number.*LateExamples"):
            replace(tiny.OBJECTIVE, guard="late")
        with pytest.raises(ValueError, match="but got 'always'"):
            replace(tiny.OBJECTIVE, guard="always")  # type: ignore[arg-type]

    def test_a_loop_of_ones_own(self) -> None:
        def objective(trial: optuna.Trial) -> float:
            model = tiny.build_model()
            ww_opt.report_late(trial, [judge(torch.zeros(8, 3), torch.arange(8) % 3, 5)])
            guarded = ww_opt.SCORES["default"].guarded()
            return ww_opt.report(trial, model, 6, train_loss=1.0, n_steps=10, score=guarded)

        study = optuna.create_study()
        study.optimize(objective, n_trials=1)
        look = records.looks(study.trials[0])[0]
        assert look.late_loss == pytest.approx(math.log(3) - 0.5 * 3 / 8)
        assert look.value == pytest.approx(LATE_SHARE * look.score + look.late_loss - math.log(10))

    def test_networks_too_narrow_for_spectra_are_judged_by_it_alone(self) -> None:
        """Wherever the training loss judges alone they are refused, as before."""

        def narrow() -> nn.Module:
            return nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))

        task = replace(late_task([], both), build_model=narrow)
        study = optuna.create_study(pruner=optuna.pruners.NopPruner())
        study.optimize(replace(tiny.OBJECTIVE, task=task, guard="late"), n_trials=1)
        looks, first_loss = records.looks(study.trials[0]), records.read(study.trials[0], "first_loss")
        assert all(math.isnan(look.score) for look in looks)
        assert looks[0].value == pytest.approx(guard(looks[0].train_loss, first_loss))
        assert looks[-1].value == pytest.approx(looks[-1].late_loss - first_loss)
        assert study.trials[0].value == looks[-1].value
        for other in (True, False):
            plain = replace(tiny.OBJECTIVE, task=replace(task, loss=tiny.loss), guard=other)
            with pytest.raises(ValueError, match="at least 32 wide"):
                optuna.create_study().optimize(plain, n_trials=1)

    @pytest.mark.parametrize("shift", [0.0, -4.0])
    def test_the_unit_of_the_loss_does_not_matter(self, shift: float) -> None:
        """Metres or kilometres, and losses below 0 as logarithms of densities have them."""
        values = []
        for unit in (1.0, 1e-3, 1e3):

            def loss(model: nn.Module, batch: Any, unit: float = unit) -> torch.Tensor:
                return unit * ((model(batch[0]) - batch[0][:, :3]).square().mean() + shift)

            task = replace(late_task([], None), loss=loss, optimizer=partial(torch.optim.AdamW, eps=1e-14))
            for kind in ("late", True):
                study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
                study.optimize(replace(tiny.OBJECTIVE, task=task, guard=kind), n_trials=1)
                values.append(study.best_value)
                assert records.read(study.trials[0], "in_nats") is False
                first, last = records.read(study.trials[0], "first_loss"), records.looks(study.trials[0])[-1]
                if kind is True:  # no floor: the fit has come below half of the first loss
                    assert last.value == pytest.approx(last.score + guard(last.train_loss, first, in_nats=False))
                    assert last.train_loss < 0.5 * abs(first)
        assert values[2:] == pytest.approx([values[0], values[1]] * 2, rel=1e-3)

    def test_own_loops_of_other_losses_need_the_first_loss(self) -> None:
        def objective(trial: optuna.Trial) -> float:
            ww_opt.report_late(trial, [Judgement(5, 8, math.nan, (0.5,))])
            guarded = ww_opt.SCORES["default"].guarded()
            return ww_opt.report(trial, tiny.build_model(), 6, train_loss=1.0, n_steps=10, score=guarded)

        with pytest.raises(ValueError, match="first_loss"):
            optuna.create_study().optimize(objective, n_trials=1)
