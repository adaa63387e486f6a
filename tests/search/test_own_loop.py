"""A loop of one's own: what it takes, what happens by itself, and what cannot be forgotten."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ww_opt
from tests import tiny
from tests.training.test_modes import Averaging
from ww_opt.search import records

X, Y = (torch.cat(part) for part in zip(*tiny.batches(), strict=True))
LATE = ww_opt.LateExamples(96, 16, lambda i: (X[i], Y[i]), lambda model, batch: (model(batch[0]), batch[1]))
SPACE = ww_opt.LayerwiseSpace(lr=FloatDistribution(1e-3, 1e-1, log=True), dropout=FloatDistribution(0.0, 0.5))


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))


def loop(trial: optuna.Trial, source: Any = None, factory: Any = torch.optim.AdamW, **options: Any) -> Any:
    torch.manual_seed(0)
    run = ww_opt.Run(trial, build(), **{"n_steps": 20, "interval_steps": 2, **options})
    optimizer = run.optimizer(factory)
    for x, y in run.batches(source):
        if hasattr(optimizer, "train"):
            optimizer.train()
        loss = nn.functional.cross_entropy(run.model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        run.step(loss)
    return run


def trial_of(objective: Callable[[optuna.Trial], float], **options: Any) -> optuna.trial.FrozenTrial:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **options)
    study.optimize(objective, n_trials=1)
    return study.trials[0]


NOP = {"pruner": optuna.pruners.NopPruner()}


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_scaled_run_counts_from_the_loss_of_the_model_as_it_was_built(factor: float) -> None:
    scaled = ww_opt.LayerwiseSpace(init_scale=factor)
    plain, own = (
        trial_of(lambda trial, space=space: loop(trial, space=space, late=LATE, n_steps=2).value(), **NOP)
        for space in (None, scaled)
    )
    assert records.read(own, "first_loss") == pytest.approx(records.read(plain, "first_loss"), rel=1e-5)
    assert own.value != plain.value


def test_the_training_loss_as_guard_needs_the_loss_before_scaling() -> None:
    space = ww_opt.LayerwiseSpace(init_scale=2.0)
    with pytest.raises(ValueError, match=r"`guard=True` counts from .* give `first_loss=`"):
        trial_of(lambda trial: loop(trial, tiny.batches, space=space, guard=True).value(), **NOP)
    assert trial_of(
        lambda trial: loop(trial, tiny.batches, space=space, guard=True, first_loss=1.1).value(), **NOP
    ).value


def test_the_whole_of_it() -> None:
    trial = trial_of(lambda trial: loop(trial, space=SPACE, late=LATE).value(), **NOP)
    looks = records.looks(trial)
    assert [look.step for look in looks] == list(range(2, 21, 2))
    assert {look.step: look.value for look in looks} == trial.intermediate_values
    assert trial.value == looks[-1].value
    assert list(trial.params) == ["lr/0", "dropout/0", "lr/3", "lr/5"]
    assert records.read(trial, "settings")["0"]["dropout"] == trial.params["dropout/0"]
    assert records.read(trial, "optimizer") == "AdamW"
    assert [own["step"] for own in records.read(trial, "late")] == [10, 15, 18]
    assert [math.isnan(look.late_loss) for look in looks] == [True] * 4 + [False] * 6
    assert records.read(trial, "first_loss") == pytest.approx(math.log(3), rel=0.1)


def test_it_judges_as_the_objective_does() -> None:
    task = ww_opt.Task(build, list(tiny.batches()), tiny.loss, late_entry=LATE, schedule=lambda _: 1.0)
    space = ww_opt.LayerwiseSpace(lr=0.01)
    objective = ww_opt.SpectralObjective(task, space, n_steps=20, interval_steps=2, guard="late")
    ours = trial_of(objective, **NOP)
    own = trial_of(lambda trial: loop(trial, space=space, late=LATE).value(), **NOP)
    for found, expected in zip(records.looks(own), records.looks(ours), strict=True):
        assert found.score == expected.score, "looks and judging leave the weights as they would have been"
        assert found.late_loss == expected.late_loss or math.isnan(expected.late_loss)
    first = [records.read(trial, "first_loss") for trial in (own, ours)]
    assert first[0] == pytest.approx(first[1], rel=1e-2), "over examples here, over batches there"
    assert own.value + first[0] == pytest.approx(ours.value + first[1])


@pytest.mark.parametrize("source", [tiny.batches, DataLoader(TensorDataset(X, Y), 16, shuffle=True)])
@pytest.mark.parametrize("guard", [None, True])
def test_a_loader_and_nothing_else_will_do(source: Any, guard: bool | None) -> None:
    trial = trial_of(lambda trial: loop(trial, source, guard=guard, interval_steps=10).value(), **NOP)
    last = records.looks(trial)[-1]
    assert [last.step, trial.params, records.read(trial, "late")] == [20, {}, None]
    first = records.read(trial, "first_loss")
    assert first == pytest.approx(math.log(3), rel=0.2)
    expected = last.score + (math.log(max(last.train_loss, 0.5 * first) / first) if guard else 0.0)
    assert trial.value == pytest.approx(expected)


def test_a_study_that_maximises_gets_the_negative() -> None:
    least, most = (
        trial_of(lambda trial: loop(trial, late=LATE).value(), direction=way, **NOP) for way in ("minimize", "maximize")
    )
    assert most.value == -least.value  # type: ignore[operator]


def test_a_pruner_ends_it() -> None:
    pruner = optuna.pruners.ThresholdPruner(upper=-100.0)
    trial = trial_of(lambda trial: loop(trial, late=LATE).value(), pruner=pruner)
    assert (trial.state, records.read(trial, "steps")) == (TrialState.PRUNED, 2)


def test_late_examples_without_classes_are_judged_by_the_loss() -> None:
    late = ww_opt.LateExamples(96, 16, LATE.take)
    trial = trial_of(lambda trial: loop(trial, late=late, loss=tiny.loss).value(), **NOP)
    assert [len(own["losses"]) for own in records.read(trial, "late")] == [1, 1, 1]
    with pytest.raises(ValueError, match="give `loss=`"):
        trial_of(lambda trial: loop(trial, late=late).value(), **NOP)


@pytest.mark.parametrize("draw", [np.random.rand, random.random, lambda: float(torch.rand(()))])
def test_judging_draws_nothing(draw: Callable[[], float]) -> None:
    def logits(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        draw()
        return LATE.logits(model, batch)  # type: ignore[misc]

    def after(late: ww_opt.LateExamples) -> list[float]:
        np.random.seed(0)
        random.seed(0)
        trial = trial_of(lambda trial: loop(trial, late=late).value(), **NOP)
        return [trial.value or 0.0, float(torch.rand(())), np.random.rand(), random.random()]

    assert after(LATE) == after(ww_opt.LateExamples(96, 16, LATE.take, logits))


def test_a_framework_may_own_the_loop() -> None:
    def objective(trial: optuna.Trial) -> float:
        torch.manual_seed(0)
        run = ww_opt.Run(trial, build(), n_steps=20, space=SPACE, late=LATE, first_loss=1.25)
        optimizer = torch.optim.AdamW(run.groups)
        for x, y in DataLoader(TensorDataset(X, Y), batch_sampler=run.entry):  # type: ignore[arg-type]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(run.model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            run.step(loss.item())
        return run.value()

    trial = trial_of(objective, **NOP)
    assert trial.value == records.looks(trial)[-1].value
    assert records.read(trial, "first_loss") == 1.25
    assert len(records.read(trial, "late")) == 3


def test_looks_find_an_optimizer_in_its_eval_mode_and_modes_as_they_were() -> None:
    seen: list[list[bool]] = []

    def logits(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        modes = [module.training for module in model.modules()]
        seen.append([*modes, own[0].param_groups[0]["train_mode"]] if own else [])
        return LATE.logits(model, batch)  # type: ignore[misc]

    own: list[Averaging] = []

    def factory(groups: Any) -> Averaging:
        own.append(Averaging(groups))
        return own[-1]

    late = ww_opt.LateExamples(96, 16, LATE.take, logits)
    trial = trial_of(lambda trial: loop(trial, late=late, factory=factory).value(), **NOP)
    assert trial.state is TrialState.COMPLETE
    judged = [modes for modes in seen if modes]
    assert len(judged) == 3
    assert not any(map(any, judged))
    assert own[0].param_groups[0]["train_mode"], "the loop's own mode is put back"


class TestMisuse:
    @pytest.fixture
    def trial(self) -> optuna.Trial:
        return optuna.create_study(**NOP).ask()  # type: ignore[arg-type]

    def test_a_step_that_was_not_told(self, trial: optuna.Trial) -> None:
        run = ww_opt.Run(trial, build(), n_steps=20, late=LATE)
        with pytest.raises(RuntimeError, match=r"`run\.step\(loss\)` must follow each optimizer step"):
            for _ in run.batches():
                pass

    def test_a_value_before_the_end(self, trial: optuna.Trial) -> None:
        run = ww_opt.Run(trial, build(), n_steps=20)
        run.step(1.0)
        with pytest.raises(ValueError, match="1 of 20 steps were done"):
            run.value()

    def test_a_step_too_many(self, trial: optuna.Trial) -> None:
        run = ww_opt.Run(trial, build(), n_steps=1)
        run.step(1.0)
        with pytest.raises(ValueError, match="n_steps=1 steps, but one more"):
            run.step(1.0)

    @pytest.mark.parametrize(("late", "source", "words"), [(None, None, "neither"), (LATE, [1], "both")])
    def test_one_source_of_batches(self, trial: optuna.Trial, late: Any, source: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            next(ww_opt.Run(trial, build(), n_steps=2, late=late).batches(source))

    def test_an_empty_source(self, trial: optuna.Trial) -> None:
        with pytest.raises(ValueError, match="its source gave none"):
            next(ww_opt.Run(trial, build(), n_steps=2).batches([]))

    def test_a_setting_that_acts_on_nothing(self, trial: optuna.Trial) -> None:
        run = ww_opt.Run(trial, build(), n_steps=2, space=ww_opt.LayerwiseSpace(momentum=0.5))
        with pytest.raises(ValueError, match="Momentum acts on nothing in Adagrad"):
            run.optimizer(torch.optim.Adagrad)
        assert run.optimizer(torch.optim.AdamW).param_groups[0]["betas"][0] == 0.5

    @pytest.mark.parametrize("loss", [torch.ones(2)])
    def test_a_loss_for_each_example(self, trial: optuna.Trial, loss: Any) -> None:
        with pytest.raises(TypeError, match=r"scalar, but got shape \(2,\)"):
            ww_opt.Run(trial, build(), n_steps=2).step(loss)

    @pytest.mark.parametrize(
        ("options", "kind", "words"),
        [
            ({"n_steps": 2.0}, TypeError, r"n_steps=2\.0"),
            ({"n_steps": 0}, ValueError, "n_steps=0"),
            ({"interval_steps": 30}, ValueError, "interval_steps=30, n_steps=20"),
            ({"space": {}}, TypeError, "`space` must be a ww_opt.LayerwiseSpace, but got a dict"),
            ({"late": [1]}, TypeError, "`late` must be a ww_opt.LateExamples, but got a list"),
            ({"score": "best"}, ValueError, "'best'"),
            ({"guard": "later"}, ValueError, "but got 'later'"),
            ({"guard": "late"}, ValueError, "give `late="),
            ({"first_loss": math.nan}, ValueError, "first_loss=nan"),
        ],
    )
    def test_options(self, trial: optuna.Trial, options: Any, kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words):
            ww_opt.Run(trial, build(), **{"n_steps": 20, "interval_steps": 2, **options})
