"""The code holds to the design, the rules can break, and importing has no effect."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture import (
    WINDOWS,
    Rule,
    argument_faults,
    circles,
    floor_faults,
    imports,
    length_faults,
    method_faults,
    name_faults,
    never_faults,
    window_faults,
)
from tests.frameworks import importable

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("ww_opt", "objectives", "studies", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
LIBRARY = [name for name in SOURCES if name.split(".")[0] == "ww_opt"]
CASES = [
    *((floor_faults, name) for name in LIBRARY if name not in WINDOWS),
    *((window_faults, name) for name in WINDOWS),
    *(
        (rule, name)
        for name in SOURCES
        for rule in (never_faults, name_faults, length_faults, method_faults, argument_faults)
    ),
]


@pytest.mark.parametrize(("rule", "module"), CASES, ids=[f"{rule.__name__}-{module}" for rule, module in CASES])
def test_design_holds(rule: Rule, module: str) -> None:
    assert list(rule(module, SOURCES[module].read_text(encoding="utf-8"))) == []


def test_no_circle() -> None:
    assert circles({name: SOURCES[name].read_text(encoding="utf-8") for name in LIBRARY}) == []


def test_circles_are_found() -> None:
    sources = {
        "ww_opt.study.a": "from ww_opt.study.b import x",
        "ww_opt.study.b": "def f():\n    from ww_opt.study import c",
        "ww_opt.study.c": "import ww_opt.study.a",
        "ww_opt.study.d": "from ww_opt.study.a import x",
    }
    assert circles(sources) == [["ww_opt.study.a", "ww_opt.study.b", "ww_opt.study.c"]]


def test_there_is_something_to_check() -> None:
    assert {"ww_opt", "ww_opt.search.records", "ww_opt.spectral.findings"} <= set(LIBRARY)


def test_dependencies_are_those_that_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    optional = {"lightning", "pytorch_lightning", "safetensors", "transformers"}
    imported = {
        item.name.split(".")[0]
        for name in LIBRARY
        for item in imports(name, SOURCES[name].read_text(encoding="utf-8"))
    }  # fmt: skip
    assert imported - set(sys.stdlib_module_names) - {"ww_opt"} == needed | optional


SEVEN = "a: int, b: int, c: int, d: int, e: int, f: int, *g: int"
NINE_METHODS = "class C:\n" + "".join(f"    def f{i}(self): ...\n" for i in range(9))
NINE_PROPERTIES = NINE_METHODS.replace("    def", "    @property\n    def")

# rule, module, source, what the message says
BROKEN = {
    "upwards": (floor_faults, "ww_opt.search.space", "from ww_opt.study.study import Study", "stands above"),
    "neighbour": (floor_faults, "ww_opt.reporting.terminal", "import ww_opt.tracking.mlflow", "its neighbour"),
    "in a function": (floor_faults, "ww_opt.search.records", "def f():\n    import ww_opt.study.study", "stands above"),
    "by name": (floor_faults, "ww_opt.search.records", "importlib.import_module('ww_opt.cli.main')", "stands above"),
    "relative": (floor_faults, "ww_opt.spectral.measuring.fits", "from ...search.records import Look", "stands above"),
    "relative, by name": (floor_faults, "ww_opt.search.space", "import_module('..cli.run', __name__)", "stands above"),
    "for its type": (floor_faults, "ww_opt.search.space", "if TYPE_CHECKING:\n  import ww_opt.cli.run", "stands above"),
    "through the window": (floor_faults, "ww_opt.cli", "from ww_opt import Task", "the file itself"),
    "whole package": (floor_faults, "ww_opt.cli", "import ww_opt", "the file itself"),
    "inside the instrument": (
        floor_faults, "ww_opt.spectral.reading.weights", "import ww_opt.spectral.measuring.fits", "stands above"
    ),
    "whole folder": (floor_faults, "ww_opt.cli.run", "import ww_opt.study", "the file itself"),
    "no floor": (floor_faults, "ww_opt.attic", "", "a folder of FLOORS"),
    "eager window": (window_faults, "ww_opt", "from ww_opt.cli import main", "at once"),
    "eager relative window": (window_faults, "ww_opt.spectral", "from .fits import fit", "at once"),
    "host": (never_faults, "ww_opt.spectral.measuring.fits", "import optuna.trial", "outlives the host"),
    "training": (never_faults, "ww_opt.spectral.scores", "from ww_opt import training", "how it was trained"),
    "judge": (never_faults, "ww_opt.search.space", "from ww_opt.spectral import score", "how we judge"),
    "mlflow": (never_faults, "ww_opt.study.study", "def f():\n    import mlflow", "slow to import"),
    "mlflow in a study": (never_faults, "studies.digits", "import mlflow", "slow to import"),
    "record": (never_faults, "ww_opt.search.records", "from torch import nn", "no model is"),
    "pruner": (never_faults, "ww_opt.search.pruner", "from ww_opt.search.objective import report", "record alone"),
    "sampler": (never_faults, "ww_opt.search.sampler", "import ww_opt.spectral.measuring.fits", "reads records"),
    "framework": (never_faults, "ww_opt.integrations.hosted", "def f():\n import transformers", "an extra is an extra"),
    "another's": (never_faults, "ww_opt.integrations.transformers", "import lightning", "an extra is an extra"),
    "uses": (never_faults, "ww_opt.cli", "__import__('studies.digits')", "its uses"),
    "drawing": (never_faults, "ww_opt.tracking.mlflow", "import matplotlib.pyplot as plt", "draws nothing"),
    "question": (never_faults, "objectives.digits", "from studies import digits", "which question"),
    "tests": (never_faults, "objectives.digits", "import tests.contracts", "its tests"),
    "empty name": (name_faults, "ww_opt.spectral._utils", "", "says nothing"),
    "lines": (length_faults, "ww_opt.study.study", "\n" * 301, "301 lines"),
    "methods": (method_faults, "ww_opt.study.study", NINE_METHODS, "9 methods"),
    "arguments": (argument_faults, "ww_opt.study.study", f"def f({SEVEN}): ...", "7 arguments"),
    "untyped": (argument_faults, "ww_opt.cli", "class C:\n def f(self, a, *, b: int, **c): ...", "['a', 'c']"),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "module", "source", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_breaks_a_rule_is_told(rule: Rule, module: str, source: str, message: str) -> None:
    faults = list(rule(module, source))
    assert len(faults) == 1
    assert message in faults[0]


ALLOWED = {
    "downwards": (floor_faults, "ww_opt.search.records", "from ww_opt.spectral.diagnostics import LayerDiagnostics"),
    "inside a folder": (floor_faults, "ww_opt.search.objective", "from ww_opt.search import space"),
    "neighbour that is known": (floor_faults, "ww_opt.tracking.mlflow", "from ww_opt.reporting import summary"),
    "floor of the instrument": (floor_faults, "ww_opt.spectral.scores", "from ww_opt.spectral.rows import Diagnosis"),
    "version": (floor_faults, "ww_opt.cli", "from ww_opt import __version__"),
    "lazy window": (window_faults, "ww_opt", "def __getattr__(name): import_module('ww_opt.cli')"),
    "typed window": (window_faults, "ww_opt", "if TYPE_CHECKING:\n    from ww_opt.cli import main"),
    "type of a figure": (never_faults, "ww_opt.study.study", "if TYPE_CHECKING:\n    import matplotlib.figure"),
    "framework": (never_faults, "ww_opt.integrations.lightning", "from lightning.pytorch import Callback"),
    "tracking": (never_faults, "ww_opt.tracking.mlflow", "from mlflow import MlflowClient"),
    "similar name": (never_faults, "ww_opt.study.study", "import mlflow_export"),
    "properties": (method_faults, "ww_opt.study.study", NINE_PROPERTIES),
    "command": (argument_faults, "ww_opt.cli", f"@main.command()\ndef run({SEVEN}): ..."),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "module", "source"), ALLOWED.values(), ids=ALLOWED.keys())
def test_what_is_allowed_is_not_told(rule: Rule, module: str, source: str) -> None:
    assert list(rule(module, source)) == []


# What a fresh interpreter has not loaded after a statement.
LIGHT = {
    "import ww_opt": ("torch", "mlflow", "matplotlib", "powerlaw", "optuna"),
    "import ww_opt.spectral": ("torch", "mlflow", "matplotlib", "powerlaw", "optuna"),
    "import ww_opt.search.records": ("torch", "mlflow", "matplotlib"),
    "import ww_opt.search.pruner": ("torch", "mlflow", "matplotlib"),
    "import ww_opt.search.objective": ("mlflow", "matplotlib"),
    "import ww_opt.cli.main": ("torch", "mlflow", "matplotlib"),
}


@pytest.mark.parametrize(("statement", "heavy"), LIGHT.items(), ids=LIGHT.keys())
def test_import_is_light(statement: str, heavy: tuple[str, ...]) -> None:
    assert fresh(f"import sys; {statement}; print(sorted(set({heavy!r}) & set(sys.modules)))") == "[]"


def test_import_has_no_effect() -> None:
    # other packages do add filters and handlers, so ours are imported twice: the second time, only ours run
    loaded = importable(LIBRARY)
    assert (
        fresh(f"""
import importlib, logging, sys, warnings

def import_all():
    for name in {loaded!r}:
        importlib.import_module(name)

def state():
    loggers = [logging.getLogger(name) for name in (None, "ww_opt", "optuna", "mlflow")]
    return [(logger.level, list(logger.handlers)) for logger in loggers]

import_all()
for name in {loaded!r}:
    del sys.modules[name]
warnings.resetwarnings()
before = state()
import_all()
print(warnings.filters, state() == before)
""")
        == "[] True"
    )


def fresh(code: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
