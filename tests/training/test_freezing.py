"""Early freezing: what has settled stops, from the input on, and only that."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from ww_opt import FreezeSchedule
from ww_opt.spectral import diagnose
from ww_opt.training.forward_order import forward_order
from ww_opt.training.freezing import leading_vectors, shared

X = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Registered in another order than it is used in."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)
        self.norm = nn.BatchNorm1d(48)
        self.second = nn.Linear(48, 48)
        self.first = nn.Linear(40, 48)
        self.scale = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.norm(self.first(x)).relu()
        out: torch.Tensor = self.head(self.second(hidden).relu())
        return self.scale * out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 40)
        self.hidden = nn.Linear(40, 40)
        self.output = nn.Linear(40, 50, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.output(self.hidden(self.embedding(x)))
        return out


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def call(model: nn.Module) -> Any:
    return model(X)


def still(model: nn.Module, **options: Any) -> FreezeSchedule:
    """A schedule that is content at once: at the second look nothing has moved."""
    return FreezeSchedule(model, call, **{"n_looks": 1, **options})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, n_steps: int = 3) -> None:
    for _ in range(n_steps):
        model.train()
        optimizer.zero_grad(set_to_none=False)  # what was not None stays zeros, on which AdamW goes on
        nn.functional.cross_entropy(model(X), Y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@dataclass
class Row:
    name: str
    spectral_norm: float = 1.0
    frobenius_norm: float = 2.0
    spikes: int = 2


def rows(**changed: float) -> list[Row]:
    return [Row(name, changed.get(name, 1.0)) for name in ("first", "second", "head")]


class TestForwardOrder:
    def test_it_is_that_of_the_pass_and_norms_follow_their_layers(self) -> None:
        model = net()
        units = forward_order(model, call)
        assert [unit.name for unit in units] == ["first", "second", "head"]
        assert units[0].modules == (model.first, model.norm)
        assert {id(own) for own in units[0].parameters} == {
            id(own) for part in (model.first, model.norm) for own in part.parameters()
        }
        assert any(own is model.scale for own in units[-1].parameters), (
            "what stands beside all layers goes with the last"
        )

    def test_it_leaves_no_trace(self) -> None:
        model = net()
        model.norm.eval()
        torch.manual_seed(3)
        expected, mean = torch.rand(()), model.norm.running_mean
        assert mean is not None
        before = mean.clone()
        torch.manual_seed(3)
        forward_order(model, lambda m: nn.functional.dropout(m(X)))
        assert torch.rand(()) == expected
        assert (model.training, model.norm.training) == (True, False)
        assert torch.equal(mean, before)
        assert all(not module._forward_pre_hooks for module in model.modules())

    def test_wrappers_add_nothing_to_names(self) -> None:
        wrapped = nn.Module()
        wrapped._orig_mod = net()
        assert [unit.name for unit in forward_order(wrapped, call)] == ["first", "second", "head"]

    def test_tied_weights_are_used_last_where_the_last_of_them_is(self) -> None:
        units = forward_order(Tied(), lambda model: model(torch.arange(5)))
        assert units[0].last == units[-1].last

    def test_attention_is_one_layer(self) -> None:
        block = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            units = forward_order(block, lambda model: model(torch.randn(2, 5, 32)))
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert [unit.name for unit in units] == ["self_attn", "linear1", "linear2"]
        assert {id(own) for own in block.self_attn.parameters()} <= {id(own) for own in units[0].parameters}

    def test_a_parametrised_layer_is_one(self) -> None:
        model = net()
        nn.utils.parametrizations.weight_norm(model.first)
        units = forward_order(model, call)
        assert [unit.name for unit in units] == ["first", "second", "head"]
        assert len(units[0].parameters) == 5

    def test_what_the_user_froze_is_no_part(self) -> None:
        model = net()
        model.first.requires_grad_(False)
        assert [unit.name for unit in forward_order(model, call)] == ["second", "head"]


class TestWhatIsFrozen:
    @pytest.mark.parametrize(
        "optimizer",
        [
            lambda own: torch.optim.AdamW(own, lr=0.1, weight_decay=0.1),
            lambda own: torch.optim.SGD(own, lr=0.1, momentum=0.9, weight_decay=0.1),
        ],
        ids=["AdamW", "SGD"],
    )
    def test_nothing_of_it_moves_and_the_rest_does(self, optimizer: Any) -> None:
        model = net()
        built = optimizer(model.parameters())
        schedule = still(model)
        train(model, built)
        schedule.update(rows(), 3)
        assert schedule.update(rows(second=9.0), 4) == ("first",)
        before = {name: own.clone() for name, own in model.state_dict().items()}
        train(model, built)
        moved = {name for name, own in model.state_dict().items() if not torch.equal(own, before[name])}
        assert moved == {"scale", "second.weight", "second.bias", "head.weight", "head.bias"}
        assert model.first.weight.grad is None

    def test_statistics_of_norms_stand_still_whatever_mode_is_set(self) -> None:
        model = net()
        schedule = still(model)
        schedule.update(rows())
        schedule.update(rows(second=9.0))
        model.train().eval()
        model.train()
        assert (model.norm.training, model.second.training) == (False, True)

    def test_thawed_it_is_as_it_was(self) -> None:
        model = net()
        schedule = still(model)
        schedule.update(rows())
        schedule.update(rows())
        assert schedule.frozen == ("first", "second"), "never the last one"
        schedule.thaw()
        assert schedule.frozen == ()
        assert all(own.requires_grad for own in model.parameters())
        assert model.norm.training
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before, mean = model.first.weight.detach().clone(), model.norm.running_mean
        assert mean is not None
        old = mean.clone()
        train(model, optimizer)
        assert not torch.equal(model.first.weight, before)
        assert not torch.equal(mean, old)
        assert schedule.update(rows()) == (), "looks begin anew"
        assert schedule.update(rows()) == ("first", "second")
        assert len(schedule.events) == 2

    def test_what_the_user_froze_stays_frozen_when_thawed(self) -> None:
        model = net()
        model.second.bias.requires_grad_(False)
        schedule = still(model)
        schedule.update(rows())
        schedule.update(rows())
        schedule.thaw()
        assert not model.second.bias.requires_grad
        assert model.second.weight.requires_grad

    def test_a_model_with_frozen_norms_can_be_saved(self) -> None:
        model = net()
        schedule = still(model)
        schedule.update(rows())
        schedule.update(rows())
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        assert not again.train().norm.training

    def test_it_goes_on_to_count_in_diagnoses(self) -> None:
        model = net()
        before = [row.role for row in diagnose(model)]
        schedule = still(model)
        schedule.update(rows())
        schedule.update(rows(second=9.0))
        assert [row.role for row in diagnose(model)] == before
        model.second.requires_grad_(False)
        assert "FROZEN" in [row.role.name for row in diagnose(model)], "what somebody else froze does not"
        schedule.thaw()


# looks as (spectral norm of first, of second), or a weight that turns -> what is frozen after each
HISTORIES: dict[str, tuple[list[tuple[float, float]], list[tuple[str, ...]]]] = {
    "two looks in a row": ([(1, 1), (1, 1), (1, 1)], [(), (), ("first", "second")]),
    "a step between": ([(1, 1), (1, 1), (2, 1), (2, 1), (2, 1)], [(), (), (), (), ("first", "second")]),
    "drift": ([(1.0, 1), (1.1, 1), (1.21, 1), (1.33, 1)], [()] * 4),
    "the later one first": ([(1, 1), (2, 1), (3, 1), (4, 1), (4, 1), (4, 1)], [()] * 5 + [("first", "second")]),
    "one after the other": ([(1, 1), (1, 2), (1, 3), (1, 3), (1, 3)], [(), (), ("first",), (), ("second",)]),
    "not a number": ([(1, 1), (float("nan"), 1), (float("nan"), 1), (1, 1)], [()] * 4),
}


@pytest.mark.parametrize(("looks", "expected"), HISTORIES.values(), ids=HISTORIES.keys())
def test_the_spectrum_must_stand_still_in_consecutive_looks(
    looks: list[tuple[float, float]], expected: list[tuple[str, ...]]
) -> None:
    schedule = FreezeSchedule(net(), call)
    assert [schedule.update(rows(first=a, second=b)) for a, b in looks] == expected


def test_vectors_that_turn_are_no_rest_though_the_spectrum_is_flat() -> None:
    model = net()
    schedule = still(model)
    schedule.update(rows())
    for _ in range(3):
        with torch.no_grad():  # the same singular values on other directions
            model.first.weight.copy_(model.first.weight[:, torch.randperm(40)])
        assert schedule.update(rows()) == ()
    assert schedule.update(rows()) == ("first", "second")
    (event,) = schedule.events
    assert event.layers == ("first", "second")
    assert (event.overlap, event.change) == (pytest.approx(1.0), 0.0)


@dataclass
class Deep:
    names: list[str] = field(default_factory=lambda: [str(place) for place in range(7)])

    def rows(self, n_still: int, step: int) -> list[Row]:
        return [Row(name, 1.0 if int(name) < n_still else 2.0**step) for name in self.names]


def test_four_events_a_run_at_most() -> None:
    model = nn.Sequential(*(nn.Linear(40, 40) for _ in range(7)))
    schedule = still(model)
    deep = Deep()
    found = [schedule.update(deep.rows(1 + step // 2, step), step) for step in range(14)]
    assert [names for names in found if names] == [("0",), ("1",), ("2",), ("3",)]
    assert [event.step for event in schedule.events] == sorted(event.step for event in schedule.events)
    assert schedule.frozen == ("0", "1", "2", "3")


def test_weights_used_again_further_on_end_the_prefix() -> None:
    model = Tied()
    schedule = FreezeSchedule(model, lambda m: m(torch.arange(5)), n_looks=1)
    settled = [Row(name) for name in ("embedding", "hidden", "output")]
    assert [schedule.update(settled) for _ in range(4)] == [()] * 4


def test_an_activation_that_is_used_everywhere_ends_nothing() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(40, 40), relu, nn.Linear(40, 40), relu, nn.Linear(40, 3), relu)
    schedule = still(model)
    settled = [Row(name) for name in ("0", "2", "4")]
    assert [schedule.update(settled) for _ in range(2)] == [(), ("0", "2")]


def test_a_real_diagnosis_of_a_model_at_rest_freezes_all_but_the_last() -> None:
    model = net()
    schedule = FreezeSchedule(model, call)
    for step in range(3):
        schedule.update(diagnose(model), step)
    assert schedule.frozen == ("first", "second")
    assert schedule.events[0].step == 2


@pytest.fixture
def distributions_as_before() -> Iterator[None]:
    """The compiler switches the checks of torch.distributions off for the whole process."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.mark.usefixtures("distributions_as_before")
def test_a_compiled_model_is_frozen_and_trained_on() -> None:
    model = net()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=0.1)
    train(compiled, optimizer, 2)
    schedule = FreezeSchedule(compiled, call)
    assert schedule.update(diagnose(compiled)) == ()
    schedule.update(diagnose(compiled))
    assert schedule.update(diagnose(compiled)) == ("first", "second")
    before = {name: own.clone() for name, own in model.state_dict().items()}
    train(compiled, optimizer)
    moved = {name for name, own in model.state_dict().items() if not torch.equal(own, before[name])}
    assert moved == {"scale", "head.weight", "head.bias"}
    schedule.thaw()
    train(compiled, optimizer)
    assert not torch.equal(model.first.weight, before["first.weight"])


def test_nothing_is_frozen_under_ddp_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    wrapped = nn.Module()
    parallel = object.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(parallel)
    parallel.module = model
    wrapped.inner = parallel
    with caplog.at_level(logging.WARNING):
        schedule = FreezeSchedule(wrapped, call)
    assert "DistributedDataParallel, which forbids it" in caplog.text
    assert [schedule.update(rows()) for _ in range(4)] == [()] * 4


def test_a_layer_without_rows_is_never_at_rest() -> None:
    schedule = still(net())
    assert [schedule.update([]) for _ in range(4)] == [()] * 4


class TestVectors:
    @pytest.mark.parametrize("shape", [(40, 20), (20, 40), (8, 3, 3, 3)])
    def test_they_are_those_of_the_svd(self, shape: tuple[int, ...]) -> None:
        W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        left, right = leading_vectors(W, 3)
        U, _, V = torch.linalg.svd(W.flatten(1).double(), full_matrices=False)
        assert shared(left, U[:, :3]) == pytest.approx(1.0)
        assert shared(right, V[:3].T) == pytest.approx(1.0)
        assert left.shape == (shape[0], 3)

    def test_orthogonal_subspaces_share_nothing(self) -> None:
        eye = torch.eye(6, dtype=torch.float64)
        assert shared(eye[:, :2], eye[:, 2:4]) == 0.0
        assert shared(eye[:, :2], eye[:, 1:3]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 0.0}, r"0 < overlap <= 1.*overlap=0"),
        ({"change": -1.0}, r"change >= 0.*change=-1"),
        ({"change": float("nan")}, r"change >= 0.*change=nan"),
        ({"n_looks": 0}, r"n_looks >= 1.*n_looks=0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreezeSchedule(net(), call, **options)
