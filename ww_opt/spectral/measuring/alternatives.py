"""Is it a power law at all? Its tail against the truncated power law, the lognormal and the exponential.

The likelihood-ratio tests are those of the ``powerlaw`` package (Alstott, Bullmore and Plenz, PLoS ONE 9 (2014);
Clauset, Shalizi and Newman, SIAM Review 51 (2009), section 5). It loads matplotlib, so it is imported when asked for.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ww_opt.spectral.findings import Status
from ww_opt.spectral.measuring.fits import MIN_TAIL, Array, fit_power_law

__all__ = ["ALTERNATIVES", "Comparison", "TruncatedFit", "compare_distributions", "fit_truncated"]

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


@dataclass(frozen=True)
class TruncatedFit:
    """Truncated power law ``p(x) ~ x^-alpha exp(-Lambda x)`` above ``xmin``; NaN unless ``status`` is SUCCESS."""

    alpha: float
    Lambda: float
    xmin: float
    D: float
    n_tail: int
    status: Status


def fit_truncated(values: Array, *, extended: bool = False) -> TruncatedFit:
    """Fit a truncated power law to eigenvalues, shape ``(n,)``, any order.

    Args:
        values: positive numbers.
        extended: search xmin over ten quantiles for the truncated law's own smallest D (E-TPL) instead of taking the
            power law's xmin (TPL).
    """
    fit = fit_power_law(values)
    nan = float("nan")
    if fit.status is not Status.SUCCESS:
        return TruncatedFit(nan, nan, nan, nan, 0, fit.status)
    x = np.sort(values[values > 0])
    starts = [*np.quantile(x, np.linspace(0, 0.9, 10), method="lower"), fit.xmin] if extended else [fit.xmin]
    found = [candidate for start in starts if (candidate := _truncated_at(x, float(start))) is not None]
    if not found:
        return TruncatedFit(nan, nan, nan, nan, 0, Status.NO_OPTIMUM)
    return min(found, key=lambda candidate: candidate.D)


def _truncated_at(x: Array, xmin: float) -> TruncatedFit | None:
    if (x >= xmin).sum() < MIN_TAIL:
        return None
    with _silent():
        try:
            law = _theirs(x, xmin).truncated_power_law
            numbers = float(law.alpha), float(law.Lambda), xmin, float(law.D)
        except Exception:  # whatever its optimizer raises: no optimum from this start
            return None
    return TruncatedFit(*numbers, int((x >= xmin).sum()), Status.SUCCESS) if np.isfinite(numbers).all() else None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep quiet what the package's optimizer prints and warns of at the edges of its parameters' ranges."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _theirs(values: Array, xmin: float) -> Any:
    import powerlaw

    return powerlaw.Fit(values, xmin=xmin, parameter_ranges={"alpha": [1, None]}, verbose=False)


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
    with _silent():
        theirs = _theirs(values, fit.xmin)
        return tuple(_compared(theirs, name) for name in ALTERNATIVES)


def _compared(theirs: Any, name: str) -> Comparison:
    nested = name == "truncated_power_law"
    try:
        R, p = theirs.distribution_compare("power_law", name, nested=nested, normalized_ratio=True)
        other = getattr(theirs, name)
        given = (getattr(other, key, None) for key in ("parameter1", "parameter2"))
    except Exception:  # whatever its optimizer raises, the other comparisons still stand
        return Comparison(name, float("nan"), float("nan"), ())
    return Comparison(name, float(R), float(p), tuple(float(value) for value in given if value is not None))
