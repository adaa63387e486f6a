"""Is it a power law at all? Its tail against the truncated power law, the lognormal and the exponential.

The likelihood-ratio tests are those of the ``powerlaw`` package (Alstott, Bullmore and Plenz, PLoS ONE 9 (2014);
Clauset, Shalizi and Newman, SIAM Review 51 (2009), section 5). It loads matplotlib, so it is imported when asked for.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass

import numpy as np

from ww_opt.spectral.findings import Status
from ww_opt.spectral.fits import Array, fit_power_law

__all__ = ["ALTERNATIVES", "Comparison", "compare_distributions"]

ALTERNATIVES = ("truncated_power_law", "lognormal", "exponential")


@dataclass(frozen=True)
class Comparison:
    """A power law against one alternative, on the tail that the power law chose.

    Attributes:
        alternative: name of the other distribution.
        R: normalised log-likelihood ratio; positive: the power law fits better. NaN where the other has no fit.
        p: probability of so large a ratio by chance; above 0.1 the data do not decide.
        parameters: of the other distribution, in the order of the ``powerlaw`` package.
    """

    alternative: str
    R: float
    p: float
    parameters: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """Which of the two, in words."""
        if np.isnan(self.R):
            return "not compared: the other distribution could not be fitted"
        if self.p > 0.1:
            return "undecided"
        return "power law" if self.R > 0 else self.alternative.replace("_", " ")


def compare_distributions(values: Array) -> tuple[Comparison, ...]:
    """Compare the power-law tail of eigenvalues with each of ``ALTERNATIVES``.

    Args:
        values: positive numbers, shape ``(n,)``, any order.

    Returns:
        One comparison per alternative; empty where no power law could be fitted.
    """
    fit = fit_power_law(values)
    if fit.status is not Status.SUCCESS:
        return ()
    import powerlaw

    # its optimizer prints and warns at the edges of the parameters' ranges
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        theirs = powerlaw.Fit(values, xmin=fit.xmin, parameter_ranges={"alpha": [1, None]}, verbose=False)
        return tuple(_compared(theirs, name) for name in ALTERNATIVES)


def _compared(theirs: object, name: str) -> Comparison:
    nested = name == "truncated_power_law"
    try:
        R, p = theirs.distribution_compare("power_law", name, nested=nested, normalized_ratio=True)  # type: ignore[attr-defined]
        other = getattr(theirs, name)
        given = (getattr(other, key, None) for key in ("parameter1", "parameter2"))
    except Exception:  # whatever its optimizer raises, the other comparisons still stand
        return Comparison(name, float("nan"), float("nan"), ())
    return Comparison(name, float(R), float(p), tuple(float(value) for value in given if value is not None))
