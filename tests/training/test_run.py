"""A run as a generator: what it yields, when it ends, and that looking changes nothing."""

import math
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests import tiny
from ww_opt.training.late_entry import LateExamples
from ww_opt.training.layerwise import LayerSettings, labelled, parameter_groups
from ww_opt.training.optimizers import momentum_key
from ww_opt.training.run import Checkpoint, train
from ww_opt.training.task import Task, constant, cosine

X = torch.linspace(-1, 1, 24).view(24, 1).expand(24, 4) * torch.arange(1.0, 5.0)
Y = (X[:, 0] > 0).long()


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def shuffled() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return ((X[index], Y[index]) for index in torch.split(torch.randperm(24), 8))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def make(**changes: Any) -> Task:
    return Task(**{"build_model": build, "batches": shuffled, "loss": loss, "name": "toy", **changes})


def run(task: Task, *, n_steps: int = 7, interval_steps: int = 7, seed: int = 0, **options: Any) -> list[Checkpoint]:
    torch.manual_seed(seed)
    model = task.build_model()
    own = options.pop("settings", LayerSettings(lr=0.1))
    groups = parameter_groups(model, dict.fromkeys(labelled(model), own))
    return list(train(model, task, groups, n_steps=n_steps, interval_steps=interval_steps, **options))


def weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def one_group(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "lr": 0.1}]


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("n_steps", "interval_steps", "steps"),
        [(6, 2, [2, 4, 6]), (7, 3, [3, 6, 7]), (5, 5, [5]), (3, 1, [1, 2, 3])],
    )
    def test_come_every_interval_and_at_the_end(self, n_steps: int, interval_steps: int, steps: list[int]) -> None:
        checkpoints = run(make(), n_steps=n_steps, interval_steps=interval_steps)
        assert [checkpoint.step for checkpoint in checkpoints] == steps
        assert {checkpoint.n_steps for checkpoint in checkpoints} == {n_steps}

    def test_the_clean_loss_is_that_of_the_model_without_dropout(self) -> None:
        checkpoint = run(make(batches=[(X, Y)]))[-1]
        assert not checkpoint.model.training
        with torch.no_grad():
            assert checkpoint.train_loss == pytest.approx(float(loss(checkpoint.model, (X, Y))))

    def test_the_first_loss_is_that_of_the_untrained_model(self) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            expected = float(loss(build().eval(), (X, Y)))
        found = [checkpoint.first_loss for checkpoint in run(make(batches=[(X, Y)]), interval_steps=3)]
        assert found == pytest.approx([expected] * 3)

    def test_the_running_loss_covers_the_steps_since_the_last_checkpoint(self) -> None:
        single = [checkpoint.running_loss for checkpoint in run(make(), interval_steps=1)]
        pairs = [checkpoint.running_loss for checkpoint in run(make(), interval_steps=3)]
        assert pairs == pytest.approx([sum(single[:3]) / 3, sum(single[3:6]) / 3, single[6]])

    def test_the_loss_is_probed_on_so_many_batches(self) -> None:
        drawn: list[int] = []

        def counted() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for number, batch in enumerate(shuffled()):
                drawn.append(number)
                yield batch

        run(make(batches=counted), n_steps=1, interval_steps=1, n_loss_batches=2)
        assert drawn == [0, 1, 0]

    def test_training_learns(self) -> None:
        checkpoint = run(make(), n_steps=60, interval_steps=60)[-1]
        assert checkpoint.train_loss < 0.5 * checkpoint.first_loss

    def test_the_callers_time_is_not_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(range(100))
        monkeypatch.setattr("ww_opt.training.run.time.perf_counter", lambda: float(next(clock)))
        model = build()
        seconds = []
        for checkpoint in train(model, make(), one_group(model), n_steps=3, interval_steps=1):
            seconds.append(checkpoint.seconds)
            for _ in range(10):
                next(clock)
        assert seconds == [1.0, 2.0, 3.0]


class TestLookingChangesNothing:
    @pytest.mark.parametrize("interval_steps", [1, 2, 5])
    def test_weights_do_not_depend_on_the_interval(self, interval_steps: int) -> None:
        once, often = run(make()), run(make(), interval_steps=interval_steps)
        assert torch.equal(weights(once[-1].model), weights(often[-1].model))

    def test_weights_do_not_depend_on_what_the_caller_draws(self) -> None:
        torch.manual_seed(0)
        model = build()
        for _ in train(model, make(), one_group(model), n_steps=7, interval_steps=1):
            torch.manual_seed(99)
        torch.manual_seed(0)
        undisturbed = build()
        list(train(undisturbed, make(), one_group(undisturbed), n_steps=7, interval_steps=7))
        assert torch.equal(weights(model), weights(undisturbed))

    def test_weights_do_not_depend_on_a_loss_that_draws(self) -> None:
        def noisy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return loss(model, (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))

        once, often = (run(make(loss=noisy), interval_steps=interval) for interval in (7, 1))
        assert torch.equal(weights(once[-1].model), weights(often[-1].model))

    def test_weights_do_not_depend_on_the_number_of_probed_batches(self) -> None:
        def drawn() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return ((X[index], Y[index]) for index in (torch.randint(24, (8,)) for _ in range(3)))

        few, many = (run(make(batches=drawn), n_loss_batches=count) for count in (1, 3))
        assert torch.equal(weights(few[-1].model), weights(many[-1].model))

    def test_other_seeds_give_other_weights(self) -> None:
        assert not torch.equal(weights(run(make(), seed=0)[-1].model), weights(run(make(), seed=1)[-1].model))

    def test_the_callers_random_state_is_left_alone_after_the_run(self) -> None:
        torch.manual_seed(0)
        for _ in train(model := build(), make(), one_group(model), n_steps=1, interval_steps=1):
            torch.manual_seed(5)
        drawn = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(1))


class TestTheEnd:
    def test_a_run_that_diverged_ends_with_a_checkpoint_that_says_so(self) -> None:
        checkpoints = run(
            make(optimizer=torch.optim.SGD), n_steps=50, interval_steps=1, settings=LayerSettings(lr=1e30)
        )
        assert [checkpoint.is_finite for checkpoint in checkpoints[:-1]] == [True] * (len(checkpoints) - 1)
        assert not checkpoints[-1].is_finite
        assert checkpoints[-1].step < 50

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_one_loss_that_is_not_finite_is_enough(self, value: float) -> None:
        def broken(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return loss(model, batch) * (value if model.training else 1.0)

        (checkpoint,) = run(make(loss=broken), interval_steps=2)
        assert (checkpoint.step, checkpoint.is_finite) == (2, False)
        assert not math.isfinite(checkpoint.running_loss)

    def test_the_caller_may_stop(self) -> None:
        torch.manual_seed(0)
        model = build()
        checkpoints = train(model, make(), one_group(model), n_steps=6, interval_steps=2)
        assert next(checkpoints).step == 2
        stopped = weights(model)
        del checkpoints
        assert torch.equal(weights(model), stopped)


class TestBatches:
    def test_a_data_loader_will_do(self) -> None:
        loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
        once, often = (run(make(batches=loader), interval_steps=interval) for interval in (7, 1))
        assert once[-1].is_finite
        assert torch.equal(weights(once[-1].model), weights(often[-1].model))

    def test_epochs_follow_each_other(self) -> None:
        task = make(batches=[(X[:8], Y[:8]), (X[8:], Y[8:])])
        assert [len(batch[0]) for _ in range(2) for batch in task.epoch()] == [8, 16, 8, 16]

    def test_containers_are_moved_to_the_device(self) -> None:
        pair = namedtuple("pair", "x y")
        batch = {"a": X, "b": [X, "text"], "c": pair(X, 1)}
        (moved,) = make(batches=[batch], device="meta").epoch()
        assert moved["a"].device.type == moved["b"][0].device.type == moved["c"].x.device.type == "meta"
        assert (moved["b"][1], moved["c"].y, type(moved["c"])) == ("text", 1, pair)

    def test_no_batches_are_refused(self) -> None:
        with pytest.raises(ValueError, match="'toy' gave none"):
            run(make(batches=[]))

    def test_a_loss_must_be_a_scalar(self) -> None:
        with pytest.raises(ValueError, match=r"scalar, but got shape \(24,\)"):
            run(make(batches=[(X, Y)], loss=lambda model, batch: model(batch[0])[:, 0]), n_loss_batches=1)


class TestOptimizer:
    def test_schedules_scale_every_groups_own_rate(self) -> None:
        rates: list[list[float]] = []

        class Watched(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                rates.append([group["lr"] for group in self.param_groups])
                return super().step(closure)

        model = build()
        groups = [{"params": [p], "lr": 2.0**-i} for i, p in enumerate(model.parameters())]
        list(train(model, make(optimizer=Watched, schedule=lambda t: 1 - t), groups, n_steps=4, interval_steps=4))
        assert rates == [[factor * 2.0**-i for i in range(4)] for factor in (1.0, 0.75, 0.5, 0.25)]

    def test_cosine_and_constant(self) -> None:
        assert [cosine(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
        assert [constant(t) for t in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]

    def test_clipping_bounds_the_step(self) -> None:
        start, clipped = (
            weights(run(make(optimizer=torch.optim.SGD, clip_norm=norm), n_steps=1, interval_steps=1)[0].model)
            for norm in (1e-12, 1e-3)
        )
        assert float((clipped - start).norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)

    @pytest.mark.parametrize(
        ("factory", "key", "expected"),
        [
            (torch.optim.SGD, "momentum", 0.5),
            (partial(torch.optim.SGD, momentum=0.9, nesterov=True), "momentum", 0.5),
            (torch.optim.AdamW, "betas", (0.5, 0.999)),
            (partial(torch.optim.Adam, betas=(0.8, 0.95)), "betas", (0.5, 0.95)),
        ],
    )
    def test_momentum_is_translated(self, factory: Callable[..., Any], key: str, expected: object) -> None:
        built: list[torch.optim.Optimizer] = []

        def kept(groups: Any) -> torch.optim.Optimizer:
            built.append(factory(groups))
            return built[-1]

        run(make(optimizer=kept), settings=LayerSettings(momentum=0.5))
        assert momentum_key(built[0]) == key
        assert [group[key] for group in built[0].param_groups] == [expected] * 4

    def test_momentum_acts(self) -> None:
        with_it, without = (
            run(make(optimizer=torch.optim.SGD), settings=LayerSettings(lr=0.1, momentum=momentum))[-1].model
            for momentum in (0.9, 0.0)
        )
        assert not torch.equal(weights(with_it), weights(without))

    def test_momentum_without_a_place_to_go_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"acts on nothing in Adagrad, but got momentum=0\.5"):
            run(make(optimizer=torch.optim.Adagrad), settings=LayerSettings(momentum=0.5))

    def test_the_callers_groups_stay_as_they_are(self) -> None:
        model = build()
        groups = parameter_groups(model, {name: LayerSettings(lr=0.1, momentum=0.5) for name in labelled(model)})
        before = [dict(group) for group in groups]
        list(train(model, make(), groups, n_steps=2, interval_steps=1))
        assert [group.keys() for group in groups] == [group.keys() for group in before]
        assert [group["lr"] for group in groups] == [0.1] * 4


class TestAccumulation:
    def test_two_halves_are_one_batch(self) -> None:
        halves = [(X[:12], Y[:12]), (X[12:], Y[12:])]
        whole = make(batches=[(X, Y)], build_model=plain, clip_norm=0.1)
        split = make(batches=halves, build_model=plain, clip_norm=0.1, accumulate=2)
        first, second = (run(task, n_steps=4, interval_steps=2) for task in (whole, split))
        torch.testing.assert_close(weights(first[-1].model), weights(second[-1].model))
        assert [own.running_loss for own in first] == pytest.approx([own.running_loss for own in second])
        assert [own.step for own in second] == [2, 4]

    def test_late_entry_counts_optimizer_steps(self) -> None:
        taken: list[int] = []

        def take(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            taken.append(len(index))
            return X[index], Y[index]

        late = LateExamples(24, 6, take, lambda model, batch: (model(batch[0]), batch[1]))
        task = make(late_entry=late, build_model=plain)
        once = run(replace(task, late_entry=replace(late, batch_size=12)), n_steps=8, interval_steps=8)
        taken.clear()
        twice = run(replace(task, accumulate=2), n_steps=8, interval_steps=8)
        assert [own.step for own in twice[-1].late] == [own.step for own in once[-1].late] == [4, 6, 7]
        torch.testing.assert_close(weights(once[-1].model), weights(twice[-1].model))
        assert max(taken) <= 6


class TestPrecision:
    def test_losses_and_logits_are_computed_in_it_and_weights_stay(self) -> None:
        seen: set[torch.dtype] = set()

        def watched(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            seen.add(model(batch[0]).dtype)
            return loss(model, batch)

        def logits(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            seen.add(model(batch[0]).dtype)
            return model(batch[0]), batch[1]

        late = LateExamples(24, 8, lambda index: (X[index], Y[index]), logits)
        (checkpoint,) = run(make(loss=watched, late_entry=late, amp=torch.bfloat16))
        assert seen == {torch.bfloat16}
        assert len(checkpoint.late) == 3
        assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}

    def test_gradients_of_float16_are_scaled_and_clipped_as_they_are(self) -> None:
        options = {"optimizer": torch.optim.SGD, "clip_norm": 1e-3, "build_model": plain}
        start, half = (
            weights(run(make(**options, amp=amp), n_steps=1, interval_steps=1, settings=LayerSettings(lr=lr))[0].model)
            for amp, lr in ((None, 1e-30), (torch.float16, 1.0))
        )
        assert float((half - start).norm()) == pytest.approx(1e-3, rel=1e-2)


class TestTheFirstBatch:
    def test_a_loss_without_a_gradient_is_refused_before_anything_moves(self) -> None:
        model = build()
        before = weights(model)
        task = make(loss=lambda model, batch: loss(model, batch).detach())
        with pytest.raises(ValueError, match=r"has no gradient: leave out `\.detach"):
            list(train(model, task, one_group(model), n_steps=3, interval_steps=1))
        assert torch.equal(weights(model), before)

    def test_devices_that_differ_are_told(self) -> None:
        class Stubborn(tuple):  # type: ignore[type-arg]
            def to(self, device: object) -> "Stubborn":
                return self

        with pytest.raises(ValueError, match="the model is on cpu and the first batch on meta"):
            run(make(batches=[Stubborn((X.to("meta"), Y.to("meta")))]))

    def test_what_it_is_made_of_is_logged_beside_the_users_error(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            run(make(batches=[(X[:, :3], Y)]))
        assert "float32 (24, 3) on cpu, int64 (24,) on cpu" in caplog.text


class TestDivergence:
    def test_an_error_of_a_run_that_diverged_ends_it(self) -> None:
        def checked(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            logits = model(batch[0])
            torch.distributions.Normal(logits, 1.0, validate_args=True)  # dynamo switches the default off
            return (logits**2).mean()

        torch.manual_seed(0)
        task = make(loss=checked, optimizer=torch.optim.SGD, build_model=plain)
        *_, last = run(task, n_steps=50, interval_steps=10, settings=LayerSettings(lr=1e30))
        assert not last.is_finite
        assert 0 < last.step < 10
        assert "raised ValueError: " in last.error
        assert "outputs that are not finite (of a Linear)" in last.error

    def test_so_does_one_at_outputs_that_are_not(self) -> None:
        calls = 0

        def checked(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            nonlocal calls
            calls += model.training
            logits = model(batch[0] * (math.nan if calls >= 3 and model.training else 1.0))
            if not torch.isfinite(logits).all():
                raise ArithmeticError("not finite")
            return nn.functional.cross_entropy(logits, batch[1])

        (last,) = run(make(loss=checked))
        assert (last.step, last.error) == (
            2,
            "raised ArithmeticError: not finite with outputs that are not finite (of a Linear)",
        )

    @pytest.mark.parametrize("step", [1, 3])
    def test_any_other_error_is_the_users(self, step: int) -> None:
        calls = 0

        def broken(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            nonlocal calls
            calls += model.training
            if calls == step:
                raise KeyError("mine")
            return loss(model, batch)

        with pytest.raises(KeyError, match="mine"):
            run(make(loss=broken))


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"n_steps": 4, "interval_steps": 0}, "interval_steps=0, n_steps=4"),
            ({"n_steps": 4, "interval_steps": 5}, "interval_steps=5, n_steps=4"),
            ({"n_steps": 4, "interval_steps": 1, "n_loss_batches": 0}, "n_loss_batches=0"),
        ],
    )
    def test_counts_are_checked_before_the_first_step(self, options: dict[str, int], words: str) -> None:
        model = build()
        with pytest.raises(ValueError, match=words):
            train(model, make(), one_group(model), **options)

    @pytest.mark.parametrize("field", ["build_model", "loss", "optimizer", "schedule", "evaluate"])
    def test_callables_are_checked(self, field: str) -> None:
        with pytest.raises(TypeError, match=rf"Task\.{field} must be callable, but got int"):
            make(**{field: 3})

    @pytest.mark.parametrize(("batches", "words"), [(3, "but got int"), (shuffled(), "an iterator, which is empty")])
    def test_batches_must_come_again(self, batches: object, words: str) -> None:
        with pytest.raises(TypeError, match=words):
            make(batches=batches)

    @pytest.mark.parametrize(("field", "value"), [("clip_norm", 0.0), ("clip_norm", math.nan), ("steps_per_epoch", 0)])
    def test_numbers_must_be_positive(self, field: str, value: float) -> None:
        with pytest.raises(ValueError, match=f"`{field} > 0` must hold, but got {field}={value}"):
            make(**{field: value})


def test_a_late_entry_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a LateExamples, but got list.*from_loader"):
        replace(tiny.TASK, late_entry=[1, 2])  # type: ignore[arg-type]


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    task = replace(tiny.TASK, loss=lambda *_: 0.5)  # type: ignore[arg-type,return-value]
    model = tiny.build_model()
    with pytest.raises(TypeError, match=r"scalar tensor, but got float.*item"):
        list(train(model, task, [{"params": list(model.named_parameters()), "lr": 0.1}], n_steps=2, interval_steps=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": ""}, r"Task\.metric must be the name"),
        ({"metric": 3}, r"Task\.metric must be the name"),
        ({"higher_is_better": "no"}, r"Task\.higher_is_better must be True or False, but got 'no'"),
    ],
)
def test_a_metric_has_a_name_and_a_direction(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        replace(tiny.TASK, **change)
