"""``path/to/file.py[:NAME]`` or ``package.module[:NAME]`` -> the object it names."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ww_opt.study.faults import place_of
from ww_opt.study.study import Study

T = TypeVar("T")
_MODULE = re.compile(r"\w+(\.\w+)*")

__all__ = ["BadReference", "load", "load_study"]


class BadReference(ValueError):
    """The reference names nothing that can be used; the message says what was looked for and where."""


def load_study(reference: str) -> Study:
    """Load the study that a file or module defines, ``STUDY`` unless another name is given.

    Raises:
        BadReference: no such file, module or name, or it is not a ``Study``.
    """
    found = load(reference, default="STUDY")
    if not isinstance(found, Study):
        raise BadReference(
            f"A study must be a `ww_opt.Study`, but {reference!r} gives {type(found).__name__}: "
            "write `STUDY = Study(...)`."
        )
    return found


def load(reference: str, *, default: str | None = None) -> Any:
    """Load the object that ``reference`` names.

    Args:
        reference: a ``.py`` file or a module, with ``:NAME`` behind it.
        default: the name where the reference has none.

    Raises:
        BadReference: no such file, module or name, or importing it failed.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():  # the colon of a drive's letter names nothing
        place, name = reference, ""
    if not (name or default):
        raise BadReference(f"A reference needs a name behind a colon, but got {reference!r}: write {reference}:NAME.")
    is_file = place.endswith(".py") or Path(place).is_file() or not _MODULE.fullmatch(place)
    module = _from_file(Path(place)) if is_file else _from_module(place)
    wanted = name or str(default)
    if not hasattr(module, wanted):
        raise BadReference(
            f"{place} must define {wanted!r}, but it does not: define it, or name another as {place}:NAME."
        )
    return getattr(module, wanted)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadReference(f"There must be a Python file at {str(path)!r}, but there is none: check the path.")
    path = path.resolve()
    _add_to_path(_project(path), path.parent)
    spec = importlib.util.spec_from_file_location(f"_ww_opt_loaded_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadReference(f"Python code must be in a file that ends in .py, but got {str(path)!r}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _import(partial(spec.loader.exec_module, module), str(path))
    return module


def _from_module(name: str) -> ModuleType:
    _add_to_path(Path.cwd())
    return _import(partial(importlib.import_module, name), name)


def _import(action: Callable[[], T], what: str) -> T:
    try:
        return action()
    except BadReference:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard may exit
        raise BadReference(f"Importing {what} failed with {type(error).__name__}: {error}{place_of(error)}") from error


def _project(path: Path) -> Path:
    """The folder that holds the file's project, so that a study finds the objectives beside it."""
    return next((folder for folder in path.parents if (folder / "pyproject.toml").is_file()), path.parent)


def _add_to_path(*folders: Path) -> None:
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]
