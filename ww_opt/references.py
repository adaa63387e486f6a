"""``path/to/file.py[:NAME]`` or ``package.module[:NAME]`` -> the object it names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ww_opt.study import Study

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
            f"A study must be a `ww_opt.Study`, but {reference!r} gives {type(found).__name__}: write `STUDY = Study(...)`."
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
    place, _, name = reference.partition(":")
    if not (name or default):
        raise BadReference(f"A reference needs a name behind a colon, but got {reference!r}: write {reference}:NAME.")
    module = _from_file(Path(place)) if place.endswith(".py") or "/" in place else _from_module(place)
    wanted = name or str(default)
    if not hasattr(module, wanted):
        raise BadReference(f"{place} must define {wanted!r}, but it does not: define it, or name another as {place}:NAME.")
    return getattr(module, wanted)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadReference(f"There must be a Python file at {str(path)!r}, but there is none.")
    path = path.resolve()
    _add_to_path(_project(path), path.parent)
    spec = importlib.util.spec_from_file_location(f"_ww_opt_loaded_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadReference(f"A study must be a Python file, but got {str(path)!r}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _import(lambda: spec.loader.exec_module(module), str(path))  # type: ignore[union-attr]
    return module


def _from_module(name: str) -> ModuleType:
    _add_to_path(Path.cwd())
    return _import(lambda: importlib.import_module(name), name)


def _import(action: Any, what: str) -> Any:
    try:
        return action()
    except BadReference:
        raise
    except Exception as error:
        raise BadReference(f"Importing {what} failed with {type(error).__name__}: {error}") from error


def _project(path: Path) -> Path:
    """The folder that holds the file's project, so that a study finds the objectives beside it."""
    return next((folder for folder in path.parents if (folder / "pyproject.toml").is_file()), path.parent)


def _add_to_path(*folders: Path) -> None:
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]
