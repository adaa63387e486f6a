"""What people read: tables, the closing words, figures."""

__all__: list[str] = []
