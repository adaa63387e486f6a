"""What is kept of a run, and where: one compressed file of JSON lines per task."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ww_opt.spectral.findings import Finding, Role
from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics

__all__ = ["DATA", "Record", "append", "columns", "diagnosis", "pack", "read", "rounded"]

Record = dict[str, Any]
DATA = Path(__file__).parent / "data"

_COLUMNS = [item.name for item in fields(LayerDiagnostics) if item.name not in ("role", "findings", "note", "extra")]


def columns(rows: Iterable[LayerDiagnostics]) -> Record:
    """Return the rows as one list per column; NaN is null, findings are names."""
    rows = tuple(rows)
    table: Record = {name: [rounded(getattr(row, name)) for row in rows] for name in _COLUMNS}
    return {
        **table,
        "role": [row.role.name for row in rows],
        "findings": [[finding.name for finding in row.findings] for row in rows],
    }


def diagnosis(table: Record) -> Diagnosis:
    """Return the rows that ``columns`` was given."""
    rows = []
    for number, names in enumerate(table["findings"]):
        own = {name: table[name][number] for name in _COLUMNS if name in table}
        own = {name: math.nan if value is None and name != "normed" else value for name, value in own.items()}
        role = Role[table["role"][number]] if "role" in table else _role(own)
        rows.append(LayerDiagnostics(**own, role=role, findings=tuple(Finding[name] for name in names)))
    return Diagnosis(tuple(rows))


def _role(row: Record) -> Role:
    """The role of a row that was kept before rows had one: the tasks call their output layers `output`."""
    if row["kind"] == "embedding":
        return Role.EMBEDDING
    return Role.HEAD if row["name"] == "output" else Role.HIDDEN


def rounded(value: Any, digits: int = 5) -> Any:
    """Return a float with ``digits`` significant digits, ``None`` where it is not finite; what is no float as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def read(name: str, folder: Path = DATA) -> list[Record]:
    """Read a task's records: the packed ones, then those of a generation under way; a torn last line is left out."""
    found: list[Record] = []
    packed, loose = folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl"
    if packed.exists():
        with gzip.open(packed, "rt", encoding="utf-8") as file:
            found += [json.loads(line) for line in file]
    if loose.exists():
        lines = loose.read_text(encoding="utf-8").split("\n")
        found += [json.loads(line) for line in lines[:-1]]  # what follows the last line break is torn, or empty
    return found


def append(name: str, records: Sequence[Record], folder: Path = DATA) -> None:
    """Add records to a task's file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")  # rid of a torn last line
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n" for record in records)


def pack(name: str, folder: Path = DATA, records: Sequence[Record] | None = None) -> None:
    """Compress a task's records, or those given instead of them, into one file."""
    records = read(name, folder) if records is None else records
    if not records:
        return
    lines = "".join(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n" for record in records)
    target = folder / f"{name}.jsonl.gz"
    scratch = target.with_suffix(".tmp")
    scratch.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))  # no time: the same records give the same file
    scratch.replace(target)
    (folder / f"{name}.jsonl").unlink(missing_ok=True)
