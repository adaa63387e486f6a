"""One layer's spectrum: what lies beyond its null, and the tail that alpha is fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ww_opt.plots.drawing import BLUE, FAINT, GREY, INK, ORANGE, Array, blank_figure, note, say, titled, write
from ww_opt.spectral.findings import Status
from ww_opt.spectral.fits import PowerLawFit, fit_power_laws
from ww_opt.spectral.measure import Measured, Options, measure
from ww_opt.spectral.nulls import Null, count_spikes, null_of
from ww_opt.spectral.spectra import centred_eigenvalues, oriented
from ww_opt.spectral.weights import LayerWeight, Source, named_weights

__all__ = ["spectrum_figure"]

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
    weight = _named(source, layer)
    measured = measure(weight, Options(), np.random.RandomState(0))
    row = measured.row
    figure = blank_figure(f"{layer}: {row.N} x {row.M}, {weight.kind}", height=4.6)
    null_axes, tail_axes = figure.subplots(1, 2)
    if not measured.samples or not measured.eigenvalues.any():
        for axes in (null_axes, tail_axes):
            say(axes, row.fit_status or Status.ALL_ZERO.value)
        return figure
    _draw_against_null(titled(null_axes, "All eigenvalues, against what noise of this shape gives"), weight, measured)
    _draw_tail(titled(tail_axes, "The tail: share of eigenvalues that reach a value"), measured)
    return figure


def _named(source: Source, layer: str) -> LayerWeight:
    names = []
    for weight in named_weights(source):
        if weight.name == layer:
            return weight
        names.append(weight.name)
    raise ValueError(f"`layer` must be a layer of the model, but got {layer!r}; its layers: {names}.")


def _draw_against_null(axes: Axes, weight: LayerWeight, measured: Measured) -> None:
    assert weight.matrices is not None
    relative = _over_edge(weight, measured.row.N)
    if not relative.any():
        say(axes, "Nothing is left once the mean entry is taken off: all entries are equal.")
        return
    shown = relative[relative > _SMALLEST * relative.max()]
    step = np.log10(shown.max() / shown.min()) / np.clip(2.0 * np.sqrt(shown.size), 8, 60)
    # 1 is a boundary of the bins, so that none holds noise and spikes
    first, last = np.floor(np.log10(shown.min()) / step), np.ceil(np.log10(shown.max() * 1.001) / step)
    bins = 10.0 ** (step * np.arange(first, max(last, 1) + 1))
    density = np.histogram(shown, bins)[0] / (relative.size * np.diff(bins))
    floor = 0.5 * density[density > 0].min()
    heights = np.maximum(density, floor)
    n_noise = int(np.sum(bins < 0.999))
    axes.set(xscale="log", yscale="log", ylim=(floor, 6.0 * density.max()))
    axes.stairs(heights[:n_noise], bins[: n_noise + 1], baseline=floor, fill=True, color=FAINT)
    axes.stairs(heights[n_noise:], bins[n_noise:], baseline=floor, fill=True, color=ORANGE)
    axes.axvline(1.0, color=INK, linewidth=1.0)
    axes.set(xlabel="eigenvalue, in units of the null's edge", ylabel="density")
    write(axes, (0.02, 0.96), _words(measured, relative.size - shown.size), va="top")
