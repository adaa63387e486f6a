"""Diagnose the kept state dicts again, when the instrument has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.evidence.kept import DATA, pack, read
from benchmarks.evidence.run import diagnosed, weights_path
from benchmarks.evidence.tasks import CASES

__all__ = ["refresh"]


def refresh(weights: Path, folder: Path = DATA) -> Iterator[str]:
    """Rewrite the diagnoses of every run whose state dicts are at hand; yield a line per task."""
    for case in CASES:
        records, model, n_read, n_missing = read(case.name, folder), case.task().build_model(), 0, 0
        for record in records:
            for percent, kept in record["states"].items():
                path = weights_path(weights, case.name, record, int(percent))
                if path.exists():
                    kept.update(diagnosed(model, torch.load(path, weights_only=True)))
                    n_read += 1
                else:
                    n_missing += 1
        if n_read:
            pack(case.name, folder, records)
        yield f"{case.name}: {n_read} states diagnosed again, {n_missing} not at hand"
