"""Model -> one row per layer; findings in words. No data, no training, nothing of the model is changed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ww_opt.spectral.findings import NARROW, SAID_OF_ALL, Finding, Status, agreed
from ww_opt.spectral.measuring.fits import PowerLawFit, fit_power_laws
from ww_opt.spectral.measuring.measure import Measured, Options, measure
from ww_opt.spectral.measuring.schedule import Memory, fingerprint, in_batches, in_parallel, n_bytes
from ww_opt.spectral.measuring.spectra import release
from ww_opt.spectral.measuring.weightwatcher import frame_columns
from ww_opt.spectral.reading.weights import LayerWeight, Source, named_weights
from ww_opt.spectral.rows import Convention, Diagnosis, LayerDiagnostics

__all__ = ["COLLAPSED", "LIMITS", "Limits", "diagnose", "scale_ratios", "with_findings"]

COLLAPSED = 0.1
"""Share of the null's effective rank under which a layer counts as collapsed. A quarter, tried first, flagged 25 of 330
half-trained runs of the evidence, the best run of one task among them; a tenth flagged one, and that was a bad one."""
XMIN_SEARCH = 1.2
"""Factor by which the search for xmin widens the spread of alpha: on exact Pareto samples, n = 50-1000 and alpha 2-4.5,
68 % of the draws lie within 1.08-1.30 of the plain sigma, 95 % within 2.07-2.37."""


@dataclass(frozen=True)
class Limits:
    """Where findings begin.

    Attributes:
        uneven: excess, times the root of the number of entries, under which a layer without spikes has moved little.
            Noise has a mean of 0 and a spread of 0.7 to 1.8, unequal rows and a shifted mean included; layers that did
            not move reached 2.5, layers of healthy runs began at 4.3.
        fresh: share of the null's effective rank that it must have kept besides. Layers that did not move kept .99.
        learnt: share of spikes from which alpha above 6 no longer reads as under-trained.
        huge: largest entry, in standard deviations, from which traps are a finding while the rank is whole. A layer of
            a healthy public ResNet has 9.
        overgrown: scale beside the median of the other layers from which a layer is overgrown. The first and the last
            layers of healthy models differ from the others by factors up to 2.2.
        shrunk: pairs of such a scale and of a share of the null's effective rank: a layer under both is shrunk. The
            nearer its scale to that of the others, the more of its rank must be gone, for scales at the start differ.
    """

    uneven: float = 4.0
    fresh: float = 0.93
    learnt: float = 0.05
    huge: float = 12.0
    overgrown: float = 4.0
    shrunk: tuple[tuple[float, float], ...] = ((0.2, math.inf), (0.35, 0.75), (0.5, 0.35))


LIMITS = Limits()


def diagnose(
    source: Source,
    *,
    convention: Convention = "default",
    randomize: bool = False,
    mp_fit: bool = False,
    erg: bool = False,
    seed: int = 0,
) -> Diagnosis:
    """Read the spectra of all weight matrices of a model.

    Args:
        source: a module, a state dict, or the path of a checkpoint. It is only read.
        convention: ``default`` (scale-free, nulls with the layer's own row and column variances, square windows for
            rectangular layers) or ``weightwatcher`` (the numbers of WeightWatcher 0.7.7).
        randomize: add columns on the spectrum of the permuted entries.
        mp_fit: add columns on the Marchenko-Pastur bulk.
        erg: add columns on where the product of the largest eigenvalues is 1 (WeightWatcher's ``detX``).
        seed: of the permutations.

    Returns:
        One row per layer. A layer that cannot be analysed is a row with a status, never an exception.

    Raises:
        ValueError: the model or the file has no weight of two or more dimensions, or the convention is unknown.
        FileNotFoundError: there is no such file.
        TypeError: ``source`` is none of the three.
    """
    if convention not in ("default", "weightwatcher"):
        raise ValueError(f"`convention` must be 'default' or 'weightwatcher', but got {convention!r}.")
    options = Options(convention, randomize, mp_fit, erg, seed)
    known, whole = _MEMORY.of(source), fingerprint(source)
    if whole is not None and known.get(options, (None, None))[0] == whole:
        return Diagnosis(known[options][1], convention)
    rows = _rows(named_weights(source), options, known, n_bytes(source))
    known[options] = (whole, rows)
    return Diagnosis(rows, convention)


_MEMORY = Memory()


def _rows(
    weights: Iterable[LayerWeight], options: Options, known: dict[object, Any], total: int | None
) -> tuple[LayerDiagnostics, ...]:
    """Measure what is not known yet, layers in parallel, and fit all of it together."""
    generator = np.random.RandomState(options.seed)
    # layers that share one stream of random numbers depend on their neighbours: one after the other, none left out
    shares_stream = options.randomize and options.convention == "weightwatcher"
    rows: list[LayerDiagnostics | None] = []
    versions: list[tuple[object, ...] | None] = []

    def unknown() -> Iterator[tuple[int, LayerWeight]]:
        for place, weight in enumerate(weights):
            version, row = known.get((options, weight.name), (None, None))
            is_known = isinstance(row, LayerDiagnostics) and version == weight.version and not shares_stream
            rows.append(row if is_known else None)
            versions.append(weight.version)
            if not is_known:
                yield place, weight

    def visit(batch: list[tuple[int, LayerWeight]]) -> list[tuple[int, Measured]]:
        found = measure([weight for _, weight in batch], options, generator)
        return [(place, item) for (place, _), item in zip(batch, found, strict=True)]

    if shares_stream:
        visited = [visit([item]) for item in unknown()]
    else:
        batches = in_batches(unknown(), lambda item: _alike(item[1]), lambda item: _n_bytes(item[1]))
        visited = in_parallel(visit, batches, lambda batch: sum(_n_bytes(weight) for _, weight in batch), total)
    release()
    measured = [item for batch in visited for item in batch]
    fits = iter(fit_power_laws([sample for _, item in measured for sample in item.samples]))
    for place, item in measured:
        row = _row(item, [next(fits) for _ in item.samples], options.convention)
        if versions[place] is not None:
            known[(options, row.name)] = (versions[place], row)
        rows[place] = row
    whole = tuple(row for row in rows if row is not None)
    return whole if options.convention == "weightwatcher" else with_findings(whole)


def with_findings(rows: Iterable[LayerDiagnostics], limits: Limits = LIMITS) -> tuple[LayerDiagnostics, ...]:
    """Say anew, from their numbers, what is found in the rows of one model in the ``default`` convention."""
    rows = tuple(rows)
    ratios = scale_ratios(rows)
    result = []
    for row in rows:
        found = [*_own(row, limits), *_beside(row, ratios.get(row.name, math.nan), limits)]
        findings = agreed(found if _is_hidden(row) else SAID_OF_ALL.intersection(found))
        result.append(row if findings == row.findings else replace(row, findings=findings))
    return tuple(result)


def _is_hidden(row: LayerDiagnostics) -> bool:
    """Whether the row is a layer of which findings speak."""
    return row.kind not in ("embedding", "parameter", "lora")


def scale_ratios(rows: Iterable[LayerDiagnostics]) -> dict[str, float]:
    """Scale of each layer over the median of the others, by name; empty where fewer than three can be compared.

    Of three layers over the median of all: of two others one alone would decide. Scales are compared inside a model
    alone: what is usual depends on the initialisation. Layers before a norm are left out, since their scale means
    nothing, and so is what is no layer with a fan.
    """
    scales = {row.name: own for row in rows if row.normed is not True and (own := _scale(row)) > 0}
    if len(scales) < 3:
        return {}
    return {
        name: own / statistics.median(value for other, value in scales.items() if other != name or len(scales) == 3)
        for name, own in scales.items()
    }


def _beside(row: LayerDiagnostics, ratio: float, limits: Limits) -> list[Finding]:
    """What follows from a layer's scale beside that of the others."""
    if row.M < NARROW:
        return []
    share = row.effective_rank / row.null_effective_rank
    if ratio > limits.overgrown:
        found = Finding.OVERGROWN
    elif any(ratio < scale and share < rank for scale, rank in limits.shrunk):
        found = Finding.SHRUNK
    else:
        return []
    return [Finding.ODD_SCALE if row.normed is None else found]


def _scale(row: LayerDiagnostics) -> float:
    """Root mean square of the entries in units of Xavier's initialisation; 0 for what is no layer with a fan."""
    if not row.is_analysed or not _is_hidden(row):
        return 0.0
    return row.frobenius_norm / math.sqrt(row.N * row.M) * math.sqrt((row.N + row.M) / 2)


def _alike(weight: LayerWeight) -> Hashable:
    """What layers agree in that are measured together."""
    own = weight.matrices
    return None if own is None else (own.shape[0], max(own.shape[1:]), min(own.shape[1:]), own.dtype, own.device)


def _n_bytes(weight: LayerWeight) -> int:
    return 0 if weight.matrices is None else weight.matrices.numel() * weight.matrices.element_size()


def _row(item: Measured, fits: list[PowerLawFit], convention: Convention) -> LayerDiagnostics:
    """Join what was measured with the fits of its samples, and say what follows from both."""
    if not fits:
        return LayerDiagnostics(**item.columns, findings=(Finding.NOT_FITTED,))
    good = [fit for fit in fits if fit.status is Status.SUCCESS]
    fitted = _fit_columns(item, good, convention) if good else {"fit_status": fits[0].status.value}
    row = LayerDiagnostics(**item.columns, **fitted)
    if convention == "weightwatcher":
        return replace(row, findings=_findings_of_alpha(row), extra=frame_columns(row))
    return with_findings((row,))[0]


def _fit_columns(item: Measured, fits: list[PowerLawFit], convention: Convention) -> dict[str, Any]:
    alpha = sum(fit.alpha for fit in fits) / len(fits)
    middle = sorted(fits, key=lambda fit: fit.alpha)[len(fits) // 2]
    log_largest = item.columns["log_spectral_norm"]
    # sum of (x / max)^alpha stays finite where x^alpha overflows
    relative = np.power(item.eigenvalues / 10.0**log_largest, alpha).sum()
    return {
        "alpha": alpha,
        "xmin": middle.xmin,
        "xmax": middle.xmax,
        "D": sum(fit.D for fit in fits) / len(fits),
        "sigma": middle.sigma if convention == "weightwatcher" else _sigma(fits),
        "n_tail": middle.n_tail,
        "fit_status": Status.SUCCESS.value,
        "alpha_hat": alpha * log_largest,
        "log_alpha_norm": float(np.log10(relative)) + alpha * log_largest,
    }


def _sigma(fits: list[PowerLawFit]) -> float:
    """Standard error of the mean alpha over windows, which share few entries."""
    return XMIN_SEARCH * math.sqrt(sum(fit.sigma**2 for fit in fits)) / len(fits)


def _findings_of_alpha(row: LayerDiagnostics) -> tuple[Finding, ...]:
    """What WeightWatcher warns of, and the traps where they were asked for."""
    if math.isnan(row.alpha):
        return (Finding.NOT_FITTED,)
    found = [Finding.UNDER_TRAINED] if row.alpha > 6 else [Finding.HEAVY_TAIL] if row.alpha < 2 else []
    if row.extra.get("num_traps", 0) > 0:
        found.append(Finding.TRAP)
    return agreed(found)


def _own(row: LayerDiagnostics, limits: Limits) -> list[Finding]:
    """What follows from a row's own numbers."""
    found: list[Finding] = []
    if not row.is_analysed:
        return [Finding.NOT_FITTED]
    fitted = not math.isnan(row.alpha)
    dead = row.rank_loss > row.n_eigenvalues // 2 or row.effective_rank < COLLAPSED * row.null_effective_rank
    has_trap = row.traps > 0 and (dead or row.largest_entry >= limits.huge)
    if not fitted:
        found.append(Finding.NOT_FITTED)
    if row.M < NARROW:
        found.append(Finding.TOO_SMALL)
    elif fitted:
        is_noise = row.spikes == 0 and row.excess < limits.uneven / math.sqrt(row.n_matrices * row.N * row.M)
        if is_noise and row.effective_rank > limits.fresh * row.null_effective_rank:
            found.append(Finding.MOVED_LITTLE)
        if row.alpha > 6 and row.spikes < limits.learnt * row.n_eigenvalues:
            found.append(Finding.UNDER_TRAINED)
        elif row.alpha < 2:
            found.append(Finding.OVER_TRAINED if has_trap or dead else Finding.HEAVY_TAIL)
    if has_trap:
        found.append(Finding.TRAP)
    if dead and row.M >= 8:
        found.append(Finding.RANK_COLLAPSE)
    if row.levels:
        found.append(Finding.QUANTISED)
    return found
