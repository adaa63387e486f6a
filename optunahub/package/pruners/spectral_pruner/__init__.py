"""OptunaHub's way to ww_opt's pruner."""

from ww_opt import Ranks, SpectralPruner, decisions, report

__all__ = ["Ranks", "SpectralPruner", "decisions", "report"]
