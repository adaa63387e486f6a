"""Matrices -> eigenvalues of ``X = W^T W`` in float64, with no division by N, on the device of the weights.

A Gram matrix of the shorter side costs a fraction of a full SVD. It squares the condition number; where that could
show, :func:`exact_eigenvalues` goes through the R factor of a QR. Memory: a copy of the weights in float64 and the Gram
matrices, which are overwritten.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = [
    "centred_eigenvalues",
    "eigenvalues",
    "exact_eigenvalues",
    "gathered",
    "in_float64",
    "oriented",
    "release",
    "windows",
]

# Which library is a matter of measurement (one thread, AMD EPYC; `make bench` prints yours): NumPy's Gram product
# (``syrk``) took half the time of torch's.
_SMALL = 64
"""Side up to which torch's batched eigenvalues took 10 % less time than NumPy's; from 256 on they took 25-60 % more."""
_LARGE = 512
"""Side from which SciPy, as fast there, works in place: NumPy would copy the Gram matrix."""
_CACHE = 1 << 21
"""Bytes of Gram matrices at a time: a ResNet-56 took 3 % longer without."""
_ON_DEVICE = 2048
"""Side from which eigenvalues are taken on the GPU; below, moving the Gram matrix to LAPACK is held to be cheaper. Not
measured yet: `make bench` prints both where there is a GPU."""


_REUSED = range(1 << 17, 1 << 25)
"""Bytes of scratch space that a thread keeps for its next layer: from where the heap begins to map pages, to where it
always does (M_MMAP_THRESHOLD of glibc)."""


def oriented(stack: torch.Tensor) -> torch.Tensor:
    """Turn matrices of shape ``(k, rows, columns)`` such that ``N = rows >= M = columns``; a view."""
    return stack if stack.shape[1] >= stack.shape[2] else stack.transpose(1, 2)


def in_float64(stack: torch.Tensor) -> torch.Tensor:
    """Copy in float64, contiguous (BLAS would copy it otherwise), on the device of ``stack`` where that knows float64.

    Apple's GPUs do not: from there the copy goes to the CPU.
    """
    if stack.device.type not in ("cpu", "mps"):
        return stack.to(torch.float64, memory_format=torch.contiguous_format)
    return torch.from_numpy(_scratch(tuple(stack.shape))).copy_(stack)


class _Pages(threading.local):
    """Pages that this thread has mapped and nothing uses now."""

    def __init__(self) -> None:
        self.free: list[mmap.mmap] = []


_PAGES = _Pages()


def gathered(stacks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put stacks of one shape into one, in float64, as :func:`in_float64` copies one; shape ``(G, *shape)``."""
    if len(stacks) == 1 or stacks[0].device.type not in ("cpu", "mps"):
        return in_float64(torch.stack(list(stacks)) if len(stacks) > 1 else stacks[0].unsqueeze(0))
    space = torch.from_numpy(_scratch((len(stacks), *stacks[0].shape)))
    for own, stack in zip(space, stacks, strict=True):
        own.copy_(stack)
    return space


def _scratch(shape: tuple[int, ...]) -> Array:
    """Uninitialised space for one layer's matrices, that the next layer of this thread gets again.

    On the heap, what was freed stays in pieces between what is kept: of 24 layers of 1024 x 1024 it held up to nine
    copies. Mapped anew for each layer, its pages took 7 % of the time of a MiniLM. Larger space than ``_REUSED`` the
    heap maps by itself, and gives back at once.
    """
    size = 8 * math.prod(shape)
    if size not in _REUSED:
        return np.empty(shape)
    free = _PAGES.free
    pages = min((own for own in free if len(own) >= size), key=len, default=None)
    if pages is None:
        free.clear()
        pages = _mapped(size)
    else:
        free.remove(pages)
    space = np.frombuffer(pages, count=math.prod(shape))
    weakref.finalize(space, free.append, pages).atexit = False
    return space.reshape(shape)


def release() -> None:
    """Give this thread's scratch space back to the system; that of another thread goes when the thread ends."""
    _PAGES.free.clear()


def _mapped(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def eigenvalues(stack: torch.Tensor) -> Array:
    """Eigenvalues of ``W^T W`` for each of the ``k`` matrices of ``stack``.

    Args:
        stack: shape ``(k, N, M)``, ``N >= M``, finite, any floating dtype and device.

    Returns:
        Shape ``(k, M)``, ascending, clipped at 0. Absolute error about ``M eps64`` times the largest eigenvalue.
    """
    W = stack if stack.dtype == torch.float64 else in_float64(stack)
    # a few at a time: their Gram matrices are still in the cache when their eigenvalues are asked for
    n = max(_CACHE // (8 * W.shape[2] ** 2), 1) if W.device.type == "cpu" else len(W)
    return np.concatenate([_eigvalsh_(_gram(part)) for part in torch.split(W, n)])


def centred_eigenvalues(stack: torch.Tensor, means: Array) -> Array:
    """As :func:`eigenvalues`, with the mean entry of each matrix (``means``, shape ``(k,)``) taken off.

    No second copy of the weights: ``(W - m)^T (W - m) = W^T W - m (s 1^T + 1 s^T) + N m^2`` with column sums ``s``.
    """
    W = stack if stack.dtype == torch.float64 else in_float64(stack)
    m = torch.as_tensor(means, dtype=torch.float64, device=W.device)[:, None]
    shift = m * (W.sum(dim=1) - stack.shape[1] * m / 2)
    return _eigvalsh_(_gram(W).sub_(shift[:, :, None]).sub_(shift[:, None, :]))


def _gram(W: torch.Tensor) -> torch.Tensor:
    if W.device.type == "cpu":
        A = W.numpy()
        k, _, M = A.shape
        return torch.from_numpy(np.matmul(np.swapaxes(A, 1, 2), A, out=_scratch((k, M, M))))
    return W.transpose(1, 2) @ W


def _eigvalsh_(gram: torch.Tensor) -> Array:
    """Eigenvalues of symmetric matrices, shape ``(k, M, M)``, ascending, not under 0; the matrices are overwritten."""
    M = gram.shape[-1]
    if gram.device.type != "cpu" and M < _ON_DEVICE:
        gram = gram.cpu()
    if gram.device.type != "cpu" or M <= _SMALL:
        found = torch.linalg.eigvalsh(gram).cpu().numpy()
    elif M < _LARGE:
        found = np.linalg.eigvalsh(gram.numpy())
    else:  # transposed, for LAPACK expects columns
        found = np.stack([_in_place(own.T) for own in gram.numpy()])
    return np.asarray(np.maximum(found, 0.0), dtype=np.float64)


def _in_place(gram: Array) -> Array:
    values = scipy.linalg.eigh(gram, eigvals_only=True, driver="evd", overwrite_a=True, check_finite=False)
    return np.asarray(values)


def exact_eigenvalues(stack: torch.Tensor) -> Array:
    """As :func:`eigenvalues`, with small eigenvalues as accurate as a full SVD gives them.

    A matrix whose smallest eigenvalue drowns in the rounding of its Gram matrix, ``4 M eps64`` times the largest, is
    done again from the R factor of its QR decomposition, ``M x M`` and no worse conditioned than ``W``.
    """
    values = eigenvalues(stack)
    M = stack.shape[2]
    for i in np.flatnonzero(values[:, 0] < 4 * M * np.finfo(np.float64).eps * values[:, -1]):
        W = stack[i].to(torch.float64)
        R = torch.linalg.qr(W, mode="r").R if W.shape[0] > M else W
        values[i] = torch.linalg.svdvals(R).square().flip(0).cpu().numpy()
    return values


def windows(stack: torch.Tensor, n_windows: int) -> list[torch.Tensor]:
    """Square windows, evenly spaced over the rows: as many as cover them, at most ``n_windows``.

    FARMS (Hu et al., "Eigenspectrum analysis of neural networks without aspect ratio bias", ICML 2025): windows of one
    aspect ratio make layers of different shapes comparable. A side is ``M`` up to 128 and then ``M / 4``, at least 128,
    so that four windows of a large layer cost a sixteenth of the whole; they alternate between first and last columns.

    Args:
        stack: shape ``(..., N, M)``, ``N >= M``.
        n_windows: how many at most.

    Returns:
        Views of shape ``(..., side, side)``.
    """
    N, M = stack.shape[-2:]
    side = M if M <= 128 else max(M // 4, 128)
    count = min(-(-N // side), n_windows)
    starts = np.linspace(0, N - side, count).astype(int) if count > 1 else [0]
    columns = [(i % 2) * (M - side) for i in range(count)]
    return [stack[..., i : i + side, j : j + side] for i, j in zip(starts, columns, strict=True)]
