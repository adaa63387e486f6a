"""Hill's exponent of each hidden layer: what the balance rules of the literature go by."""

from __future__ import annotations

import math

import torch

from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.measuring.fits import hill
from ww_opt.spectral.measuring.spectra import eigenvalues, oriented
from ww_opt.spectral.reading.weights import Source, named_weights

__all__ = ["hill_alphas"]


@torch.no_grad()
def hill_alphas(source: Source, share: float = 0.5) -> dict[str, float]:
    """Hill's estimate of alpha of each layer that a score looks at, from the largest ``share`` of its eigenvalues.

    PL_Alpha_Hill of TempBalance (arXiv 2312.00359, eq. 2) and AlphaDecay (arXiv 2506.14562): ``1 + k / sum log(x_i /
    x_k)``. The matrices of a kernel's positions are pooled. It is biased by the aspect ratio (2.15 for square noise,
    5.5 at ten to one), so it compares layers of one shape, or one layer with itself. Embeddings, heads, frozen layers
    and those under 32 wide are left out; a layer that is not finite is NaN.

    Args:
        source: as for :func:`ww_opt.spectral.diagnose`.
        share: in (0, 1].

    Raises:
        ValueError: ``share`` is out of range, or the source has no weight of two or more dimensions.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"`0 < share <= 1` must hold, but got share={share}.")
    asked = {row.name for row in diagnose(source) if row.is_judged}
    found = {}
    for weight in named_weights(source):
        if weight.name in asked and weight.matrices is not None:
            stack = oriented(weight.matrices)
            is_finite = bool(stack.isfinite().all())
            found[weight.name] = hill(eigenvalues(stack).ravel(), share) if is_finite else math.nan
    return found
