"""Passwords stay out of what people read: messages, records and the line that says how to go on."""

from __future__ import annotations

import re

__all__ = ["has_password", "shown", "without_logins", "without_password"]

_LOGIN = re.compile(r"://(?!/)[^\s'\"]*@")
_PASSWORD = re.compile(r"(?<=://)(?<!sqlite://)([^:@\s]*):\S*@")
_ASKED = re.compile(r"([?&](?:ssl)?(?:password|passwd|passwort|pwd|token|key)=)[^&\s'\"]*", re.IGNORECASE)


def shown(storage: object) -> str:
    """How a storage is written where people read it: without user and password."""
    return repr(without_logins(storage)) if isinstance(storage, str) else type(storage).__name__


def without_logins(text: str) -> str:
    """Hide the login of every URL in a text, and the values of its parameters that are passwords.

    A password may hold ``/`` and ``@``: all up to the last ``@`` of the word is hidden.
    """
    return _ASKED.sub(r"\1***", _LOGIN.sub("://***@", text))


def has_password(storage: str) -> bool:
    """Whether an address holds a password."""
    return without_password(storage) != storage


def without_password(text: str, storage: object = None) -> str:
    """Take passwords out of a text that holds addresses, and that of ``storage`` wherever it stands."""
    if isinstance(storage, str) and (found := re.search(r"://[^:@\s]*:(\S+)@", storage)):
        text = text.replace(found[1], "***")
    return _ASKED.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
