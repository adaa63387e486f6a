"""The design as data, and the rules that hold the code to it: who may know whom, and how large things may grow.

Each rule goes from a module's name and source text to sentences about what breaks it; `test_architecture.py` runs
them over the code, and over small sources that do break them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

# Folders are floors: each imports from the floors below it, never from above, and not from its neighbours.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("spectral", "training"),
    ("search",),
    ("study",),
    ("reporting", "tracking", "integrations"),
    ("cli",),
)
# Inside a folder files make no circle. The instrument is large enough to have floors of its own.
FLOORS_OF_SPECTRAL: tuple[tuple[str, ...], ...] = (
    ("findings", "guards", "rows"),
    ("reading",),
    ("measuring",),
    ("rules",),
    ("diagnostics", "comparing", "terms", "exponents"),
    ("scores",),
    ("advice",),
)
# The one neighbour that may be known: MLflow gets what a summary makes of a record.
NEIGHBOURS = (("ww_opt.tracking", "ww_opt.reporting.summary"),)

# Shop windows stand on no floor: they name what is to be had and load nothing until it is asked for.
WINDOWS = ("ww_opt", "ww_opt.spectral")

INSTRUMENT = ("ww_opt.spectral", "ww_opt.training")
DECIDING = tuple(f"ww_opt.search.{name}" for name in ("carried", "decisions", "faults", "peers", "rungs"))
EVERYTHING = ("ww_opt", "objectives", "studies")


@dataclass(frozen=True)
class Never:
    """What is in ``who``, but not in ``but``, never imports what is in ``what``; each name stands for all below it."""

    who: tuple[str, ...]
    what: tuple[str, ...]
    because: str
    but: tuple[str, ...] = ()


NEVER = (
    Never(INSTRUMENT, ("optuna", "mlflow"), "the instrument outlives the host"),
    Never(("ww_opt.spectral",), ("ww_opt.training",), "what is measured must not know how it was trained"),
    Never(("ww_opt.search.space",), ("ww_opt.spectral",), "where we search must not know how we judge"),
    Never(EVERYTHING, ("mlflow",), "slow to import, written and never read back", ("ww_opt.tracking",)),
    Never(("ww_opt.search.records",), ("torch",), "records are read where no model is"),
    Never(("ww_opt.search.pruner",), ("torch", "ww_opt.search.objective"), "it decides from the record alone"),
    Never(DECIDING, ("torch", "ww_opt.search.objective"), "they decide from the record alone"),
    Never(("ww_opt.search.sampler",), ("ww_opt.search.objective", "ww_opt.spectral"), "it reads records alone"),
    Never(("ww_opt.search.importance",), ("torch", "ww_opt.search.objective"), "it reads records alone"),
    Never(EVERYTHING, ("transformers",), "an extra is an extra", ("ww_opt.integrations.transformers",)),
    Never(EVERYTHING, ("lightning", "pytorch_lightning"), "an extra is an extra", ("ww_opt.integrations.lightning",)),
    Never(("ww_opt",), ("objectives", "studies"), "a library does not know its uses"),
    Never(EVERYTHING, ("matplotlib",), "a worker draws nothing", ("ww_opt.reporting", "ww_opt.cli")),
    Never(("objectives",), ("studies",), "what is trained must not know which question is asked of it"),
    Never(EVERYTHING, ("tests", "benchmarks"), "what is tested must not know its tests"),
)  # fmt: skip

EMPTY_NAMES = {"base", "common", "constants", "helpers", "utils"}
MAX_LINES = 300
MAX_ARGUMENTS = 6
MAX_METHODS = 8

Rule = Callable[[str, str], Iterator[str]]


def floor_faults(module: str, source: str) -> Iterator[str]:
    """Floors hold for what is imported for its type alone, too: naming something is knowing it."""
    own = _place(module)
    if own is None:
        yield f"{module} stands on no floor: put it into a folder of FLOORS in tests/architecture.py"
        return
    for item in imports(module, source):
        if not _below(item.name, ("ww_opt",)) or item.name == "ww_opt.__version__":
            continue
        other = _place(item.name)
        if other is None or item.name in _packages():
            yield f"{module}:{item.line} imports {item.name}: import from the file itself, on a floor"
        elif other[0] > own[0]:
            yield f"{module}:{item.line} imports {item.name}, which stands above it: turn the arrow round"
        elif other[0] == own[0] and other[1] != own[1] and not _may_know(module, item.name):
            yield f"{module}:{item.line} imports {item.name}, its neighbour: move what both need further down"


def circles(sources: Mapping[str, str]) -> list[list[str]]:
    """Files that import each other in a circle, directly or through others; each circle once, by name."""
    arrows = {
        module: {
            target for item in imports(module, source) if (target := _file_of(item.name, sources)) not in (None, module)
        }
        for module, source in sources.items()
    }
    reached = {module: _reached(module, arrows) for module in arrows}
    found = {frozenset(b for b in reached[a] if a in reached[b]) for a in arrows if a in reached[a]}
    return sorted(sorted(circle) for circle in found)


def _reached(start: str, arrows: Mapping[str, set[str | None]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = {name for name in arrows[waiting.pop()] if name is not None} - seen
        seen |= new
        waiting += new
    return seen


def _file_of(name: str, sources: Mapping[str, str]) -> str | None:
    """The file that an imported name comes from; packages themselves are shop windows and hold nothing."""
    own = next((module for module in (name, name.rpartition(".")[0]) if module in sources), None)
    return None if own in WINDOWS else own


def window_faults(module: str, source: str) -> Iterator[str]:
    """A shop window imports nothing of ours before it is asked."""
    for item in imports(module, source):
        if _below(item.name, ("ww_opt",)) and item.eager and not item.typing_only:
            yield f"{module}:{item.line} imports {item.name} at once: load it in `__getattr__`, when it is asked for"


def never_faults(module: str, source: str) -> Iterator[str]:
    """What is imported for its type alone loads no other package, so only our own modules count then."""
    rows = [row for row in NEVER if _below(module, row.who) and not _below(module, row.but)]
    for item in imports(module, source):
        if item.typing_only and not _below(item.name, EVERYTHING):
            continue
        for row in rows:
            if _below(item.name, row.what):
                yield f"{module}:{item.line} imports {item.name}, and never may: {row.because}"


def name_faults(module: str, _source: str) -> Iterator[str]:
    """No module is named after nothing."""
    for part in module.split("."):
        if part.strip("_") in EMPTY_NAMES:
            yield f"{module}: {part!r} says nothing; name the module after what it holds"


def length_faults(module: str, source: str) -> Iterator[str]:
    """A file is short enough to be read at one go."""
    n_lines = len(source.splitlines())
    if n_lines > MAX_LINES:
        yield f"{module} has {n_lines} lines, more than {MAX_LINES}: split it by what it knows"


def method_faults(module: str, source: str) -> Iterator[str]:
    """Properties and dunder methods do not count: those are fields, and what Python asks for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            methods = sorted({item.name for item in node.body if isinstance(item, _FUNCTION) and _is_method(item)})
            if len(methods) > MAX_METHODS:
                yield f"{module}:{node.lineno} {node.name} has {len(methods)} methods, not {MAX_METHODS}: {methods}"


def argument_faults(module: str, source: str) -> Iterator[str]:
    """``self`` and ``cls`` do not count, nor do commands of the command line, whose arguments are its options."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, _FUNCTION):
            continue
        where = f"{module}:{node.lineno} {node.name}"
        spec = node.args
        stars = [star for star in (spec.vararg, spec.kwarg) if star is not None]
        arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *stars]
        if arguments and arguments[0].arg in ("self", "cls"):
            arguments = arguments[1:]
        bare = [argument.arg for argument in arguments if argument.annotation is None]
        if bare:
            yield f"{where}: no type is given for {bare}"
        if len(arguments) > MAX_ARGUMENTS and not _is_command(node):
            yield f"{where} takes {len(arguments)} arguments, not {MAX_ARGUMENTS}: what travels together is one value"


@dataclass(frozen=True)
class Import:
    """One imported name. ``typing_only``: under ``if TYPE_CHECKING``. ``eager``: runs when the module is imported."""

    name: str
    line: int
    typing_only: bool
    eager: bool


def imports(module: str, source: str) -> list[Import]:
    """List everything the source imports, inside functions and by ``import_module("literal")`` too."""
    package = module if module in WINDOWS else module.rpartition(".")[0]
    found: list[Import] = []

    def visit(node: ast.AST, typing_only: bool, eager: bool) -> None:
        line = getattr(node, "lineno", 0)
        found.extend(Import(name, line, typing_only, eager) for name in _imported(node, package))
        guarded = node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) else []
        for child in ast.iter_child_nodes(node):
            visit(child, typing_only or child in guarded, eager and not isinstance(node, _FUNCTION))

    visit(ast.parse(source), False, True)
    return found


def _imported(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        home = _absolute("." * node.level + (node.module or ""), package)
        return [f"{home}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        literals = [item.value for item in node.args[:1] if isinstance(item, ast.Constant)]
        return [_absolute(literal, package) for literal in literals if isinstance(literal, str)]
    return []


def _absolute(name: str, package: str) -> str:
    level = len(name) - len(name.lstrip("."))
    if level == 0:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [name[level:]])])


def _below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _place(name: str) -> tuple[tuple[int, int], str] | None:
    """Floor and folder that a module, or a name in it, belongs to; ``None``: it has no floor."""
    floor = _floor(name, "ww_opt", FLOORS)
    if floor is None or floor[1] != "ww_opt.spectral":
        return None if floor is None else ((floor[0], 0), floor[1])
    inner = _floor(name, "ww_opt.spectral", FLOORS_OF_SPECTRAL)
    # files of one floor of the instrument may know each other, as long as there is no circle
    return None if inner is None else ((floor[0], inner[0]), floor[1])


def _floor(name: str, home: str, floors: tuple[tuple[str, ...], ...]) -> tuple[int, str] | None:
    found = (
        (number, f"{home}.{room}")
        for number, rooms in enumerate(floors)
        for room in rooms
        if _below(name, (f"{home}.{room}",))
    )
    return next(found, None)


def _packages() -> set[str]:
    """Folders, which hold nothing themselves."""
    inner = {f"ww_opt.spectral.{room}" for room in ("reading", "measuring", "comparing")}
    return inner | {f"ww_opt.{room}" for rooms in FLOORS for room in rooms}


def _may_know(module: str, other: str) -> bool:
    return any(_below(module, (one,)) and _below(other, (two,)) for one, two in NEIGHBOURS)


_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def _is_method(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = " ".join(ast.unparse(item) for item in function.decorator_list)
    is_dunder = function.name.startswith("__") and function.name.endswith("__")
    return not is_dunder and "property" not in decorators and ".setter" not in decorators


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    calls = [item.func if isinstance(item, ast.Call) else item for item in function.decorator_list]
    return any(isinstance(call, ast.Attribute) and call.attr in ("command", "group") for call in calls)
