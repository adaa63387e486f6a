"""What is tried next and what a trial is worth: records, space, objective, pruner."""

__all__: list[str] = []
