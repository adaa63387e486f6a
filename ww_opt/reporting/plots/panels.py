"""Small spectra, many on a page: what lies beyond the null, and the tail with its fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ww_opt.reporting.plots.drawing import Array, Colour, say, titled
from ww_opt.reporting.plots.spectrum import SMALLEST, bins_over, middle_of, over_edge
from ww_opt.spectral.findings import Status
from ww_opt.spectral.measuring.fits import PowerLawFit, fit_power_laws
from ww_opt.spectral.measuring.measure import Options, measure
from ww_opt.spectral.reading.weights import LayerWeight, Source, named_weights

__all__ = ["Spectrum", "read_spectra", "spectrum_panel"]

_N_DOTS = 48
"""Eigenvalues that are drawn of a tail; the largest all, the others spaced evenly on the logarithm of their rank."""


@dataclass(frozen=True)
class Spectrum:
    """One layer as it is drawn.

    Attributes:
        name: of the layer.
        relative: eigenvalues over the null's edge.
        samples: what alpha is fitted to.
        fits: of the samples.
    """

    name: str
    relative: Array
    samples: tuple[Array, ...]
    fits: tuple[PowerLawFit, ...]


def read_spectra(source: Source, layers: Sequence[str]) -> list[Spectrum]:
    """Read the spectra of some layers, in the order in which the source has them.

    Raises:
        ValueError, FileNotFoundError, TypeError: as :func:`ww_opt.spectral.diagnose`.
    """
    return [_read(weight) for weight in named_weights(source) if weight.name in set(layers)]


def _read(weight: LayerWeight) -> Spectrum:
    [measured] = measure([weight], Options(), np.random.RandomState(0))
    relative = over_edge(weight) if measured.samples and measured.eigenvalues.any() else np.empty(0)
    return Spectrum(weight.name, relative, measured.samples, tuple(fit_power_laws(measured.samples)))


def spectrum_panel(own: Spectrum) -> Figure:
    """Draw one spectrum, 4 inches wide: grey, what noise can make; orange, spikes and the fit."""
    figure = Figure(figsize=(4.0, 1.6), layout="constrained")
    null_axes, tail_axes = (titled(axes, "") for axes in figure.subplots(1, 2))
    _draw_null(null_axes, own.relative)
    _draw_tail(tail_axes, own)
    for axes in (null_axes, tail_axes):
        axes.spines[["left", "bottom"]].set_color(Colour.GREY)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
    return figure


def _draw_null(axes: Axes, relative: Array) -> None:
    if not relative.any():
        say(axes, "Nothing to draw: its entries are all equal.")
        return
    shown = relative[relative > SMALLEST * relative.max()]
    bins = bins_over(shown)
    density = np.histogram(shown, bins)[0] / (relative.size * np.diff(bins))
    floor = 0.5 * density[density > 0].min()
    heights, n_noise = np.maximum(density, floor), int(np.searchsorted(bins, 1.0))
    axes.set(xscale="log", yscale="log", ylim=(floor, 2.0 * density.max()))
    axes.stairs(heights[:n_noise], bins[: n_noise + 1], baseline=floor, fill=True, color=Colour.FAINT)
    axes.stairs(heights[n_noise:], bins[n_noise:], baseline=floor, fill=True, color=Colour.ORANGE)
    axes.axvline(1.0, color=Colour.INK, linewidth=1.0)
    axes.set(xlabel="eigenvalue / null's edge", ylabel="density", yticks=[])
    _plain(axes.xaxis)


def _draw_tail(axes: Axes, own: Spectrum) -> None:
    middle = middle_of(own.fits)
    if middle is None:
        say(axes, own.fits[0].status.value if own.fits else Status.ALL_ZERO.value)
        return
    fit, sample = own.fits[middle], own.samples[middle]
    x = np.sort(sample[sample > 0])
    share = np.arange(x.size, 0, -1) / sample.size
    kept = _thinned(x.size)
    axes.set(xscale="log", yscale="log", ylim=(0.5 / sample.size, 2.0))
    low = min(fit.xmin / 3.0, x[x > 0.01 * fit.xmax].min())
    axes.set_xlim(low, 2.0 * fit.xmax)
    seen = kept[x[kept] >= low]
    axes.plot(x[seen], share[seen], "o", color=Colour.BLUE, markersize=3.0)
    ends = np.array([fit.xmin, fit.xmax])
    reach = fit.n_tail / sample.size
    axes.plot(ends, reach * (ends / fit.xmin) ** (1.0 - fit.alpha), color=Colour.ORANGE, linewidth=2.0)
    axes.set(xlabel="eigenvalue", ylabel="share above")
    for axis in (axes.xaxis, axes.yaxis):
        _plain(axis)


def _thinned(n: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Places of the eigenvalues to draw, of ``n`` rising ones."""
    ranks = np.unique(np.geomspace(1, n, _N_DOTS).round().astype(np.intp))
    return np.asarray(n - ranks[::-1])


def _plain(axis: Axis) -> None:
    """Powers of ten as plain numbers: typeset ones weigh five times as much."""
    axis.set_major_locator(LogLocator(numticks=3))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
