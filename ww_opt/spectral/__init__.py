"""The instrument: weights in, numbers out. Knows nothing of trials; names are loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ww_opt.spectral.advice import Suggestion as Suggestion
    from ww_opt.spectral.advice import suggestions as suggestions
    from ww_opt.spectral.comparing.comparison import compare as compare
    from ww_opt.spectral.comparing.shifts import Comparison as Comparison
    from ww_opt.spectral.comparing.shifts import LayerShift as LayerShift
    from ww_opt.spectral.diagnostics import diagnose as diagnose
    from ww_opt.spectral.exponents import hill_alphas as hill_alphas
    from ww_opt.spectral.findings import Finding as Finding
    from ww_opt.spectral.findings import Role as Role
    from ww_opt.spectral.findings import Status as Status
    from ww_opt.spectral.measuring.fits import PowerLawFit as PowerLawFit
    from ww_opt.spectral.measuring.fits import fit_power_law as fit_power_law
    from ww_opt.spectral.rows import Diagnosis as Diagnosis
    from ww_opt.spectral.rows import LayerDiagnostics as LayerDiagnostics
    from ww_opt.spectral.scores import SCORES as SCORES
    from ww_opt.spectral.scores import Score as Score
    from ww_opt.spectral.scores import score as score

_HOME = {
    "Comparison": "comparing.shifts",
    "Diagnosis": "rows",
    "Finding": "findings",
    "LayerDiagnostics": "rows",
    "LayerShift": "comparing.shifts",
    "PowerLawFit": "measuring.fits",
    "Role": "findings",
    "SCORES": "scores",
    "Score": "scores",
    "Status": "findings",
    "Suggestion": "advice",
    "compare": "comparing.comparison",
    "diagnose": "diagnostics",
    "fit_power_law": "measuring.fits",
    "hill_alphas": "exponents",
    "score": "scores",
    "suggestions": "advice",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {sorted(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
