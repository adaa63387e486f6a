"""Frameworks that tests need and the package does not: `pip install -e .[frameworks]`."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import pytest


def framework(name: str, *attributes: str) -> Any:
    """Import a framework, or skip the tests of the file.

    A torchvision that was built for another torch raises ``RuntimeError``, and transformers only when ``attributes``
    are asked for.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not ours
            found = import_module(name)
            for attribute in attributes:
                getattr(found, attribute)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} cannot be imported: {error}", allow_module_level=True)
    return found
