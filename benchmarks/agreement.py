"""Agreement with WeightWatcher 0.7.7, column by column: ``python -m benchmarks.agreement CHECKPOINT TABLE.csv``.

The table is what WeightWatcher's ``analyze()`` returned for the checkpoint, written with all digits; with columns that
begin with ``rand_`` it came from ``randomize=True, mp_fit=True, detX=True`` after ``numpy.random.seed(0)``.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd

from ww_opt.spectral import diagnose

__all__ = ["largest_differences"]

OWN = {"layer_id", "name", "longname", "layer_type", "warning"}
"""Identifiers, which differ on purpose (``docs/instrument.md``), and words, which are compared as such."""


def largest_differences(checkpoint: Path, table: Path) -> pd.DataFrame:
    """Compare all columns of the table.

    Returns:
        One row per column: the largest difference over layers, relative for values over 1, and the layer it occurs at.
    """
    theirs = pd.read_csv(table)
    everything = any(name.startswith("rand_") for name in theirs.columns)
    options = {"randomize": True, "mp_fit": True, "erg": True} if everything else {}
    ours = diagnose(checkpoint, convention="weightwatcher", **options).to_frame()
    if len(ours) != len(theirs):
        raise ValueError(f"The table must have a row per layer, but it has {len(theirs)}, and the model {len(ours)}.")
    missing = sorted(set(theirs.columns) - set(ours.columns))
    if missing:
        raise ValueError(f"Every column of the table must be known, but these are not: {missing}.")
    found = []
    for name in theirs.columns:
        a, b = ours[name], theirs[name]
        if name in OWN or not pd.api.types.is_numeric_dtype(b):
            if name in ("warning", "status"):
                wrong = a.fillna("").astype(str).to_numpy() != b.fillna("").astype(str).to_numpy()
                found.append((name, float(wrong.sum()), ours["name"][int(np.argmax(wrong))]))
            continue
        x, y = a.to_numpy(float), b.to_numpy(float)
        gap = np.where(np.isnan(x) & np.isnan(y), 0.0, np.abs(x - y) / np.maximum(np.abs(y), 1.0))
        worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
        found.append((name, float(gap[worst]), ours["name"][worst]))
    return pd.DataFrame(found, columns=["column", "largest difference", "layer"])


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("table", type=click.Path(exists=True, path_type=Path))
def main(checkpoint: Path, table: Path) -> None:
    """Print the largest difference of each column, and of all."""
    found = largest_differences(checkpoint, table)
    click.echo(found.to_string(index=False, float_format=lambda value: f"{value:.1e}"))
    click.echo(f"\n{len(found)} columns compared; largest difference {found['largest difference'].max():.1e}")


if __name__ == "__main__":
    main()
