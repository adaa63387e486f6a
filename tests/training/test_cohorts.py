"""What does not fit is told before the first step; what fits changes nothing. A loss says by its graph what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ww_opt.training.cohorts import even_parts, is_cross_entropy, look_at_first_batch
from ww_opt.training.late_entry import LateExamples
from ww_opt.training.run import Task, train

G = torch.Generator().manual_seed(1)
X = torch.randn(60, 8, generator=G)
Y = torch.randint(0, 4, (60,), generator=G)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 4))


def task_of(logits: Any, loss: Any = None, **options: Any) -> Task:
    return Task(
        build,
        lambda: iter(()),
        loss or (lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])),
        late_entry=LateExamples(60, 8, lambda index: (X[index], Y[index]), logits, **options),
    )


def run(task: Task, n_steps: int = 20) -> tuple[nn.Module, list[Any]]:
    model = task.build_model()
    torch.manual_seed(1)
    return model, list(
        train(model, task, [{"params": list(model.parameters()), "lr": 0.01}], n_steps=n_steps, interval_steps=n_steps)
    )


def right(model: nn.Module, batch: Any) -> Any:
    return model(batch[0]), batch[1]


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (lambda model, batch: (model(batch[0]).T, batch[1]), ValueError, r"logits \[4, .*class_dim"),
        (lambda model, batch: (model(batch[0])[:, :3], batch[1]), ValueError, r"from 0 to 2.*are 3"),
        (lambda model, batch: (model(batch[0]).softmax(-1), batch[1]), ValueError, "probabilities"),
        (lambda model, batch: model(batch[0]), TypeError, "must return two tensors.*returned a Tensor"),
        (lambda model, batch: (model(batch[0]), batch[1], 0), TypeError, "returned 3 values"),
        (lambda model, batch: (model(batch[0]).argmax(-1), batch[1]), TypeError, "floating point"),
    ],
)
def test_what_does_not_fit_is_told_before_the_first_step(logits: Any, error: type[Exception], message: str) -> None:
    steps = 0

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal steps
        steps += model.training
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(error, match=message):
        run(task_of(logits, loss))
    assert steps == 0


def test_the_look_changes_nothing() -> None:
    """Neither weights nor statistics nor the random stream: without logits nobody looks, and the run is the same."""
    looked, checkpoints = run(task_of(right))
    plain, _ = run(task_of(None))
    for name, value in looked.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    assert len(checkpoints[-1].late) == 3


def test_what_the_first_batch_showed_holds() -> None:
    """Batches that alone could be read in two ways, or have no label, are read as the first one."""
    maps = torch.randn(60, 5, 7, generator=G)

    def logits(model: nn.Module, batch: Any) -> Any:
        z = maps[: len(batch[0])]
        length = 7 if not model.training and logits.calls == 0 else 5  # type: ignore[attr-defined]
        logits.calls += 1  # type: ignore[attr-defined]
        return z[:, :, :length], torch.zeros(len(z), length, dtype=torch.int64)

    logits.calls = 0  # type: ignore[attr-defined]
    _, checkpoints = run(task_of(logits))
    assert [own.n for own in checkpoints[-1].late] == [15, 15, 15]
    late = replace(task_of(right).late_entry, kind=None)  # type: ignore[type-var]
    assert late is not None
    seen = look_at_first_batch(build().eval(), late, (X, torch.full((60,), -100)))
    assert (seen.kind, seen.class_dim) == ("classes", 1)


def test_nobody_is_judged_alone() -> None:
    """A cohort of 17 in batches of 8: as a loss may need two examples, there are 6, 6 and 5."""
    sizes: list[int] = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        sizes.append(0 if model.training else len(batch[0]))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    run(task_of(None, loss, shares=(17 / 60,), times=(0.5,)))
    assert [size for size in sizes if size][6:9] == [6, 6, 5]
    assert [len(part) for part in even_parts(torch.arange(33), 16)] == [11, 11, 11]
    assert [len(part) for part in even_parts(torch.arange(3), 16)] == [3]


W = torch.randn(6, 4, generator=G, requires_grad=True)
T = torch.randint(0, 4, (6,), generator=G)
F = nn.functional


@pytest.mark.parametrize(
    "loss",
    [
        lambda: F.cross_entropy(W, T),
        lambda: F.cross_entropy(W, T, label_smoothing=0.1) + 0.1 * W.square().mean(),
        lambda: F.nll_loss(F.log_softmax(W, -1), T),
        lambda: -W.log_softmax(-1).gather(1, T[:, None]).mean(),
        lambda: (W.logsumexp(-1) - W.gather(1, T[:, None])[:, 0]).mean(),
        lambda: F.binary_cross_entropy_with_logits(W, (W > 0).float()),
        lambda: F.binary_cross_entropy(W.sigmoid(), (W > 0).float()),
        lambda: F.kl_div(F.log_softmax(W, -1), torch.full((6, 4), 0.25), reduction="batchmean"),
        lambda: F.cross_entropy(W[:, :, None].expand(6, 4, 3), T[:, None].expand(6, 3)),
        lambda: torch.tensor(1.0),  # no graph: as it always was
    ],
)
def test_cross_entropies_are_known(loss: Any) -> None:
    assert is_cross_entropy(loss())


@pytest.mark.parametrize(
    "loss",
    [
        lambda: F.mse_loss(W, torch.zeros(6, 4)),
        lambda: F.huber_loss(W, torch.zeros(6, 4)),
        lambda: F.gaussian_nll_loss(W, torch.zeros(6, 4), W.exp()),
        lambda: -torch.distributions.Normal(W, 1.0).log_prob(torch.zeros(6, 4)).mean(),
        lambda: F.l1_loss(torch.softmax(W, -1) @ W.T, torch.zeros(6, 6)),  # attention is no likelihood
        lambda: (W.sigmoid() - 1.0).square().mean(),
    ],
)
def test_other_losses_are_known(loss: Any) -> None:
    value = loss()
    value.backward()
    assert not is_cross_entropy(value)


def test_a_run_tells_the_unit_of_its_loss() -> None:
    def squares(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).square().mean()

    assert run(task_of(None))[1][-1].in_nats
    assert not run(task_of(None, squares))[1][-1].in_nats
    assert run(replace(task_of(None, squares), in_nats=True))[1][-1].in_nats
