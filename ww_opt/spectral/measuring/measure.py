"""Layers' weights -> their spectra and everything of their rows that needs no fit, in either convention.

Layers of one shape are measured together: of a small layer the arithmetic takes less time than the calls.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ww_opt.spectral.findings import NARROW, Status
from ww_opt.spectral.measuring.fits import Array
from ww_opt.spectral.measuring.nulls import null_of, spike_edges
from ww_opt.spectral.measuring.random_matrices import edge, null_effective_rank
from ww_opt.spectral.measuring.spectra import (
    centred_eigenvalues,
    eigenvalues,
    exact_eigenvalues,
    gathered,
    oriented,
    windows,
)
from ww_opt.spectral.measuring.weightwatcher import (
    PRECISION,
    jensen_shannon,
    mp_fit,
    norm_columns,
    random_columns,
    shuffled,
    volume_columns,
)
from ww_opt.spectral.reading.matrices import LayerWeight
from ww_opt.spectral.rows import Convention

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
    return {
        "name": weight.name,
        "kind": weight.kind,
        "parameter": weight.parameter,
        "note": weight.note,
        "normed": weight.normed,
    }


def measure(
    weights: Sequence[LayerWeight], options: Options, generator: np.random.RandomState | None = None
) -> list[Measured]:
    """Measure layers whose matrices agree in shape, dtype and device.

    Args:
        weights: the layers; one that could not be read stands alone.
        options: convention and additional columns.
        generator: what ``randomize`` shuffles with in the ``weightwatcher`` convention, where layers share one stream
            of random numbers; needed there alone.
    """
    if weights[0].matrices is None:
        return [_unread(weight, weight.status) for weight in weights]
    matrices = [oriented(weight.matrices) for weight in weights if weight.matrices is not None]
    wide = gathered(matrices)
    # one NaN or infinity makes the sum one; a sum may also overflow, so ask again
    if not math.isfinite(float(wide.sum())):
        finite = [bool(own.isfinite().all()) for own in matrices]
        if not all(finite):
            return [
                measured
                for weight, good in zip(weights, finite, strict=True)
                for measured in (measure([weight], options, generator) if good else [_non_finite(weight)])
            ]
    if options.convention == "weightwatcher":
        return _measure_weightwatcher(weights, wide, options, generator)
    stack = torch.stack(matrices) if len(matrices) > 1 else matrices[0].unsqueeze(0)
    return _measure_default(weights, stack, wide, options)


def _non_finite(weight: LayerWeight) -> Measured:
    return _unread(weight, Status.NON_FINITE)


def _measure_default(
    weights: Sequence[LayerWeight], stack: torch.Tensor, wide: torch.Tensor, options: Options
) -> list[Measured]:
    G, _, N, M = wide.shape
    values = _spectra(wide)
    null = null_of(stack)
    centred = values
    if null.shifted.any():
        centred = values.copy()
        for layer in np.flatnonzero(null.shifted).tolist():
            centred[layer] = centred_eigenvalues(wide[layer], null.means[layer])
    spikes = (centred > spike_edges(centred, null, N)[..., None]).sum(axis=(1, 2))
    excess = ((centred**2).sum(axis=2) / np.where(null.squares > 0, null.squares, 1.0) - 1.0).mean(axis=1)
    zero = values[..., -1:] * (N * float(np.finfo(np.float32).eps)) ** 2
    lost = (values <= zero).sum(axis=(1, 2))
    levels = _levels(stack)
    samples = [values]
    if N >= RECTANGULAR * M:
        samples = [_spectra(window) for window in windows(wide, N_WINDOWS)]
    samples = [np.where(sample > zero, sample, 0.0).reshape(G, -1) for sample in samples]
    measured = []
    for layer, common in enumerate(_common(weights, values, N)):
        own = values[layer]
        extra: dict[str, Any] = {}
        if options.randomize and own.any():
            extra |= _permuted_columns(weights[layer].name, wide[layer], own, null.means[layer], options.seed)
        if options.mp_fit and own.any():
            bulk = float(null.edges[layer].max())
            extra |= {"bulk_max": bulk, "mp_softrank": bulk / float(own.max())}
        if options.erg and own.any():
            extra |= volume_columns(own)
        columns = {
            **common,
            "n_windows": len(samples),
            "rank_loss": int(lost[layer]),
            "spikes": int(spikes[layer]),
            "traps": int(null.traps[layer]),
            "excess": float(excess[layer]) if null.squares[layer].any() else 0.0,
            "largest_entry": float(null.largest_entry[layer]),
            "levels": int(levels[layer]),
            "extra": extra,
        }
        measured.append(Measured(columns, own.ravel(), tuple(sample[layer] for sample in samples)))
    return measured


def _levels(stack: torch.Tensor) -> NDArray[np.intp]:
    """Distinct values in a row, or in a column, of matrices that were rounded to few; 0 where they were not.

    Four rows and four columns of each layer's first matrix are looked at. Few are 256 or less, and less than half as
    many as there are entries: of full float32 weights every entry is another. Zeros, pruned away, count nowhere.
    """
    matrices = stack[:, 0]
    found = np.zeros(len(stack), dtype=np.intp)
    for along in (matrices, matrices.transpose(1, 2)):
        n, length = along.shape[1:]
        if length < NARROW:
            continue
        some = along[:, np.linspace(0, n - 1, min(n, 4)).astype(int), :1024].to("cpu", torch.float64).numpy()
        # the first line alone says no of nearly every layer
        open_ = np.flatnonzero(_few_levels(some[:, :1])[1] & (found == 0))
        if open_.size:
            distinct, few = _few_levels(some[open_])
            found[open_] = np.where(few, distinct, 0)
    return found


def _few_levels(lines: Array) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Most distinct values in the lines of each layer, shape ``(G, lines, length)``, and whether all have few."""
    lines = np.sort(lines, axis=2)
    filled = lines != 0
    distinct = ((lines[..., 1:] > lines[..., :-1]) & filled[..., 1:]).sum(axis=2) + filled[..., 0]
    few = (distinct <= np.minimum(256, filled.sum(axis=2) / 2)) & (distinct > 1)
    return distinct.max(axis=1), few.all(axis=1)


def _spectra(stack: torch.Tensor, exact: bool = False) -> Array:
    """Eigenvalues of layers' matrices, shape ``(G, k, M)`` for a stack of shape ``(G, k, N, M)``."""
    found = (exact_eigenvalues if exact else eigenvalues)(stack.flatten(0, 1))
    return found.reshape(*stack.shape[:2], -1)


def _permuted_columns(name: str, stack: torch.Tensor, values: Array, means: Array, seed: int) -> dict[str, Any]:
    """Columns of one permutation of the centred entries; seeded by the layer's name, so that order changes nothing."""
    k, N, M = stack.shape
    generator = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
    order = torch.stack([torch.randperm(N * M, generator=generator) for _ in range(k)]).to(stack.device)
    centred = (stack - torch.as_tensor(means, device=stack.device)[:, None, None]).flatten(1)
    variance = centred.square().mean(dim=1).cpu().numpy()
    permuted = eigenvalues(centred.gather(1, order).view(k, N, M))
    return {
        "max_rand_eval": float(permuted.max()),
        "rand_num_spikes": int((permuted > variance[:, None] * edge(N, M, k)).sum()),
        "rand_distance": jensen_shannon(np.sort(values.ravel()), np.sort(permuted.ravel())),
    }


def _measure_weightwatcher(
    weights: Sequence[LayerWeight], wide: torch.Tensor, options: Options, generator: np.random.RandomState | None
) -> list[Measured]:
    _, _, N, M = wide.shape
    # its `conv2d_norm`, with a count of 1
    scales = np.array([0.5 if weight.kind == "conv2d" else 1.0 for weight in weights])
    values = _spectra(wide, exact=True) * scales[:, None, None]
    lost = (values <= values[..., -1:] * (N * PRECISION) ** 2).sum(axis=(1, 2))
    pooled = np.sort(values.reshape(len(weights), -1), axis=1)
    norms = norm_columns(values, pooled, N)
    measured = []
    for layer, common in enumerate(_common(weights, values, N)):
        weight, own = weights[layer], values[layer]
        extra: dict[str, Any] = {}
        if pooled[layer, -1] > 0:
            extra = {name: column[layer] for name, column in norms.items()}
            if options.mp_fit:
                extra |= mp_fit(own, N, M)
            if options.randomize:
                assert generator is not None
                extra |= _shuffled_columns(weight, own, float(scales[layer]), generator)
            if options.erg:
                extra |= volume_columns(own)
        extra["layer_id"] = weight.index
        columns = {**common, "n_windows": 1, "rank_loss": int(lost[layer]), "extra": extra}
        measured.append(Measured(columns, pooled[layer], (pooled[layer][pooled[layer] > 1e-5],)))
    return measured


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


def _common(weights: Sequence[LayerWeight], values: Array, N: int) -> list[dict[str, Any]]:
    """The columns that both conventions define alike, from eigenvalues of shape ``(G, k, M)``."""
    _, k, M = values.shape
    total, largest = values.sum(axis=(1, 2)), values.max(axis=(1, 2))
    with np.errstate(divide="ignore"):
        columns = {
            "spectral_norm": np.sqrt(largest).tolist(),
            "frobenius_norm": np.sqrt(total).tolist(),
            "stable_rank": (total / np.where(largest > 0, largest, 1.0)).tolist(),
            "effective_rank": _effective_ranks(values).tolist(),
            "log_norm": np.log10(total).tolist(),
            "log_spectral_norm": np.log10(largest).tolist(),
        }
    shape = {
        "N": N,
        "M": M,
        "Q": N / M,
        "n_matrices": k,
        "n_eigenvalues": k * M,
        "null_effective_rank": null_effective_rank(N, M),
    }
    return [
        {**_names(weight), **shape, **{name: column[layer] for name, column in columns.items()}}
        for layer, weight in enumerate(weights)
    ]


def _effective_ranks(values: Array) -> Array:
    """Mean over each layer's matrices of ``exp(entropy)``; matrices of zeros have none."""
    p = values / np.maximum(values.sum(axis=2, keepdims=True), np.finfo(np.float64).tiny)
    ranks = np.exp(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=2))
    return np.asarray(np.where(values[..., -1] > 0, ranks, 0.0).mean(axis=1))
