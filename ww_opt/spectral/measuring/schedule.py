"""How the layers of a model are gone through: known ones not again, small ones together, the rest in parallel.

A layer is known by what stands in it, not by PyTorch's version counter alone: fused optimizers and writes through
``.data`` change weights without counting, so a sum over all bits is compared as well.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import nn
from torch.nn.parameter import is_lazy
from tqdm import tqdm

from ww_opt.spectral.reading.lora import switches
from ww_opt.spectral.reading.matrices import checksum

__all__ = ["Memory", "fingerprint", "in_batches", "in_parallel", "n_bytes"]

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE_SECONDS = 3.0
ALONE = 1 << 24
"""Bytes from which an item is worked on alone."""


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
    """Return a value that changes with any parameter or buffer of a module; ``None`` for what is no module.

    It also changes with what a row says beside the numbers: which parameters are trained, of which class the modules
    are, and which adapters are in use.
    """
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
    classes = tuple((type(module), getattr(module, "groups", 1)) for module in source.modules())
    weights = ((name, id(tensor), tensor._version, tensor.requires_grad) for name, tensor in named)
    return (*weights, *totals, classes, switches(source))


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _blas_threads(n: int) -> Iterator[None]:
    """Hold BLAS to ``n`` threads."""
    with _controller().limit(limits=n, user_api="blas"):
        yield


def in_parallel(
    function: Callable[[T], R], items: Iterable[T], size: Callable[[T], int], total: int | None = None
) -> list[R]:
    """Apply ``function`` to each item, in order, on as many threads as torch may use (``torch.get_num_threads()``).

    Small items share the threads, each with one for BLAS: with more, BLAS takes several times longer beside a running
    training. An item over ``ALONE`` comes alone, so that a stream of weights costs the memory of its largest one; for
    that one BLAS may use the cores that are free.

    A progress bar with the time left shows after three seconds, on a terminal only; it counts the ``size`` of each
    item, in bytes, up to ``total``.
    """
    n_threads = torch.get_num_threads()
    bar = tqdm(
        total=total, desc="layers", unit="B", unit_scale=True, delay=_PATIENCE_SECONDS, disable=None, leave=False
    )
    results: list[R] = []
    with bar, ThreadPoolExecutor(n_threads) as pool:
        for drawn in _drawn(items, size, n_threads):
            with _blas_threads(_free_cores(n_threads) if len(drawn) == 1 else 1):
                results.extend(map(function, drawn) if len(drawn) == 1 else pool.map(function, drawn))
            bar.update(sum(size(item) for item in drawn))
    return results


def _free_cores(most: int) -> int:
    """Cores that the machine's load of the last minute leaves free; at least one, and ``most`` at most."""
    if most == 1:
        return 1
    try:
        return min(max((os.cpu_count() or 1) - round(os.getloadavg()[0]), 1), most)
    except (AttributeError, OSError):  # not known on Windows
        return 1


def _drawn(items: Iterable[T], size: Callable[[T], int], n: int) -> Iterator[list[T]]:
    """Draw up to ``n`` items at a time, in order; a large one alone."""
    together: list[T] = []
    for item in items:
        if size(item) > ALONE and together:
            yield together
            together = []
        together.append(item)
        if size(item) > ALONE or len(together) == n:
            yield together
            together = []
    if together:
        yield together


def n_bytes(source: object) -> int | None:
    """Bytes of the weights of a model, a state dict, or in a checkpoint's files; ``None`` where nothing can tell."""
    if isinstance(source, nn.Module):
        return _n_bytes(source.parameters())
    if isinstance(source, Mapping):
        return _n_bytes(source.values())
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        files = [path] if path.is_file() else [file for file in path.glob("*") if file.suffix in _WEIGHT_FILES]
        return sum(file.stat().st_size for file in files) or None
    return None


_WEIGHT_FILES = (".safetensors", ".bin")


def _n_bytes(values: Iterable[object]) -> int | None:
    tensors = [value for value in values if isinstance(value, torch.Tensor) and not is_lazy(value) and value.ndim >= 2]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) or None


def in_batches(
    items: Iterable[T], key: Callable[[T], Hashable], size: Callable[[T], int], together: int = 1 << 23
) -> Iterator[list[T]]:
    """Put small items of one key together, in the order in which they come; large ones stay alone.

    Args:
        items: what to group; drawn as batches are asked for.
        key: what the items of one batch agree in; ``None``: the item stays alone.
        size: of an item, in bytes.
        together: bytes that may wait for company; an item over a sixteenth of it is large.
    """
    waiting: dict[Hashable, list[T]] = {}
    n_waiting = 0
    for item in items:
        kind = key(item)
        if kind is None or size(item) > together // 16:
            yield [item]
            continue
        waiting.setdefault(kind, []).append(item)
        n_waiting += size(item)
        if n_waiting > together:
            yield from waiting.values()
            waiting, n_waiting = {}, 0
    yield from waiting.values()
