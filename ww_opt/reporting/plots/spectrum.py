"""One layer's spectrum: what lies beyond its null, and the tail that alpha is fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ww_opt.reporting.plots.drawing import Array, Colour, blank_figure, note, say, titled, write
from ww_opt.spectral.findings import Status
from ww_opt.spectral.measuring.fits import PowerLawFit, fit_power_laws
from ww_opt.spectral.measuring.measure import Options, measure
from ww_opt.spectral.measuring.nulls import null_of, spike_edges
from ww_opt.spectral.measuring.spectra import centred_eigenvalues, eigenvalues, oriented
from ww_opt.spectral.reading.weights import LayerWeight, Source, named_weights
from ww_opt.spectral.rows import LayerDiagnostics

__all__ = ["spectrum_figure", "weight_figure"]

_SMALLEST = 1e-4
"""Eigenvalues under this share of the largest are not drawn: they would fill half of a logarithmic axis."""


def spectrum_figure(source: Source, layer: str) -> Figure:
    """Draw the eigenvalues of one layer against its null, and the power law of their tail.

    Left, their density in units of the null's edge: those beyond 1 are spikes. Right, the share of eigenvalues that
    reach a value, on which a power law is a line of slope ``1 - alpha``. A rectangular layer is fitted in square
    windows (see :func:`ww_opt.spectral.diagnose`): dots and line are those of the window with the median alpha, the
    other windows are thin, and the mean is told. Where there is nothing to draw, the layer's status says why.

    Args:
        source: a module, a state dict, or the path of a checkpoint. It is only read.
        layer: its name, as in a diagnosis.

    Raises:
        ValueError: no layer has this name; the message lists those there are.
        FileNotFoundError, TypeError: the source is no model, as in a diagnosis.
    """
    return weight_figure(_named(source, layer))


def weight_figure(weight: LayerWeight) -> Figure:
    """As :func:`spectrum_figure`, of a layer's weight as it was read."""
    layer = weight.name
    [measured] = measure([weight], Options(), np.random.RandomState(0))
    row = LayerDiagnostics(**measured.columns)
    fits = fit_power_laws(measured.samples)
    figure = blank_figure(f"{layer}, {row.N} x {row.M} {weight.kind}: {_story(row, fits)}", height=4.6)
    null_axes, tail_axes = figure.subplots(1, 2)
    if not measured.samples or not measured.eigenvalues.any():
        for axes in (null_axes, tail_axes):
            say(axes, row.fit_status or Status.ALL_ZERO.value)
        return figure
    _draw_against_null(titled(null_axes, "All eigenvalues, and where those of noise would end"), weight, row)
    _draw_tail(titled(tail_axes, "The tail that alpha is fitted to"), measured.samples, fits)
    return figure


def _named(source: Source, layer: str) -> LayerWeight:
    names = []
    for weight in named_weights(source):
        if weight.name == layer:
            return weight
        names.append(weight.name)
    raise ValueError(f"`layer` must be a layer of the model, but got {layer!r}; its layers: {names}.")


def _story(row: LayerDiagnostics, fits: Sequence[PowerLawFit]) -> str:
    if not row.is_analysed:
        return row.fit_status.partition(":")[0]
    alphas = [fit.alpha for fit in fits if fit.status is Status.SUCCESS]
    found = [_count(row.spikes, "spike"), *([_count(row.traps, "trap")] if row.traps else [])]
    return ", ".join([f"alpha {np.mean(alphas):.2f}" if alphas else "not fitted", *found])


def _draw_against_null(axes: Axes, weight: LayerWeight, row: LayerDiagnostics) -> None:
    relative = _over_edge(weight)
    if not relative.any():
        say(axes, "All entries are equal: nothing is left once their mean is taken off.")
        return
    shown = relative[relative > _SMALLEST * relative.max()]
    bins = _bins(shown)
    density = np.histogram(shown, bins)[0] / (relative.size * np.diff(bins))
    floor, top = 0.5 * density[density > 0].min(), density.max()
    heights, n_noise = np.maximum(density, floor), int(np.searchsorted(bins, 1.0))
    axes.set(xscale="log", yscale="log", ylim=(floor, 12.0 * top))
    axes.stairs(heights[:n_noise], bins[: n_noise + 1], baseline=floor, fill=True, color=Colour.FAINT)
    axes.stairs(heights[n_noise:], bins[n_noise:], baseline=floor, fill=True, color=Colour.ORANGE)
    axes.axvline(1.0, color=Colour.INK, linewidth=1.0)
    note(axes, (1.0, 5.0 * top), "up to the null's edge:\nwhat noise can make", (-6, 0), ha="right")
    beyond = f"{_count(row.spikes, 'spike')} beyond it" + ":\nwhat was learnt" * (row.spikes > 0)
    note(axes, (1.0, 5.0 * top), beyond, (6, 0), ha="left", color=Colour.ORANGE)
    words = ["eigenvalue, in units of the null's edge"]
    if shown.size < relative.size:
        words.append(f"smaller ones, not drawn: {relative.size - shown.size}")
    if row.traps:
        words.append(f"{_count(row.traps, 'trap')}: entries of up to {row.largest_entry:.0f} standard deviations")
    axes.set(xlabel="\n".join(words), ylabel="density")


def _count(number: int, thing: str) -> str:
    return f"{number or 'no'} {thing}{'s' * (number != 1)}"


def _bins(values: Array) -> Array:
    """Logarithmic bins over ``values`` with a boundary at 1, the null's edge: none holds noise and spikes."""
    logs = np.log10(values)
    step = max(float(np.ptp(logs)), 0.1) / np.clip(2.0 * np.sqrt(values.size), 8, 60)
    first, last = min(np.floor(logs.min() / step), -1), max(np.floor(logs.max() / step) + 1, 1)
    return np.asarray(10.0 ** (step * np.arange(first, last + 1)))


def _over_edge(weight: LayerWeight) -> Array:
    """Eigenvalues over their matrix's edge, the one that its spikes are counted by; 0 where a matrix has no noise."""
    assert weight.matrices is not None
    stack = oriented(weight.matrices)
    null = null_of(stack)
    values = centred_eigenvalues(stack, null.means) if null.shifted else eigenvalues(stack)
    return np.asarray(values / spike_edges(values, null, stack.shape[1])[:, None]).ravel()


def _draw_tail(axes: Axes, samples: Sequence[Array], fits: Sequence[PowerLawFit]) -> None:
    good = sorted((fit.alpha, place) for place, fit in enumerate(fits) if fit.status is Status.SUCCESS)
    if not good:
        say(axes, fits[0].status.value)
        return
    middle = good[len(good) // 2][1]
    fit = fits[middle]
    axes.set(
        xscale="log", yscale="log", xlim=(_SMALLEST * fit.xmax, 3.0 * fit.xmax), ylim=(0.3 / samples[middle].size, 2.0)
    )
    axes.set(xlabel="eigenvalue", ylabel="share of eigenvalues that reach it")
    for place, sample in enumerate(samples):
        x = np.sort(sample[sample > 0])
        share = np.arange(x.size, 0, -1) / sample.size
        if place == middle:
            axes.plot(x, share, "o", color=Colour.BLUE, markersize=3.5)
        else:
            axes.plot(x, share, color=Colour.FAINT, linewidth=1.2, zorder=1)
    reach = fit.n_tail / samples[middle].size
    ends = np.array([fit.xmin, fit.xmax])
    axes.plot(ends, reach * (ends / fit.xmin) ** (1.0 - fit.alpha), color=Colour.ORANGE, linewidth=2.0)
    note(axes, (fit.xmin, reach), "xmin: the tail begins", (-6, -6), ha="right", va="top", color=Colour.ORANGE)
    lines = [
        f"alpha {fit.alpha:.2f}: line of slope 1 - alpha",
        f"through {fit.n_tail} eigenvalues, KS distance {fit.D:.2f}",
    ]
    if len(samples) > 1:
        mean = np.mean([alpha for alpha, _ in good])
        lines += [
            f"Dots and line: the median of {len(samples)} square windows;",
            f"the layer's alpha is their mean, {mean:.2f}",
        ]
    write(axes, (0.03, 0.04), "\n".join(lines), va="bottom")
