"""Whose fault an error is: of the input, of one setting, or of the user's own code; and where it came from."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

import optuna

__all__ = ["is_bad_input", "place_of"]

_OWN = Path(__file__).parents[1]
_HOST = Path(optuna.__file__).parent


def is_bad_input(error: BaseException) -> bool:
    """Whether a check of this package raised the error: its message says all. Any other deserves its traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = Path(last.filename).is_relative_to(_OWN)
    is_on_purpose = (last.line or "").startswith("raise ")
    return is_ours and is_on_purpose and isinstance(error, ValueError | TypeError | OSError | ImportError)


def place_of(error: BaseException) -> str:
    """The last line of the user's own that led to an error, in brackets; empty where the error names it itself."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((str(_OWN), str(_HOST), "<", str(importlib.__file__)))
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
