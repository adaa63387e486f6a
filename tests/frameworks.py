"""Frameworks that tests need and the package does not: `pip install -e .[frameworks,lightning,optunahub]`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

NEEDS = {
    "ww_opt.integrations.lightning": ("lightning", "pytorch_lightning"),
    "ww_opt.integrations.transformers": ("transformers",),
}
"""Modules of ours that one of these must be there for."""


def importable(modules: Iterable[str]) -> list[str]:
    """Leave out the modules whose framework is not installed."""
    return [name for name in modules if name not in NEEDS or any(find_spec(needed) for needed in NEEDS[name])]


def framework(name: str, *attributes: str) -> Any:
    """Import a framework, or skip the tests of the file.

    A torchvision that was built for another torch raises ``RuntimeError``, and transformers only when ``attributes``
    are asked for. Our folder ``optunahub`` can be imported where the package is missing, and has none of them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not ours
            found = import_module(name)
            for attribute in attributes:
                getattr(found, attribute)
    except (AttributeError, ImportError, RuntimeError) as error:
        pytest.skip(f"{name} cannot be imported: {error}", allow_module_level=True)
    return found
