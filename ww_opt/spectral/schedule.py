"""How the layers of a model are gone through: what is known already is not done again, the rest in parallel.

A layer is known by what stands in it, not by PyTorch's version counter alone: fused optimizers and writes through
``.data`` change weights without counting, so a sum over all bits is compared as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import nn
from torch.nn.parameter import is_lazy
from tqdm import tqdm

from ww_opt.spectral.matrices import checksum

__all__ = ["Memory", "fingerprint", "in_parallel"]

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE_SECONDS = 3.0


class Memory:
    """Results by model, for as long as the model lives; models that cannot be referenced weakly are not remembered."""

    def __init__(self) -> None:
        self._results: weakref.WeakKeyDictionary[nn.Module, dict[object, Any]] = weakref.WeakKeyDictionary()

    def of(self, source: object) -> dict[object, Any]:
        """Return the results kept for ``source``; a fresh dict that nothing keeps for what is no module."""
        if not isinstance(source, nn.Module):
            return {}
        try:
            return self._results.setdefault(source, {})
        except TypeError:  # a module class with __eq__ and without __hash__, or with slots
            return {}


def fingerprint(source: object) -> tuple[object, ...] | None:
    """Return a value that changes with any parameter or buffer of a module; ``None`` for what is no module."""
    if not isinstance(source, nn.Module):
        return None
    named = [*source.named_parameters(remove_duplicate=False), *source.named_buffers(remove_duplicate=False)]
    if any(t.is_meta or t.is_quantized or t.layout != torch.strided or is_lazy(t) for _, t in named):
        return None
    # vectors (biases, the state of norms) are watched by their counter alone: they shape a weight only through
    # parametrisations, which count
    sums = [checksum(tensor) for _, tensor in named if tensor.ndim >= 2]
    if len({total.device for total in sums}) != 1:
        return None
    totals = torch.stack(sums).tolist()  # one transfer from a GPU
    return (*((name, id(tensor), tensor._version) for name, tensor in named), *totals)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread: with more, it takes several times longer beside a running training."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


def in_parallel(function: Callable[[T], R], items: Iterable[T], total: int | None = None) -> list[R]:
    """Apply ``function`` to each item, in order, on as many threads as torch may use (``torch.get_num_threads()``).

    Items are drawn a few at a time, so that a stream of weights is never in memory as a whole. A progress bar shows
    after three seconds, on a terminal only.
    """
    n_threads = torch.get_num_threads()
    stream = iter(items)
    bar = tqdm(total=total, desc="layers", unit="layer", delay=_PATIENCE_SECONDS, disable=None, leave=False)
    results: list[R] = []
    with bar, _one_blas_thread():
        if n_threads == 1:
            for item in stream:
                results.append(function(item))
                bar.update()
            return results
        with ThreadPoolExecutor(n_threads) as pool:
            while batch := list(islice(stream, n_threads)):
                results.extend(pool.map(function, batch))
                bar.update(len(batch))
    return results
