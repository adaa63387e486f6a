"""What MLflow gets."""

__all__: list[str] = []
