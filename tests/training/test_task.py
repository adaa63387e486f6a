"""What is easily mixed up in a task is told when it is made."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tests import tiny


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(tiny.batches())


LOADER = DataLoader(TensorDataset(torch.zeros(4, 2)), batch_size=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"build_model": tiny.build_model()}, "got a model, Sequential: trials would go on"),
        ({"loss": nn.CrossEntropyLoss()}, "got CrossEntropyLoss, which takes outputs and targets"),
        ({"loss": nn.BCEWithLogitsLoss}, "got BCEWithLogitsLoss, which takes outputs and targets"),
        ({"loss": nn.functional.mse_loss}, "got torch's mse_loss, which takes outputs and targets"),
        (
            {"optimizer": torch.optim.SGD(tiny.build_model().parameters(), lr=0.1)},
            r"a SGD that was.*partial\(SGD",
        ),
        ({"schedule": torch.optim.lr_scheduler.StepLR}, "got the class StepLR: write a function"),
        ({"batches": iter(LOADER)}, "got an iterator"),
        ({"batches": torch.zeros(4, 2)}, "got a Tensor: put them into a list"),
        ({"batches": {"x": torch.zeros(4, 2)}}, "got a dict: put them into a list"),
        ({"batches": TensorDataset(torch.zeros(4, 2))}, "got a TensorDataset, which gives examples: `DataLoader"),
        ({"accumulate": 1.5}, r"accumulate=1\.5"),
        ({"accumulate": True}, "accumulate=True"),
    ],
)
def test_mix_ups_are_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        replace(tiny.TASK, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accumulate": 0}, "`accumulate >= 1` must hold, but got accumulate=0"),
        ({"amp": torch.float32}, "torch.bfloat16, torch.float16 or None, but got amp=torch.float32"),
        ({"optimizer": partial(torch.optim.LBFGS, lr=1.0)}, "without a closure"),
    ],
)
def test_values_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(tiny.TASK, **changes)


def test_what_looks_alike_and_is_right_passes() -> None:
    class Criterion(nn.Module):
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return tiny.loss(model, batch)

    replace(tiny.TASK, loss=Criterion(), build_model=partial(tiny.build_model), batches=Stream())
    replace(tiny.TASK, build_model=nn.Flatten, batches=LOADER, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))


class Augmented(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.rand(2) + number


@pytest.mark.parametrize("is_persistent", [False, True])
def test_workers_draw_the_same_each_time(is_persistent: bool) -> None:
    loader = DataLoader(Augmented(), 4, shuffle=True, num_workers=1, persistent_workers=is_persistent)
    task = replace(tiny.TASK, batches=loader)

    def drawn() -> torch.Tensor:
        torch.manual_seed(0)
        task.start_anew()
        return torch.cat([*task.epoch(), *task.epoch()])

    assert torch.equal(drawn(), drawn())
