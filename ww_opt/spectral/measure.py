"""One layer's weights -> its spectrum and everything of its row that needs no fit, in either convention."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ww_opt.spectral.findings import Status
from ww_opt.spectral.fits import Array
from ww_opt.spectral.matrices import LayerWeight
from ww_opt.spectral.nulls import Null, edge, null_effective_rank, null_of, spike_edges
from ww_opt.spectral.rows import Convention
from ww_opt.spectral.spectra import centred_eigenvalues, eigenvalues, exact_eigenvalues, oriented, windows
from ww_opt.spectral.weightwatcher import (
    PRECISION,
    jensen_shannon,
    mp_fit,
    norm_columns,
    random_columns,
    shuffled,
    volume_columns,
)

__all__ = ["Measured", "Options", "measure"]

N_WINDOWS = 4
"""Square windows over which the alpha of a rectangular layer is averaged, at most."""
RECTANGULAR = 1.5
"""Aspect ratio from which a layer is read through windows."""


@dataclass(frozen=True)
class Options:
    """What a diagnosis is asked for; see :func:`ww_opt.spectral.diagnose`."""

    convention: Convention = "default"
    randomize: bool = False
    mp_fit: bool = False
    erg: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What one pass over a layer's entries gives: the spectrum, the samples to be fitted, and columns of its row.

    ``samples`` is empty where the layer could not be read; the columns then say why.
    """

    columns: dict[str, Any]
    eigenvalues: Array
    samples: tuple[Array, ...] = ()


def _unread(weight: LayerWeight, status: Status) -> Measured:
    columns = {**_names(weight), "fit_status": status.value}
    if weight.matrices is not None:
        k, *sides = weight.matrices.shape
        columns |= {"n_matrices": k, "N": max(sides), "M": min(sides), "Q": max(sides) / max(min(sides), 1)}
    return Measured(columns, np.empty(0))


def _names(weight: LayerWeight) -> dict[str, Any]:
    return {"name": weight.name, "kind": weight.kind, "parameter": weight.parameter, "note": weight.note}


def measure(weight: LayerWeight, options: Options, generator: np.random.RandomState) -> Measured:
    """Measure one layer.

    Args:
        weight: the layer's matrices.
        options: convention and additional columns.
        generator: shuffles in the ``weightwatcher`` convention, where layers share one stream of random numbers.
    """
    if weight.matrices is None:
        return _unread(weight, weight.status)
    stack = oriented(weight.matrices.to(torch.float64))
    # one NaN or infinity makes the sum one; a sum may also overflow, so ask again
    if not math.isfinite(float(weight.matrices.sum())) and not bool(torch.isfinite(stack).all()):
        return _unread(weight, Status.NON_FINITE)
    if options.convention == "weightwatcher":
        return _measure_weightwatcher(weight, stack, options, generator)
    return _measure_default(weight, stack, options)


def _measure_default(weight: LayerWeight, stack: torch.Tensor, options: Options) -> Measured:
    assert weight.matrices is not None
    k, N, M = stack.shape
    values = eigenvalues(stack)
    null = null_of(oriented(weight.matrices))
    centred = centred_eigenvalues(stack, null.means) if null.shifted else values
    zero = values[:, -1:] * (N * float(np.finfo(np.float32).eps)) ** 2
    samples = [values] if N < RECTANGULAR * M else [eigenvalues(window) for window in windows(stack, N_WINDOWS)]
    extra: dict[str, Any] = {}
    if options.randomize and values.any():
        extra |= _permuted_columns(weight.name, stack, values, null, options.seed)
    if options.mp_fit and values.any():
        extra |= {"bulk_max": float(null.edges.max()), "mp_softrank": float(null.edges.max() / values.max())}
    if options.erg and values.any():
        extra |= volume_columns(values)
    columns = {
        **_common(weight, values, (k, N, M)),
        "n_windows": len(samples),
        "rank_loss": int((values <= zero).sum()),
        "spikes": int((centred > spike_edges(centred, null, N)[:, None]).sum()),
        "traps": null.traps,
        "largest_entry": null.largest_entry,
        "extra": extra,
    }
    return Measured(columns, values.ravel(), tuple(np.where(sample > zero, sample, 0.0).ravel() for sample in samples))


def _permuted_columns(name: str, stack: torch.Tensor, values: Array, null: Null, seed: int) -> dict[str, Any]:
    """Columns of one permutation of the centred entries; seeded by the layer's name, so that order changes nothing."""
    k, N, M = stack.shape
    generator = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
    order = torch.stack([torch.randperm(N * M, generator=generator) for _ in range(k)]).to(stack.device)
    centred = (stack - torch.as_tensor(null.means, device=stack.device)[:, None, None]).flatten(1)
    variance = centred.square().mean(dim=1).cpu().numpy()
    permuted = eigenvalues(centred.gather(1, order).view(k, N, M))
    return {
        "max_rand_eval": float(permuted.max()),
        "rand_num_spikes": int((permuted > variance[:, None] * edge(N, M, k)).sum()),
        "rand_distance": jensen_shannon(np.sort(values.ravel()), np.sort(permuted.ravel())),
    }


def _measure_weightwatcher(
    weight: LayerWeight, stack: torch.Tensor, options: Options, generator: np.random.RandomState
) -> Measured:
    k, N, M = stack.shape
    scale = 0.5 if weight.kind == "conv2d" else 1.0  # its `conv2d_norm`, with a count of 1
    values = exact_eigenvalues(stack) * scale
    zero = values[:, -1:] * (N * PRECISION) ** 2
    pooled = np.sort(values.ravel())
    extra: dict[str, Any] = norm_columns(values, N) if values.any() else {}
    if options.mp_fit and values.any():
        extra |= mp_fit(values, N, M)
    if options.randomize and values.any():
        extra |= _shuffled_columns(weight, values, scale, generator)
    if options.erg and values.any():
        extra |= volume_columns(values)
    columns = {
        **_common(weight, values, (k, N, M)),
        "n_windows": 1,
        "rank_loss": int((values <= zero).sum()),
        "extra": {**extra, "layer_id": weight.index},
    }
    return Measured(columns, pooled, (pooled[pooled > 1e-5],))


def _shuffled_columns(
    weight: LayerWeight, values: Array, scale: float, generator: np.random.RandomState
) -> dict[str, Any]:
    assert weight.matrices is not None
    # shuffled as the entries lie in the layer, not as `oriented` turns them
    entries = weight.matrices.to("cpu", torch.float64).contiguous().numpy() * math.sqrt(scale)
    # layers under 100 eigenvalues get five replicas, whose spikes it adds up
    null = shuffled(entries, generator, 5 if values.size < 100 else 1)
    columns = random_columns(values, null, shuffled(entries, generator))
    N, M = max(entries.shape[1:]), min(entries.shape[1:])
    fit = {f"rand_{name}": value for name, value in mp_fit(null, N, M).items()}
    return {**columns, **fit, "num_traps": fit["rand_num_spikes"]}


def _common(weight: LayerWeight, values: Array, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The columns that both conventions define alike, from eigenvalues of shape ``(k, M)``."""
    k, N, M = shape
    total, largest = float(values.sum()), float(values.max())
    positive = total > 0
    return {
        **_names(weight),
        "N": N,
        "M": M,
        "Q": N / M,
        "n_matrices": k,
        "n_eigenvalues": values.size,
        "spectral_norm": math.sqrt(largest),
        "frobenius_norm": math.sqrt(total),
        "stable_rank": total / largest if positive else 0.0,
        "effective_rank": _effective_rank(values),
        "null_effective_rank": null_effective_rank(N, M),
        "log_norm": math.log10(total) if positive else -math.inf,
        "log_spectral_norm": math.log10(largest) if positive else -math.inf,
    }


def _effective_rank(values: Array) -> float:
    """Mean over the matrices of ``exp(entropy)``; matrices of zeros have none."""
    p = values / np.maximum(values.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    ranks = np.exp(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1))
    return float(np.where(values[:, -1] > 0, ranks, 0.0).mean())
