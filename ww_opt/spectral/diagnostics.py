"""Model -> one row per layer; findings in words. No data, no training, nothing of the model is changed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ww_opt.spectral.findings import Finding, Status
from ww_opt.spectral.fits import Array, PowerLawFit, fit_power_laws
from ww_opt.spectral.nulls import null_effective_rank, null_of
from ww_opt.spectral.spectra import eigenvalues, exact_eigenvalues, oriented, windows
from ww_opt.spectral.weights import LayerWeight, Source, named_weights

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Convention", "Diagnosis", "LayerDiagnostics", "diagnose"]

Convention = Literal["default", "weightwatcher"]

NARROW = 32
"""Matrices narrower than this say little: no finding on alpha or spikes is made of them."""
N_WINDOWS = 4
"""Square windows over which the alpha of a rectangular layer is averaged, at most."""
_NAN = float("nan")


@dataclass(frozen=True)
class LayerDiagnostics:
    """One layer. Numbers are NaN (counts 0) where ``status`` or ``fit_status`` says why they could not be had.

    Attributes:
        name, kind, parameter: the layer, its type, and the parameter it was read from.
        N, M, Q: longer side, shorter side, aspect ratio ``N / M``.
        n_matrices: matrices that the layer is made of: positions of a kernel, groups.
        alpha, xmin, xmax, D, sigma, n_tail: power-law fit of the eigenvalues' density. In the ``default`` convention
            alpha and D of a rectangular layer are means over ``n_windows`` square windows (xmin, xmax and n_tail those of
            the median window), and sigma includes the search for xmin.
        fit_status: how the fit ended, in words.
        n_eigenvalues, spikes, traps: eigenvalues; those beyond the null's edge; huge entries. Counts.
        spectral_norm, frobenius_norm: largest singular value, root of the sum of squares; of all matrices together.
        stable_rank: sum over largest eigenvalue, of all matrices together.
        effective_rank: ``exp(entropy)`` of the eigenvalues, between 1 and M; mean over the matrices.
        null_effective_rank: the same for a random matrix of this shape.
        rank_loss: singular values that are zero to float32's precision. A count.
        largest_entry: in standard deviations of its row and column.
        log_norm, log_spectral_norm, log_alpha_norm: log10 of the sum of the eigenvalues, of the largest, of
            the sum of ``eigenvalue^alpha``.
        alpha_hat: ``alpha * log10(largest eigenvalue)``.
        findings: what follows from all this.
        note: what a reader should know: tied, dequantised, merged.
        extra: further columns of the ``weightwatcher`` convention.
    """

    name: str
    kind: str
    parameter: str
    N: int = 0
    M: int = 0
    Q: float = _NAN
    n_matrices: int = 0
    alpha: float = _NAN
    xmin: float = _NAN
    xmax: float = _NAN
    D: float = _NAN
    sigma: float = _NAN
    n_tail: int = 0
    n_windows: int = 0
    fit_status: str = ""
    n_eigenvalues: int = 0
    spectral_norm: float = _NAN
    frobenius_norm: float = _NAN
    stable_rank: float = _NAN
    effective_rank: float = _NAN
    null_effective_rank: float = _NAN
    rank_loss: int = 0
    spikes: int = 0
    traps: int = 0
    largest_entry: float = _NAN
    log_norm: float = _NAN
    log_spectral_norm: float = _NAN
    log_alpha_norm: float = _NAN
    alpha_hat: float = _NAN
    findings: tuple[Finding, ...] = ()
    note: str = ""

    @property
    def finding(self) -> str:
        """The findings as a sentence."""
        named = [item.value if item is not Finding.NOT_FITTED else self.fit_status for item in self.findings]
        return "; ".join(named)

    @property
    def is_analysed(self) -> bool:
        """Whether the layer has a spectrum."""
        return self.n_eigenvalues > 0


@dataclass(frozen=True)
class Diagnosis:
    """The rows of a model, in its order; iterates over them."""

    rows: tuple[LayerDiagnostics, ...]
    convention: Convention = "default"

    def __iter__(self) -> Iterator[LayerDiagnostics]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as plain dicts, one key per column; ``finding`` in words."""
        names = [item.name for item in fields(LayerDiagnostics) if item.name != "findings"]
        return [{**{name: getattr(row, name) for name in names}, "finding": row.finding} for row in self.rows]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a pandas frame, one column per field; ``finding`` in words."""
        import pandas as pd

        return pd.DataFrame(self.records())


@dataclass(frozen=True)
class _Measured:
    """What one pass over a layer's entries gives: the spectrum, the samples to be fitted, the rest of its row."""

    row: LayerDiagnostics
    eigenvalues: Array
    samples: tuple[Array, ...] = ()


def diagnose(source: Source, *, convention: Convention = "default", seed: int = 0) -> Diagnosis:
    """Read the spectra of all weight matrices of a model.

    Args:
        source: a module, a state dict, or the path of a checkpoint. It is only read.
        convention: ``default`` (scale-free, nulls with the layer's own row and column variances, square windows for
            rectangular layers) or ``weightwatcher`` (the numbers of WeightWatcher 0.7.7).
        seed: of whatever is drawn.

    Returns:
        One row per layer. A layer that cannot be analysed is a row with a status, never an exception.

    Raises:
        ValueError: the model or the file has no weight of two or more dimensions, or the convention is unknown.
        FileNotFoundError: there is no such file.
        TypeError: ``source`` is none of the three.
    """
    if convention not in ("default", "weightwatcher"):
        raise ValueError(f"`convention` must be 'default' or 'weightwatcher', but got {convention!r}.")
    measure = _measure_default if convention == "default" else _measure_weightwatcher
    measured = [measure(weight) for weight in named_weights(source)]
    fits = iter(fit_power_laws([sample for item in measured for sample in item.samples]))
    rows = []
    for item in measured:
        own = [next(fits) for _ in item.samples]
        rows.append(_finished(item, own, convention) if own else item.row)
    return Diagnosis(tuple(rows), convention)


def _unread(weight: LayerWeight, status: Status) -> _Measured:
    row = LayerDiagnostics(
        name=weight.name,
        kind=weight.kind,
        parameter=weight.parameter,
        fit_status=status.value,
        findings=(Finding.NOT_FITTED,),
        note=weight.note,
    )
    if weight.matrices is not None:
        k, *sides = weight.matrices.shape
        row = replace(row, n_matrices=k, N=max(sides), M=min(sides), Q=max(sides) / max(min(sides), 1))
    return _Measured(row, np.empty(0))


def _stack(weight: LayerWeight) -> torch.Tensor | Status:
    """The layer's matrices as float64 ``(k, N, M)``, or the reason why there are none."""
    if weight.matrices is None:
        return weight.status
    stack = oriented(weight.matrices.to(torch.float64))
    return stack if bool(torch.isfinite(stack).all()) else Status.NON_FINITE


def _measure_default(weight: LayerWeight) -> _Measured:
    stack = _stack(weight)
    if isinstance(stack, Status):
        return _unread(weight, stack)
    k, N, M = stack.shape
    values = eigenvalues(stack)
    null = null_of(stack)
    centred = eigenvalues(stack - stack.mean(dim=(1, 2), keepdim=True)) if null.shifted else values
    zero = values[:, -1:] * (N * float(np.finfo(np.float32).eps)) ** 2
    samples = [values] if N < 1.5 * M else [eigenvalues(window) for window in windows(stack, N_WINDOWS)]
    row = replace(
        _common(weight, values, (k, N, M)),
        n_windows=len(samples),
        rank_loss=int((values <= zero).sum()),
        spikes=int((centred > null.edges[:, None]).sum()),
        traps=null.traps,
        largest_entry=null.largest_entry,
    )
    return _Measured(row, values.ravel(), tuple(sample[sample > zero] for sample in samples))


def _measure_weightwatcher(weight: LayerWeight) -> _Measured:
    stack = _stack(weight)
    if isinstance(stack, Status):
        return _unread(weight, stack)
    k, N, M = stack.shape
    scale = 0.5 if "conv" in weight.kind else 1.0
    values = exact_eigenvalues(stack) * scale
    zero = values[:, -1:] * (N * float(np.finfo(np.float64).eps)) ** 2
    row = replace(_common(weight, values, (k, N, M)), n_windows=1, rank_loss=int((values <= zero).sum()))
    pooled = np.sort(values.ravel())
    return _Measured(row, pooled, (pooled[pooled > 1e-5],))


def _common(weight: LayerWeight, values: Array, shape: tuple[int, int, int]) -> LayerDiagnostics:
    """The columns that both conventions define alike, from eigenvalues of shape ``(k, M)``."""
    k, N, M = shape
    total, largest = float(values.sum()), float(values.max())
    positive = total > 0
    return LayerDiagnostics(
        name=weight.name,
        kind=weight.kind,
        parameter=weight.parameter,
        N=N,
        M=M,
        Q=N / M,
        n_matrices=k,
        n_eigenvalues=values.size,
        spectral_norm=math.sqrt(largest),
        frobenius_norm=math.sqrt(total),
        stable_rank=total / largest if positive else 0.0,
        effective_rank=float(np.mean([_effective_rank(own) for own in values])),
        null_effective_rank=null_effective_rank(N, M),
        log_norm=math.log10(total) if positive else -math.inf,
        log_spectral_norm=math.log10(largest) if positive else -math.inf,
        note=weight.note,
    )


def _effective_rank(values: Array) -> float:
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def _finished(item: _Measured, fits: list[PowerLawFit], convention: Convention) -> LayerDiagnostics:
    good = [fit for fit in fits if fit.status is Status.SUCCESS]
    row = item.row
    if not good:
        return _judged(replace(row, fit_status=fits[0].status.value))
    alpha = float(np.mean([fit.alpha for fit in good]))
    middle = sorted(good, key=lambda fit: fit.alpha)[len(good) // 2]
    sigma = middle.sigma if convention == "weightwatcher" else _sigma(good)
    largest = 10.0**row.log_spectral_norm
    # sum of (x / max)^alpha stays finite where x^alpha overflows
    relative = np.power(item.eigenvalues / largest, alpha).sum()
    row = replace(
        row,
        alpha=alpha,
        xmin=middle.xmin,
        xmax=middle.xmax,
        D=float(np.mean([fit.D for fit in good])),
        sigma=sigma,
        n_tail=middle.n_tail,
        fit_status=Status.SUCCESS.value,
        alpha_hat=alpha * row.log_spectral_norm,
        log_alpha_norm=float(np.log10(relative)) + alpha * row.log_spectral_norm,
    )
    return _judged(row)


XMIN_SEARCH = 2.0
"""Factor by which the search for xmin widens the spread of alpha; measured on exact Pareto samples."""


def _sigma(fits: list[PowerLawFit]) -> float:
    """Standard error of the mean alpha over windows; windows of one layer share no entries."""
    return XMIN_SEARCH * math.sqrt(sum(fit.sigma**2 for fit in fits)) / len(fits)


def _judged(row: LayerDiagnostics) -> LayerDiagnostics:
    """Add the findings that follow from a row's numbers."""
    found: list[Finding] = []
    fitted = not math.isnan(row.alpha)
    dead = row.rank_loss > row.n_eigenvalues // 2 or row.effective_rank < 0.25 * row.null_effective_rank
    if not fitted:
        found.append(Finding.NOT_FITTED)
    if row.M < NARROW:
        found.append(Finding.TOO_SMALL)
    elif fitted:
        if row.spikes == 0:
            found.append(Finding.RANDOM)
        elif row.alpha > 6:
            found.append(Finding.UNDER_TRAINED)
        elif row.alpha < 2:
            found.append(Finding.OVER_TRAINED if row.traps or dead else Finding.HEAVY_TAIL)
    if row.traps:
        found.append(Finding.TRAP)
    if dead and row.M >= 8:
        found.append(Finding.RANK_COLLAPSE)
    return replace(row, findings=tuple(found) or (Finding.HEALTHY,))
