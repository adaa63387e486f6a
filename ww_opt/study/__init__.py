"""A study from its beginning to its end: storage, workers, trust, closing."""

__all__: list[str] = []
