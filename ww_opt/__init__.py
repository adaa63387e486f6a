"""Tune neural networks without a test set: training examples that join late choose, spectra of the weights explain.

Names are loaded on first use, so that ``import ww_opt`` costs nothing and ``ww-opt --help`` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ww_opt.search.decisions import decisions as decisions
    from ww_opt.search.objective import SpectralObjective as SpectralObjective
    from ww_opt.search.own_loop import Run as Run
    from ww_opt.search.pruner import SpectralPruner as SpectralPruner
    from ww_opt.search.report import report as report
    from ww_opt.search.report import report_late as report_late
    from ww_opt.search.rungs import Ranks as Ranks
    from ww_opt.search.sampler import LayerwiseSampler as LayerwiseSampler
    from ww_opt.search.space import LayerwiseSpace as LayerwiseSpace
    from ww_opt.search.together import Together as Together
    from ww_opt.search.transfer import carried_over as carried_over
    from ww_opt.spectral.comparing.comparison import compare as compare
    from ww_opt.spectral.scores import SCORES as SCORES
    from ww_opt.spectral.scores import score as score
    from ww_opt.study.picking import train_best as train_best
    from ww_opt.study.study import Study as Study
    from ww_opt.training.balancing import BalanceSchedule as BalanceSchedule
    from ww_opt.training.dropout import add_dropout as add_dropout
    from ww_opt.training.freezing import FreezeSchedule as FreezeSchedule
    from ww_opt.training.judging import judge as judge
    from ww_opt.training.judging import late_loss as late_loss
    from ww_opt.training.labels import by_block as by_block
    from ww_opt.training.labels import by_depth as by_depth
    from ww_opt.training.labels import by_kind as by_kind
    from ww_opt.training.labels import by_layer as by_layer
    from ww_opt.training.labels import by_prefix as by_prefix
    from ww_opt.training.labels import tied as tied
    from ww_opt.training.late_entry import LateEntry as LateEntry
    from ww_opt.training.late_entry import LateExamples as LateExamples
    from ww_opt.training.layerwise import LayerSettings as LayerSettings
    from ww_opt.training.task import Task as Task
    from ww_opt.training.tracing import trace_dropout as trace_dropout

__version__ = "0.1.0.dev0"

_HOME = {
    "BalanceSchedule": "training.balancing",
    "FreezeSchedule": "training.freezing",
    "LateEntry": "training.late_entry",
    "LateExamples": "training.late_entry",
    "LayerSettings": "training.layerwise",
    "LayerwiseSampler": "search.sampler",
    "LayerwiseSpace": "search.space",
    "Ranks": "search.rungs",
    "Run": "search.own_loop",
    "SCORES": "spectral.scores",
    "SpectralObjective": "search.objective",
    "SpectralPruner": "search.pruner",
    "Study": "study.study",
    "Task": "training.task",
    "Together": "search.together",
    "add_dropout": "training.dropout",
    "by_block": "training.labels",
    "by_depth": "training.labels",
    "by_kind": "training.labels",
    "by_layer": "training.labels",
    "by_prefix": "training.labels",
    "carried_over": "search.transfer",
    "compare": "spectral.comparing.comparison",
    "decisions": "search.decisions",
    "judge": "training.judging",
    "late_loss": "training.judging",
    "report": "search.report",
    "report_late": "search.report",
    "score": "spectral.scores",
    "tied": "training.labels",
    "trace_dropout": "training.tracing",
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
