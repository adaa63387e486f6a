"""Trials in loops that a framework owns: one file a framework, which nothing else imports."""

__all__: list[str] = []
