"""Every global stream is seeded for a trial, and given back."""

import random

import numpy as np
import pytest
import torch

from ww_opt.training.randomness import seeded, undisturbed


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def set_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.mark.parametrize("seed", [0, 2**40, -1])
def test_one_seed_gives_one_draw_and_the_callers_streams_go_on(seed: int) -> None:
    set_all(5)
    expected = draw()
    set_all(5)
    found = []
    for _ in range(2):
        with seeded(seed, "cpu"):
            found.append(draw())
    assert found[0] == found[1]
    assert draw() == expected


def test_they_are_given_back_after_an_error() -> None:
    set_all(5)
    expected = draw()
    set_all(5)
    for context in (seeded(1, "cpu"), undisturbed()):
        with pytest.raises(ZeroDivisionError), context:
            draw()[0] / 0
    assert draw() == expected
