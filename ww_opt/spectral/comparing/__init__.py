"""Two checkpoints -> what changed, and which layers broke.

``Source, Source -> headers -> Matching -> (Diagnosis, Diagnosis, Pair per layer) -> LayerShift -> Break -> Comparison``
"""

__all__: list[str] = []
