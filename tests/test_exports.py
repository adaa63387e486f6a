"""`__all__` is held to the truth: what it names exists, and what is public is named."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import ww_opt
import ww_opt.spectral
from tests.frameworks import importable

ROOT = Path(__file__).resolve().parents[1]
MODULES = importable(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "ww_opt").rglob("*.py"))
)
WINDOWS = (ww_opt, ww_opt.spectral)

# What the documentation promises; a change here is a line in CHANGELOG.md.
PROMISED = {
    "BalanceSchedule",
    "FreezeSchedule",
    "LateEntry",
    "LateExamples",
    "LayerSettings",
    "LayerwiseSampler",
    "LayerwiseSpace",
    "Ranks",
    "Run",
    "SCORES",
    "SpectralObjective",
    "SpectralPruner",
    "Study",
    "Task",
    "Together",
    "__version__",
    "add_dropout",
    "by_block",
    "by_depth",
    "by_kind",
    "by_layer",
    "by_prefix",
    "report",
    "report_late",
    "score",
    "carried_over",
    "compare",
    "decisions",
    "judge",
    "late_loss",
    "tied",
    "trace_dropout",
    "train_best",
}


def faults(module: ModuleType) -> list[str]:
    """List names of `__all__` that do not exist or stand twice, and public functions and classes that it leaves out."""
    names = list(module.__all__)
    own = {
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
    }
    return [
        *(f"{name} is listed and missing" for name in names if not hasattr(module, name)),
        *(f"{name} is listed twice" for name in set(names) if names.count(name) > 1),
        *(f"{name} is public and unlisted" for name in own if not name.startswith("_") and name not in names),
    ]


@pytest.mark.parametrize("name", MODULES)
def test_all_is_true(name: str) -> None:
    assert faults(import_module(name)) == []


def test_untrue_all_is_told() -> None:
    module = ModuleType("example")
    exec(
        "def shown(): ...\ndef unlisted(): ...\ndef _private(): ...\n__all__ = ['shown', 'shown', 'gone']", vars(module)
    )
    assert faults(module) == ["gone is listed and missing", "shown is listed twice", "unlisted is public and unlisted"]


def test_promised_names() -> None:
    assert set(ww_opt.__all__) == PROMISED


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.__name__)
def test_window_gives_what_it_lists(window: ModuleType) -> None:
    # every module is loaded first: one with the name of an export would take the export's place in the package
    for name in MODULES:
        import_module(name)
    assert set(dir(window)) >= set(window.__all__)
    hidden = [name for name in window.__all__ if isinstance(getattr(window, name), ModuleType)]
    assert hidden == []


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.__name__)
def test_unknown_name_is_an_attribute_error(window: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = window.no_such_name
