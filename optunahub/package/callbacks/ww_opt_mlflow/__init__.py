"""OptunaHub's way to ww_opt's MLflow callback."""

from ww_opt.tracking.mlflow import MLflowCallback

__all__ = ["MLflowCallback"]
