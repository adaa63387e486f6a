"""Model -> one row per layer; findings in words. No data, no training, nothing of the model is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ww_opt.spectral.findings import Finding, Status, agreed
from ww_opt.spectral.measuring.fits import PowerLawFit, fit_power_laws
from ww_opt.spectral.measuring.measure import Measured, Options, measure
from ww_opt.spectral.measuring.schedule import Memory, fingerprint, in_batches, in_parallel, n_bytes
from ww_opt.spectral.measuring.spectra import release
from ww_opt.spectral.measuring.weightwatcher import frame_columns
from ww_opt.spectral.reading.roles import Unsettled, settle
from ww_opt.spectral.reading.weights import LayerWeight, Source, read
from ww_opt.spectral.rows import Convention, Diagnosis, LayerDiagnostics
from ww_opt.spectral.rules import with_findings

__all__ = ["diagnose", "diagnose_some"]

XMIN_SEARCH = 1.2
"""Factor by which the search for xmin widens the spread of alpha: on exact Pareto samples, n = 50-1000 and alpha 2-4.5,
68 % of the draws lie within 1.08-1.30 of the plain sigma, 95 % within 2.07-2.37."""


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
        return Diagnosis(known[options][1], convention, known[options][2])
    found = diagnose_some(source, options)
    known[options] = (whole, found.rows, found.note)
    return found


def diagnose_some(source: Source, options: Options, only: Callable[[LayerWeight], bool] | None = None) -> Diagnosis:
    """As :func:`diagnose`, of the layers that ``only`` wants; what the others are measured by is not even read.

    Roles are told from all layers; findings that compare layers compare those that were measured.

    Raises:
        ValueError: no layer is wanted; the message names some that there are.
    """
    reading = read(source)
    rows, note = _rows(reading.weights, options, _MEMORY.of(source), n_bytes(source), only)
    note = "; ".join(filter(None, (f"read from the checkpoint's {reading.where}" if reading.where else "", note)))
    return Diagnosis(rows, options.convention, note)


_MEMORY = Memory()


def _rows(
    weights: Iterable[LayerWeight],
    options: Options,
    known: dict[object, Any],
    total: int | None,
    only: Callable[[LayerWeight], bool] | None,
) -> tuple[tuple[LayerDiagnostics, ...], str]:
    """Measure what is not known yet, layers in parallel, fit all of it together, and say what each layer is."""
    # layers that share one stream of random numbers depend on their neighbours: one after the other, none left out
    shares_stream = options.randomize and options.convention == "weightwatcher"
    generator = np.random.RandomState(options.seed) if shares_stream else None
    rows: list[LayerDiagnostics | None] = []
    listed: list[tuple[str, str, tuple[object, ...] | None]] = []
    unsettled: list[Unsettled] = []
    left_out: set[int] = set()

    def unknown() -> Iterator[tuple[int, LayerWeight]]:
        for place, weight in enumerate(weights):
            before, row = known.get((options, weight.name), (None, None))
            version = _version(weight)
            is_known = isinstance(row, LayerDiagnostics) and before == version and not shares_stream
            rows.append(row if is_known else None)
            listed.append((weight.note, weight.parameter, version))
            unsettled.append(Unsettled(weight.kind, weight.role, _width(weight), weight.facts))
            if only is not None and not only(weight):
                left_out.add(place)
            elif not is_known:
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
    if left_out and len(left_out) == len(rows):
        raise ValueError(
            f"At least one of the model's {len(rows)} layers must be wanted, but none is; the first of them: "
            f"{', '.join(f'{item.facts.path} ({item.kind}, {item.width} wide)' for item in unsettled[:5])}."
        )
    settled = settle(tuple(unsettled))
    told: list[dict[str, Any]] = []
    for (own, parameter, _), verdict in zip(listed, settled.verdicts, strict=True):
        note = "; ".join(text for text in (own, verdict.note) if text)
        told.append({"role": verdict.role, "note": note, "parameter": parameter})
    for place, item in measured:
        rows[place] = _row(item, [next(fits) for _ in item.samples], options.convention, told[place])
    whole, versions = [], []
    for place, row in enumerate(rows):
        if row is None or place in left_out:
            continue
        versions.append(listed[place][2])
        is_same = all(getattr(row, name) == value for name, value in told[place].items())
        whole.append(row if is_same else replace(row, **told[place]))
    found = with_findings(whole) if options.convention == "default" else tuple(whole)
    if only is None:
        known.update({(options, row.name): (own, row) for row, own in zip(found, versions, strict=True) if own})
    return found, settled.note


def _version(weight: LayerWeight) -> tuple[object, ...] | None:
    """What a row is known again by: the numbers, and how they were cut into matrices."""
    own = weight.matrices
    return None if weight.version is None or own is None else (weight.version, weight.kind, tuple(own.shape))


def _width(weight: LayerWeight) -> int:
    return 0 if weight.matrices is None else min(weight.matrices.shape[1:])


def _alike(weight: LayerWeight) -> Hashable:
    """What layers agree in that are measured together."""
    own = weight.matrices
    return None if own is None else (own.shape[0], max(own.shape[1:]), min(own.shape[1:]), own.dtype, own.device)


def _n_bytes(weight: LayerWeight) -> int:
    return 0 if weight.matrices is None else weight.matrices.numel() * weight.matrices.element_size()


def _row(item: Measured, fits: list[PowerLawFit], convention: Convention, told: Mapping[str, Any]) -> LayerDiagnostics:
    """Join what was measured with the fits of its samples and what is ``told`` of it, and say what follows."""
    columns = {**item.columns, **told}
    if not fits:
        return LayerDiagnostics(**columns, findings=(Finding.NOT_FITTED,))
    good = [fit for fit in fits if fit.status is Status.SUCCESS]
    fitted = _fit_columns(item, good, convention) if good else {"fit_status": fits[0].status.value}
    row = LayerDiagnostics(**columns, **fitted)
    if convention == "weightwatcher":
        return replace(row, findings=_findings_of_alpha(row), extra=frame_columns(row))
    return row  # findings follow from all rows together


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
