"""How far a layer moved, against numbers known beforehand, and what was done to its entries."""

from __future__ import annotations

import math

import pytest
import torch

from ww_opt.spectral.comparing.distances import pair


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distance_cosine_and_ratio_are_those_of_the_definition() -> None:
    old = torch.zeros(1, 2, 2)
    old[0, 0, 0], new = 3.0, torch.zeros(1, 2, 2)
    new[0, 0, 0], new[0, 1, 1] = 3.0, 4.0
    found = pair(old, new)
    assert (found.distance, found.cosine, found.ratio) == pytest.approx((4 / 3, 3 / 5, 5 / 3))
    assert not found.is_identical


def test_the_same_numbers() -> None:
    W = weight(3, 40, 32)
    found = pair(W, W.double())
    assert (found.is_identical, found.distance, found.cosine, found.ratio) == (True, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_distance(bad: float) -> None:
    W = weight(1, 40, 32)
    broken = W.clone()
    broken[0, 3, 3] = bad
    for old, new in ((W, broken), (broken, W), (broken, broken)):
        assert math.isnan(pair(old, new).distance)
        assert pair(old, new).is_identical == (old is new)
    other = broken.clone()
    other[0, 5, 5] = 0.0
    assert not pair(broken, other).is_identical
    assert math.isnan(pair(torch.zeros(1, 4, 4), weight(1, 4, 4)).distance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_is_known_by_its_dtype(dtype: torch.dtype) -> None:
    W = weight(1, 40, 32)
    assert pair(W, W.to(dtype)).cast == str(dtype).removeprefix("torch.")
    assert pair(W, W + 1e-3).cast == ""


@pytest.mark.parametrize(("bits", "expected"), [(2, 3), (3, 7), (4, 15)])
@pytest.mark.parametrize("shape", [(1, 96, 128), (9, 16, 16)], ids=["linear", "kernels"])
def test_levels_of_an_output_channel(bits: int, expected: int, shape: tuple[int, ...]) -> None:
    W = weight(*shape)
    step = W.abs().amax(dim=(0, 2), keepdim=True) / (2 ** (bits - 1) - 1)
    found = pair(W, (W / step).round() * step)
    assert 3 <= found.new.levels <= expected
    assert found.old.levels == 0
    assert found.overshoot < 1.0


def test_levels_of_a_layer_whose_channels_are_too_short_to_tell() -> None:
    W = weight(1, 64, 5)
    step = W.abs().max() / 7
    assert 10 <= pair(W, (W / step).round() * step).new.levels <= 15


def test_rows_in_another_order() -> None:
    W = weight(9, 40, 32)
    assert pair(W, W.roll(1, 1)).reordered == 1.0
    assert pair(W, weight(9, 40, 32, seed=1)).reordered == 0.0
    half = torch.cat([W[:, :20], W[:, 20:].flip(1)], dim=1)
    assert pair(W, torch.cat([-W[:, :20], half[:, 20:]], dim=1)).reordered == 0.5


@pytest.mark.parametrize(
    "change",
    [lambda W: W, lambda W: W.bfloat16(), lambda W: W.clamp(-1, 1), lambda W: torch.where(W.abs() < 1.5, 0.0, W)],
    ids=["plain", "bfloat16", "clipped", "pruned"],
)
def test_no_levels_where_nothing_was_rounded_to_few(change) -> None:
    assert pair(weight(1, 96, 128, seed=1), change(weight(1, 96, 128))).new.levels == 0


@pytest.mark.parametrize("way", ["layer", "channel"])
def test_entries_at_the_limit(way: str) -> None:
    W = weight(1, 64, 64)
    limit = torch.full((1, 64, 1), 1.5) if way == "layer" else torch.linspace(1.0, 2.0, 64).view(1, 64, 1)
    found = pair(W, torch.minimum(torch.maximum(W, -limit), limit))
    beyond = float((W.abs() >= limit).double().mean())
    assert found.new.at_limit == pytest.approx(beyond, abs=64 / 4096)
    assert found.old.at_limit == 0.0
    assert found.overshoot > 1.1


def test_a_layer_of_short_channels_is_asked_as_a_whole() -> None:
    W = torch.zeros(1, 64, 5)
    W[0, :, 0], W[0, :, 1] = torch.linspace(0.5, 1.0, 64), torch.linspace(0.1, 0.2, 64)
    found = pair(W, W.clamp(-0.75, 0.75))
    assert found.new.at_limit == pytest.approx(31 / 320)
    assert found.overshoot == pytest.approx(0.875 / 0.75, rel=0.01)


def test_zeros_are_a_share() -> None:
    W = weight(1, 64, 64)
    W[0, :16] = 0.0
    assert pair(weight(1, 64, 64, seed=1), W).new.zeros == 0.25
    assert pair(W, torch.zeros(1, 64, 64)).new.zeros == 1.0
