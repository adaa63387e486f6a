"""Edges, traps and effective rank of the null, against theory and by false alarms and power."""

import numpy as np
import pytest
import torch

from ww_opt.spectral.measuring import nulls
from ww_opt.spectral.measuring.nulls import null_of
from ww_opt.spectral.measuring.random_matrices import (
    edge,
    edge_of_profile,
    huge_entry,
    null_effective_rank,
    tracy_widom_cut,
)

SHAPES = [(1, 64, 64), (9, 16, 16), (1, 128, 64), (1, 256, 256), (1, 512, 128)]


def spikes(W: np.ndarray) -> int:
    null = null_of(torch.from_numpy(W))
    C = W - W.mean(axis=(1, 2), keepdims=True)
    return int((np.linalg.eigvalsh(np.swapaxes(C, 1, 2) @ C) > null.edges[:, None]).sum())


def test_equal_variances_give_marchenko_pastur() -> None:
    for N, M in ((64, 64), (300, 50), (4096, 1024)):
        bulk = (np.sqrt(N) + np.sqrt(M)) ** 2
        assert edge(N, M) > bulk
        assert edge_of_profile(np.ones(N), np.ones(M)) == pytest.approx(edge(N, M), rel=1e-3)


def test_edge_of_unequal_variances_holds_the_bulk() -> None:
    generator = np.random.default_rng(0)
    a, b = np.exp(0.5 * generator.standard_normal(600)), np.exp(0.5 * generator.standard_normal(200))
    Z = np.sqrt(a)[:, None] * generator.standard_normal((600, 200)) * np.sqrt(b)
    largest = np.linalg.eigvalsh(Z.T @ Z)[-1]
    # Tracy-Widom puts the largest eigenvalue about 1.2 scales under the edge, 4.2 under the cut
    assert 0.85 < largest / edge_of_profile(a, b) < 1.0


def test_cut_grows_with_the_number_of_matrices() -> None:
    assert tracy_widom_cut(1) == pytest.approx(3.0)
    assert 3.0 < tracy_widom_cut(9) < tracy_widom_cut(100) < 6.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row_scale", [0.0, 0.5])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_noise_gives_no_alarm(shape: tuple[int, int, int], row_scale: float, shift: float) -> None:
    generator = np.random.default_rng(1)
    alarms, n_draws = 0, 40
    for _ in range(n_draws):
        scales = np.exp(row_scale * generator.standard_normal((shape[1], 1)))
        W = generator.standard_normal(shape) * scales + shift
        alarms += spikes(W) > 0 or null_of(torch.from_numpy(W)).traps > 0
    # under 1 % a layer: more than 2 of 40 has a probability of 0.7 %
    assert alarms <= 2


@pytest.mark.parametrize(("N", "M"), [(64, 64), (256, 128)])
def test_planted_entry_is_found_at_the_threshold(N: int, M: int) -> None:
    generator = np.random.default_rng(2)
    for factor, expected in ((0.7, 0), (1.3, 1)):
        for _ in range(10):
            W = generator.standard_normal((1, N, M))
            W[0, generator.integers(N), generator.integers(M)] = factor * huge_entry(N, M)
            null = null_of(torch.from_numpy(W))
            assert null.traps == expected
            assert null.largest_entry > 3


@pytest.mark.parametrize(("N", "M"), [(64, 64), (256, 128)])
def test_planted_signal_is_found_at_the_threshold(N: int, M: int) -> None:
    generator = np.random.default_rng(3)
    for factor, expected in ((0.7, 0), (1.4, 1)):
        found = []
        for _ in range(10):
            u, v = generator.standard_normal(N), generator.standard_normal(M)
            signal = factor * huge_entry(N, M) * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
            found.append(spikes((generator.standard_normal((N, M)) + signal)[None]))
        assert np.median(found) == expected


def test_large_and_dead_neurons_are_no_traps() -> None:
    W = np.random.default_rng(4).standard_normal((1, 64, 64))
    W[0, 3] *= 20
    W[0, 5] *= 1e-9
    W[0, 7] = 0
    assert null_of(torch.from_numpy(W)).traps == 0


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.from_numpy(np.random.default_rng(5).standard_normal((3, 50, 20)) ** 3)
    whole = null_of(W)
    monkeypatch.setattr("ww_opt.spectral.measuring.nulls._BLOCK", 128)
    parts = null_of(W)
    np.testing.assert_allclose(parts.edges, whole.edges, rtol=1e-9)
    assert (parts.traps, parts.shifted) == (whole.traps, whole.shifted)
    assert parts.largest_entry == pytest.approx(whole.largest_entry, rel=1e-12)


def test_a_matrix_of_zeros_or_ones_has_no_null() -> None:
    for W in (torch.zeros(1, 40, 40), torch.ones(1, 40, 40)):
        null = null_of(W)
        assert (null.traps, null.largest_entry) == (0, 0.0)
        assert null.edges.tolist() == [0.0]


@pytest.mark.parametrize(("N", "M"), [(300, 300), (1000, 250)])
def test_effective_rank_of_noise(N: int, M: int) -> None:
    W = np.random.default_rng(6).standard_normal((N, M))
    p = np.linalg.eigvalsh(W.T @ W)
    p = p / p.sum()
    assert np.exp(-(p * np.log(p)).sum()) == pytest.approx(null_effective_rank(N, M), rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row_scale", [0.0, 0.5])
def test_noise_is_as_uneven_as_expected_and_many_weak_signals_more(
    shape: tuple[int, int, int], row_scale: float
) -> None:
    generator = np.random.default_rng(7)
    k, N, M = shape
    found = {0.0: [], 1.0: []}
    for strength in found:
        for _ in range(20):
            W = generator.standard_normal(shape) * np.exp(row_scale * generator.standard_normal((N, 1)))
            # many directions, each under the edge
            U, V = (
                generator.standard_normal((k, N, M // 2)) / N**0.5,
                generator.standard_normal((k, M // 2, M)) / M**0.5,
            )
            W = W + 0.95 * strength * W.std() * (N * M) ** 0.25 * U @ V
            squares = (np.linalg.eigvalsh(np.swapaxes(W, 1, 2) @ W) ** 2).sum(axis=1)
            excess = (squares / null_of(torch.from_numpy(W)).squares - 1.0).mean()
            found[strength].append(excess * (k * N * M) ** 0.5)
    assert max(found[0.0]) < 5.0
    assert np.median(found[1.0]) > 2.0


def test_no_trap_is_lost_where_robust_scales_are_far_under_the_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(256, 128, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    W[range(30), range(30)] = torch.linspace(5.0, 200.0, 30, dtype=torch.float64)
    W[5, 7] = 12.0
    found = null_of(W[None]).traps
    assert found > 1
    monkeypatch.setattr(nulls, "SLACK", 1.0)  # as if the robust scale were the deviation
    assert null_of(W[None]).traps == found


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e17])
def test_the_scale_of_single_precision_weights_changes_nothing(scale: float) -> None:
    W = torch.randn(96, 64, generator=torch.Generator().manual_seed(4))
    W[7, 9] = 40.0
    plain, scaled = null_of(W[None]), null_of((W * scale)[None])
    assert scaled.traps == plain.traps == 1
    np.testing.assert_allclose(scaled.edges, plain.edges * scale**2, rtol=1e-5)
    np.testing.assert_allclose(scaled.squares / scale**4, plain.squares, rtol=1e-4)
