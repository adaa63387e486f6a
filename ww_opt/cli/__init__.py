"""The command ``ww-opt``, one file a subcommand."""

__all__: list[str] = []
