"""One run: settings per layer, the loop, the examples that join late."""

__all__: list[str] = []
