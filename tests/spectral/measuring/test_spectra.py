"""Eigenvalues against a full SVD."""

import numpy as np
import pytest
import torch

from ww_opt.spectral.measuring import spectra
from ww_opt.spectral.measuring.spectra import centred_eigenvalues, eigenvalues, exact_eigenvalues, oriented, windows


def reference(stack: torch.Tensor) -> np.ndarray:
    return np.sort(np.linalg.svd(stack.to(torch.float64).numpy(), compute_uv=False) ** 2, axis=1)


@pytest.mark.parametrize("shape", [(1, 64, 64), (9, 32, 16), (1, 300, 50), (3, 8, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_agrees_with_svd(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = reference(stack)
    np.testing.assert_allclose(eigenvalues(stack), expected, atol=1e-12 * expected.max())


def test_transposition_changes_nothing() -> None:
    stack = torch.randn(2, 20, 50, generator=torch.Generator().manual_seed(1))
    assert oriented(stack).shape == (2, 50, 20)
    np.testing.assert_allclose(eigenvalues(oriented(stack)), eigenvalues(oriented(stack.transpose(1, 2))), rtol=1e-12)


def test_centred_spectrum() -> None:
    stack = torch.randn(3, 40, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.7
    means = stack.mean(dim=(1, 2))
    expected = reference(stack - means[:, None, None])
    np.testing.assert_allclose(centred_eigenvalues(stack, means.numpy()), expected, atol=1e-10)


@pytest.mark.parametrize("rank", [3, 30])
def test_small_eigenvalues_are_as_exact_as_an_svd(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    W = torch.randn(60, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, 40, generator=generator, dtype=torch.float64
    )
    W += 1e-9 * torch.randn(60, 40, generator=generator, dtype=torch.float64)
    exact, expected = exact_eigenvalues(W[None]), reference(W[None])
    np.testing.assert_allclose(exact, expected, rtol=1e-4)
    # the Gram matrix alone cannot see them: the test would be idle without the rule
    assert abs(eigenvalues(W[None])[0, 0] / expected[0, 0] - 1) > 0.1


def test_windows_cover_a_rectangle() -> None:
    stack = torch.arange(7 * 2, dtype=torch.float32).view(1, 7, 2)
    parts = windows(stack, 4)
    assert [part.shape for part in parts] == [(1, 2, 2)] * 4
    assert torch.equal(torch.cat(parts, dim=1).unique(), stack.unique())
    assert len(windows(stack, 2)) == 2
    assert len(windows(torch.zeros(1, 5, 5), 4)) == 1


def test_the_weights_are_only_read() -> None:
    stack = torch.randn(1, 30, 20, dtype=torch.float64)
    before = stack.clone()
    eigenvalues(stack)
    centred_eigenvalues(stack, np.ones(1))
    exact_eigenvalues(stack)
    assert torch.equal(stack, before)


def test_scratch_space_is_used_again_but_never_while_it_is_in_use() -> None:
    def address(space: np.ndarray) -> int:
        return space.ctypes.data

    first, second = spectra._scratch((200, 200)), spectra._scratch((200, 200))
    assert not np.shares_memory(first, second)
    first[:], second[:] = 1.0, 2.0
    view, place = first[10:], address(first)
    del first
    assert address(spectra._scratch((100, 200))) != place, "a view still needs it"
    assert (view == 1.0).all()
    assert (second == 2.0).all()
    del view
    assert address(spectra._scratch((150, 150))) == place
    spectra._scratch((300, 300))
    assert [len(pages) for pages in spectra._PAGES.free] == [8 * 300 * 300], "what is too small goes back"
