"""An error is taken for divergence only where weights or outputs say so."""

import math

import pytest
import torch
from torch import nn

from ww_opt.training.divergence import divergence


class Masked(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self) -> dict[str, torch.Tensor]:
        return {"logits": self.weight.masked_fill(torch.tensor([True, False]), self.value)}


@pytest.mark.parametrize(("value", "is_broken"), [(math.nan, True), (math.inf, True), (-math.inf, False), (0.0, False)])
def test_outputs_are_asked_and_a_mask_is_none(value: float, is_broken: bool) -> None:
    model = Masked(value)
    found = divergence(ValueError("bad\n scale"), model, model)
    assert found == ("raised ValueError: bad scale with outputs that are not finite (of a Masked)" if is_broken else "")
    assert not torch.nn.modules.module._global_forward_hooks


def test_weights_are_asked_first() -> None:
    model = nn.Linear(2, 2)
    model.weight.data[0, 0] = math.nan
    assert divergence(ValueError("x"), model, lambda: 1 / 0) == (
        "raised ValueError: x with weights that are not finite (weight)"
    )


def test_out_of_memory_is_no_divergence() -> None:
    assert divergence(torch.OutOfMemoryError("x"), Masked(math.nan), Masked(math.nan)) == ""
