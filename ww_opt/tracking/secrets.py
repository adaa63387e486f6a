"""Passwords stay where the user put them: nothing that is written, logged or sent holds one."""

from __future__ import annotations

import re

__all__ = ["HIDDEN", "scrubbed"]

HIDDEN = "***"
# In an address (`scheme://user:password@host`), and as a value by name, in a query or a driver's words. Neither crosses
# a quote or a backslash, so that a text that is JSON stays so.
_IN_ADDRESS = re.compile(r"(?<=:)//[^/\s\"'\\]+@")
_BY_NAME = re.compile(r"(?i)\b(password|passwd|pwd|token|secret|api[_-]?key|access[_-]?key)=[^&\s\"'\\,;)]+")


def scrubbed(text: str) -> str:
    """The text without the login in any address and without values that are called passwords or tokens."""
    return _BY_NAME.sub(rf"\1={HIDDEN}", _IN_ADDRESS.sub(f"//{HIDDEN}@", text))
