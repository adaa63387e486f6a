"""A model, a state dict or a file -> named weight matrices, and which of them are hidden layers."""

__all__: list[str] = []
