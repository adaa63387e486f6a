"""One trial: what it records and reports, how it ends, and what it never looks at."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.testing.pruners import DeterministicPruner
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

import ww_opt
from tests import tiny
from ww_opt import LayerwiseSpace, SpectralObjective
from ww_opt.search import records
from ww_opt.search.objective import _tell_of_threads
from ww_opt.spectral.scores import SCORES, guard, named_score

PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=1),
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=1),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=20, reduction_factor=4),
    "threshold": lambda: optuna.pruners.ThresholdPruner(upper=0.9),
    "patient": lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_startup_trials=1), patience=1),
}
SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=2),
    "gp": lambda: optuna.samplers.GPSampler(seed=1, n_startup_trials=2),
    "random": lambda: optuna.samplers.RandomSampler(seed=1),
    "genetic": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=2),
}


class OddPruner(BasePruner):
    """Prunes every other trial in mid-training, and would prune all of them at their end."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.last_step == tiny.N_STEPS or (trial.number % 2 == 1 and trial.last_step == tiny.N_STEPS // 2)


def by_hand(trial: optuna.Trial) -> float:
    """An objective of the user's own, with the three lines in it."""
    torch.manual_seed(0)
    model = tiny.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    for epoch in range(4):
        for batch in tiny.batches():
            optimizer.zero_grad()
            loss = tiny.loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        ww_opt.report(trial, model, epoch, train_loss=loss.item())
    return ww_opt.score(model)


def study_of(pruner: BasePruner | None = None, sampler: BaseSampler | None = None) -> optuna.Study:
    return optuna.create_study(
        study_name="fixed, since Hyperband hashes it",
        pruner=pruner,
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
    )


def replayed(trial: optuna.Trial, before: FrozenTrial) -> float:
    """Report what an earlier trial reported, without anything of ours; at the end of the run nobody is asked."""
    for step, value in before.intermediate_values.items():
        trial.report(value, step)
        if step < tiny.N_STEPS and trial.should_prune():
            raise optuna.TrialPruned
    return float(before.values[0])


def one_trial(objective: Callable[[optuna.Trial], float], pruner: BasePruner | None = None) -> FrozenTrial:
    study = study_of(pruner or optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=1)
    return study.trials[0]


def with_loss(loss: Callable[[nn.Module, Any], Tensor]) -> SpectralObjective:
    return replace(tiny.OBJECTIVE, task=replace(tiny.TASK, loss=loss))


@pytest.mark.parametrize("objective", [tiny.OBJECTIVE, by_hand], ids=["objective", "three lines"])
class TestHost:
    """Optuna's own, unchanged, with both forms."""

    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    @pytest.mark.parametrize("name", PRUNERS)
    def test_pruners(self, objective: Callable[[optuna.Trial], float], name: str) -> None:
        study = study_of(PRUNERS[name]())
        study.optimize(objective, n_trials=6)
        plain = study_of(PRUNERS[name]())
        plain.optimize(lambda trial: replayed(trial, study.trials[trial.number]), n_trials=6)
        assert [trial.state for trial in study.trials] == [trial.state for trial in plain.trials]
        assert TrialState.PRUNED in {trial.state for trial in study.trials} or name == "patient"
        for trial in study.trials:
            assert [look.step for look in records.looks(trial)] == list(trial.intermediate_values)
            expected = f"{type(study.pruner).__name__} at step {trial.last_step}"
            assert records.reason(trial) == (expected if trial.state is TrialState.PRUNED else "")

    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_samplers(self, objective: Callable[[optuna.Trial], float], name: str) -> None:
        study = study_of(sampler=SAMPLERS[name]())
        study.optimize(objective, n_trials=4)
        assert len({trial.value for trial in study.trials}) > 1
        assert len({tuple(trial.params.values()) for trial in study.trials}) == 4

    def test_a_pruner_that_says_so_ends_the_trial_at_its_first_look(
        self, objective: Callable[[optuna.Trial], float]
    ) -> None:
        trial = one_trial(objective, DeterministicPruner(True))
        assert trial.state is TrialState.PRUNED
        assert len(records.looks(trial)) == len(trial.intermediate_values) == 1

    def test_a_fixed_trial_runs_it_without_a_study(self, objective: Callable[[Any], float]) -> None:
        params = {f"lr/{name}": 0.01 for name in "024"} | {"lr": 0.01}
        assert math.isfinite(objective(optuna.trial.FixedTrial(params)))


def test_every_look_is_recorded_as_it_was_reported() -> None:
    trial = one_trial(tiny.OBJECTIVE)
    looks = records.looks(trial)
    assert [look.step for look in looks] == [5, 10, 15, 20]
    assert {look.n_steps for look in looks} == {20}
    assert {look.step: look.value for look in looks} == trial.intermediate_values
    assert trial.value == looks[-1].value == looks[-1].score
    assert [layer.name for layer in looks[-1].layers] == ["0", "2", "4"]
    assert looks[-1].train_loss < looks[0].train_loss
    assert {f"lr/{label}": own["lr"] for label, own in records.read(trial, "settings").items()} == trial.params


def test_the_value_is_the_score_of_the_trained_model() -> None:
    models: list[nn.Module] = []
    trial = one_trial(replace(tiny.OBJECTIVE, on_trained=lambda _, model: models.append(model)))
    assert trial.value == ww_opt.score(models[0])


def test_the_same_settings_give_the_same_value_whatever_came_before() -> None:
    study = study_of()
    params = {f"lr/{name}": 0.03 for name in "024"}
    study.enqueue_trial(params)
    study.optimize(tiny.OBJECTIVE, n_trials=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    study.enqueue_trial(params)
    study.optimize(tiny.OBJECTIVE, n_trials=1)
    assert study.trials[0].intermediate_values == study.trials[1].intermediate_values
    assert torch.equal(torch.get_rng_state(), state), "the caller's random stream is his own"


def test_another_seed_gives_other_weights() -> None:
    params = {f"lr/{name}": 0.03 for name in "024"}
    values = [replace(tiny.OBJECTIVE, seed=seed)(optuna.trial.FixedTrial(params)) for seed in (0, 1)]  # type: ignore[arg-type]
    assert values[0] != values[1]


def test_the_guard_adds_what_the_training_loss_says() -> None:
    trial = one_trial(replace(tiny.OBJECTIVE, guard=True))
    first_loss = records.read(trial, "first_loss")
    assert first_loss == pytest.approx(math.log(3), rel=0.1)
    for look in records.looks(trial):
        assert look.value - look.score == pytest.approx(guard(look.train_loss, first_loss))
        assert look.value < look.score


def test_a_target_that_is_none_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ValueError, match=r"`target` must be one of .* but got target='speech'"):
        replace(tiny.OBJECTIVE, score="alpha:speech")


@pytest.mark.parametrize("name", [*SCORES, "alpha:3.5"])
def test_a_score_brings_its_direction(name: str) -> None:
    objective = replace(tiny.OBJECTIVE, score=name)
    assert objective.direction == named_score(name).direction
    study = optuna.create_study(direction=objective.direction, pruner=optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=1)
    assert math.isfinite(study.best_value)
    wrong = "minimize" if objective.direction == "maximize" else "maximize"
    with pytest.raises(ValueError, match=f"must {objective.direction} like its objective.*created to {wrong}"):
        optuna.create_study(direction=wrong).optimize(objective, n_trials=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": tiny.build_model}, "`task` must be a ww_opt.Task, but got a function"),
        ({"space": {}}, "`space` must be a ww_opt.LayerwiseSpace, but got a dict"),
        ({"n_steps": 10.5}, "n_steps=10.5"),
        ({"interval_steps": 2.5}, "interval_steps=2.5"),
    ],
)
def test_bad_types_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        replace(tiny.OBJECTIVE, **changes)


def test_the_optimizer_that_was_built_is_remembered_whatever_built_it() -> None:
    def build(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1)

    objective = replace(tiny.OBJECTIVE, task=replace(tiny.TASK, optimizer=build))
    assert records.read(one_trial(objective), "optimizer") == "SGD"


class TestStreams:
    """What belongs to the process is not taken for the trial's own."""

    def test_threads_take_turns_and_are_told_so_once(self, caplog: pytest.LogCaptureFixture) -> None:
        _tell_of_threads.cache_clear()
        set_streams(5)
        expected = drawn()
        set_streams(5)
        values = []
        with caplog.at_level(logging.WARNING, logger="ww_opt"):
            for n_jobs in (1, 3):
                study = study_of(optuna.pruners.NopPruner())
                study.optimize(replace(SHUFFLED, guard=True), n_trials=4, n_jobs=n_jobs)
                values.append({trial.value for trial in study.trials})
        assert values[0] == values[1]
        assert len(values[0]) == 1
        assert drawn() == expected
        assert caplog.text.count("ww-opt run --workers N") == 1

    def test_every_stream_is_seeded(self) -> None:
        values = []
        for seed in (0, 0, 1):
            set_streams(seed + 7)
            values.append(one_trial(replace(SHUFFLED, guard=True)).value)
            np.random.rand()
        assert values[0] == values[1] == values[2]
        assert one_trial(replace(SHUFFLED, guard=True, seed=1)).value != values[0]

    @pytest.mark.parametrize("draw", [np.random.rand, random.random, lambda: float(torch.rand(()))])
    def test_looks_draw_nothing(self, draw: Callable[[], float]) -> None:
        def noisy(model: nn.Module, batch: Any) -> Tensor:
            return tiny.loss(model, batch) * (0.5 + draw())

        objective = with_loss(noisy)
        often, once = (
            one_trial(replace(objective, space=SPACE, interval_steps=interval)).value for interval in (5, 20)
        )
        assert often == once

    @pytest.mark.parametrize("shared", [True, False])
    def test_weights_that_a_trial_trained_are_not_fresh(self, shared: bool) -> None:
        model = tiny.build_model()
        inner = nn.Linear(40, 48)

        def build() -> nn.Module:
            return nn.Sequential(inner, nn.ReLU(), nn.Linear(48, 48), nn.Linear(48, 3)) if shared else model

        study = study_of()
        objective = replace(tiny.OBJECTIVE, space=SPACE, task=replace(tiny.TASK, build_model=build))
        study.optimize(objective, n_trials=1)
        with pytest.raises(ValueError, match=r"of its weights \(0\.weight.*trained in an earlier one.*deepcopy"):
            study.optimize(objective, n_trials=1)
        copied = replace(objective, task=replace(tiny.TASK, build_model=lambda: copy.deepcopy(build())))
        study.optimize(copied, n_trials=2)

    def test_a_frozen_part_may_be_shared(self) -> None:
        inner = nn.Linear(40, 48).requires_grad_(False)
        task = replace(
            tiny.TASK, build_model=lambda: nn.Sequential(inner, nn.ReLU(), nn.Linear(48, 48), nn.Linear(48, 3))
        )
        study_of().optimize(replace(tiny.OBJECTIVE, task=task, space=SPACE), n_trials=2)

    def test_a_builder_must_return_a_model(self) -> None:
        task = replace(tiny.TASK, build_model=lambda: None)  # type: ignore[arg-type,return-value]
        with pytest.raises(TypeError, match="returned a NoneType: end it with `return model`"):
            one_trial(replace(tiny.OBJECTIVE, task=task))


def set_streams(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def shuffled() -> Any:
    """Batches that every stream has a hand in."""
    x, y = (torch.cat(part) for part in zip(*tiny.batches(), strict=True))
    for index in np.array_split(np.random.permutation(96), 3):
        yield x[index] + 0.1 * torch.randn(len(index), 40) + 0.1 * random.random(), y[index]


SPACE = LayerwiseSpace(lr=0.01)
SHUFFLED = SpectralObjective(replace(tiny.TASK, batches=shuffled), SPACE, n_steps=20, interval_steps=5)


class TestRetries:
    """Optuna copies the user attributes of a failed trial to its retry."""

    def test_records_of_an_earlier_attempt_are_not_taken_for_its_own(self) -> None:
        study = study_of(optuna.pruners.NopPruner())
        study.optimize(replace(tiny.OBJECTIVE, guard=True), n_trials=1)
        before = study.trials[0]
        look = before.user_attrs["ww_opt:look:5"]
        stale = {**before.user_attrs, "ww_opt:reason": "out of memory", "ww_opt:look:900": look}
        study.enqueue_trial(before.params, user_attrs={**stale, "mine": 1, "ww_opt:late": [{"step": 1}]})
        waiting = study.trials[1]
        assert (records.looks(waiting), records.reason(waiting), records.read(waiting, "late")) == ((), "", None)
        study.optimize(replace(tiny.OBJECTIVE, guard=True, seed=1), n_trials=1)
        after = study.trials[1]
        assert [look.step for look in records.looks(after)] == [5, 10, 15, 20]
        assert records.reason(after) == ""
        assert after.user_attrs["mine"] == 1
        assert records.read(after, "first_loss") != records.read(before, "first_loss")
        last = records.looks(after)[-1]
        assert last.value - last.score == pytest.approx(guard(last.train_loss, records.read(after, "first_loss")))

    def test_nor_in_a_loop_of_ones_own(self) -> None:
        study = study_of()
        study.optimize(by_hand, n_trials=1)
        study.enqueue_trial(study.trials[0].params, user_attrs=study.trials[0].user_attrs)
        trial = study.ask()
        ww_opt.report(trial, tiny.build_model(), 2)
        assert [look.step for look in records.looks(trial)] == [2]

    def test_an_attempt_that_fails_before_its_first_record_has_none(self) -> None:
        study = study_of()
        study.optimize(by_hand, n_trials=1)
        study.enqueue_trial({}, user_attrs=study.trials[0].user_attrs)
        study.optimize(lambda trial: 1 / 0, n_trials=1, catch=ZeroDivisionError)
        assert records.looks(study.trials[1]) == ()

    def test_a_trial_that_was_copied_to_another_study_keeps_its_own(self) -> None:
        study, other = study_of(), study_of()
        study.optimize(by_hand, n_trials=2)
        other.add_trial(study.trials[1])
        assert len(records.looks(other.trials[0])) == 4


class TestDivergence:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_that_was_no_number_before_training_is_told_so(self, bad: float) -> None:
        trial = one_trial(with_loss(lambda model, batch: tiny.loss(model, batch) * bad))
        assert trial.state is TrialState.PRUNED
        assert f", and was {bad} before the first one: look for NaN" in records.reason(trial)

    def test_an_error_that_comes_of_it_prunes_with_its_words(self) -> None:
        def checked(model: nn.Module, batch: Any) -> Tensor:
            logits = model(batch[0])
            torch.distributions.Normal(logits, 1.0, validate_args=True)  # dynamo switches the default off
            return (logits**2).mean()

        task = replace(tiny.TASK, loss=checked, optimizer=torch.optim.SGD)
        trial = one_trial(replace(tiny.OBJECTIVE, task=task, space=LayerwiseSpace(lr=1e30)))
        assert trial.state is TrialState.PRUNED
        assert records.reason(trial).startswith("training diverged by step 1: it raised ValueError: Expected parameter")
        assert records.read(trial, "steps") == 1

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_loss_that_is_not_finite_prunes_with_the_reason_and_the_study_goes_on(self, bad: float) -> None:
        calls = 0

        def diverging(model: nn.Module, batch: Any) -> Tensor:
            nonlocal calls
            calls += 1
            is_third_stretch = 20 <= calls <= 24  # each is 5 steps, with 3 batches of the clean loss before and after
            return tiny.loss(model, batch) * (bad if is_third_stretch else 1.0)

        study = study_of()
        study.optimize(with_loss(diverging), n_trials=3)
        first = study.trials[0]
        assert first.state is TrialState.PRUNED
        assert "training loss became" in records.reason(first)
        assert "diverged" in records.reason(first)
        assert records.read(first, "steps") == 15
        assert [look.step for look in records.looks(first)] == [5, 10]
        assert [trial.state for trial in study.trials[1:]] == [TrialState.COMPLETE] * 2

    def test_a_divergence_that_only_the_running_loss_saw_counts(self) -> None:
        calls = 0

        def once(model: nn.Module, batch: Any) -> Tensor:
            nonlocal calls
            calls += model.training
            return tiny.loss(model, batch) + (math.inf if model.training and calls == 3 else 0.0)

        trial = one_trial(with_loss(once))
        assert trial.state is TrialState.PRUNED
        assert records.reason(trial) == "the training loss became inf at step 5: training diverged"

    def test_weights_that_are_not_finite_prune_even_where_the_loss_is(self) -> None:
        model = tiny.build_model()
        next(model.parameters()).data[0, 0] = math.nan

        def objective(trial: optuna.Trial) -> float:
            return ww_opt.report(trial, model, 7)

        trial = one_trial(objective)
        assert trial.state is TrialState.PRUNED
        assert records.reason(trial) == "the weights of ['0'] are not finite at step 7"
        assert records.read(trial, "steps") == 7
        assert [look.step for look in records.looks(trial)] == [7], "what was seen stays on record"

    def test_a_score_that_is_undefined_prunes_and_says_which(self) -> None:
        model = tiny.build_model()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)

        def objective(trial: optuna.Trial) -> float:
            return ww_opt.report(trial, model, 1, score="mean_alpha")

        trial = one_trial(objective)
        assert trial.state is TrialState.PRUNED
        assert records.reason(trial) == "the score 'mean_alpha' is nan at step 1"

    def test_only_models_that_ran_to_their_end_are_handed_over(self) -> None:
        handed: list[int] = []
        objective = replace(tiny.OBJECTIVE, on_trained=lambda trial, _: handed.append(trial.number))
        study = study_of(OddPruner())
        study.optimize(objective, n_trials=4)
        assert handed == [0, 2]
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"] * 2, "at its end it is complete"


def refusing(model: nn.Module) -> float:
    raise AssertionError("the sealed test set was opened")


def test_the_sealed_test_set_is_never_opened() -> None:
    calls: list[nn.Module] = []

    def recording(model: nn.Module) -> float:
        calls.append(model)
        return 0.0

    values = []
    for evaluate in (None, recording, refusing):
        study = study_of(ww_opt.SpectralPruner(optuna.pruners.MedianPruner(n_startup_trials=1)))
        study.optimize(replace(tiny.OBJECTIVE, task=replace(tiny.TASK, evaluate=evaluate), guard=True), n_trials=4)
        values.append([(trial.state, trial.intermediate_values) for trial in study.trials])
    assert values[0] == values[1] == values[2]
    assert not calls


def test_what_the_users_code_raises_stays_what_it_is() -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        one_trial(with_loss(broken))


class TestErrors:
    def test_an_unknown_score_is_refused_before_anything_runs(self) -> None:
        with pytest.raises(ValueError, match=r"default.*but got 'best'"):
            replace(tiny.OBJECTIVE, score="best")
        with pytest.raises(ValueError, match=r"default.*but got 'best'"):
            ww_opt.report(study_of().ask(), tiny.build_model(), 1, train_loss=math.nan, score="best")

    @pytest.mark.parametrize(("interval_steps", "n_steps"), [(0, 10), (11, 10), (None, 0), (1, -1)])
    def test_counts_out_of_range_are_named(self, interval_steps: int | None, n_steps: int) -> None:
        with pytest.raises(ValueError, match=f"interval_steps <= n_steps.*n_steps={n_steps}"):
            replace(tiny.OBJECTIVE, interval_steps=interval_steps, n_steps=n_steps)

    def test_a_model_without_a_layer_wide_enough_is_refused(self) -> None:
        task = replace(tiny.TASK, build_model=lambda: nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3)))
        with pytest.raises(ValueError, match="at least 32 wide"):
            one_trial(replace(tiny.OBJECTIVE, task=task))


@pytest.mark.parametrize(("n_steps", "interval"), [(120, 10), (5, 1), (19, 1)])
def test_a_look_comes_every_twelfth_of_the_run_at_most(n_steps: int, interval: int) -> None:
    assert SpectralObjective(tiny.TASK, LayerwiseSpace(lr=0.1), n_steps).interval == interval
