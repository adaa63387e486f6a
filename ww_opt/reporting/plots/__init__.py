"""Figures: what a study did, one layer's spectrum, all layers of a model, loss over the number of examples.

Drawn with matplotlib's objects alone: no pyplot, no window, no setting of yours changed; ``figure.savefig`` is yours to
call. What is NaN or infinite is not drawn; where nothing is left to draw, a sentence stands instead.
"""

from ww_opt.reporting.plots.data import data_figure
from ww_opt.reporting.plots.layers import layers_figure
from ww_opt.reporting.plots.spectrum import spectrum_figure, weight_figure
from ww_opt.reporting.plots.study import study_figure

__all__ = ["data_figure", "layers_figure", "spectrum_figure", "study_figure", "weight_figure"]
