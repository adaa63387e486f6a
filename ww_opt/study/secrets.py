"""Passwords stay out of what people read: messages, records and the line that says how to go on."""

from __future__ import annotations

import re

__all__ = ["has_password", "shown", "without_password"]

_USER = re.compile(r"(?<=://)\S*@")
_PASSWORD = re.compile(r"(?<=://)(?<!sqlite://)([^:@\s]*):\S*@")
_ASKED = re.compile(r"([?&](?:password|passwd|pwd|sslpassword)=)[^&\s]*", re.IGNORECASE)


def shown(storage: object) -> str:
    """How a storage is written where people read it: without user and password."""
    if not isinstance(storage, str):
        return type(storage).__name__
    return repr(storage if storage.startswith("sqlite") else _ASKED.sub(r"\1***", _USER.sub("***@", storage)))


def has_password(storage: str) -> bool:
    """Whether an address holds a password."""
    return without_password(storage) != storage


def without_password(text: str, storage: object = None) -> str:
    """Take passwords out of a text that holds addresses, and that of ``storage`` wherever it stands."""
    if isinstance(storage, str) and (found := re.search(r"://[^:@\s]*:(\S+)@", storage)):
        text = text.replace(found[1], "***")
    return _ASKED.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
