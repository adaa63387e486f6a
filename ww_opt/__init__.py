"""Tune neural networks without a test set: spectra of the weights as an Optuna objective.

Names are loaded on first use, so that ``import ww_opt`` costs nothing and ``ww-opt --help`` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ww_opt.search.objective import SpectralObjective as SpectralObjective
    from ww_opt.search.objective import report as report
    from ww_opt.search.objective import report_late as report_late
    from ww_opt.search.pruner import SpectralPruner as SpectralPruner
    from ww_opt.search.space import LayerwiseSpace as LayerwiseSpace
    from ww_opt.spectral.scores import SCORES as SCORES
    from ww_opt.spectral.scores import score as score
    from ww_opt.study.picking import train_best as train_best
    from ww_opt.study.study import Study as Study
    from ww_opt.training.late_entry import LateEntry as LateEntry
    from ww_opt.training.late_entry import LateExamples as LateExamples
    from ww_opt.training.late_entry import judge as judge
    from ww_opt.training.late_entry import late_loss as late_loss
    from ww_opt.training.layerwise import LayerSettings as LayerSettings
    from ww_opt.training.layerwise import add_dropout as add_dropout
    from ww_opt.training.layerwise import by_block as by_block
    from ww_opt.training.layerwise import by_layer as by_layer
    from ww_opt.training.layerwise import tied as tied
    from ww_opt.training.run import Task as Task

__version__ = "0.1.0.dev0"

_HOME = {
    "LateEntry": "training.late_entry",
    "LateExamples": "training.late_entry",
    "LayerSettings": "training.layerwise",
    "LayerwiseSpace": "search.space",
    "SCORES": "spectral.scores",
    "SpectralObjective": "search.objective",
    "SpectralPruner": "search.pruner",
    "Study": "study.study",
    "Task": "training.run",
    "add_dropout": "training.layerwise",
    "by_block": "training.layerwise",
    "by_layer": "training.layerwise",
    "judge": "training.late_entry",
    "late_loss": "training.late_entry",
    "report": "search.objective",
    "report_late": "search.objective",
    "score": "spectral.scores",
    "tied": "training.layerwise",
    "train_best": "study.picking",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {sorted(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
