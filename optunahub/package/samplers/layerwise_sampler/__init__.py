"""OptunaHub's way to ww_opt's sampler."""

from ww_opt import LayerwiseSampler

__all__ = ["LayerwiseSampler"]
