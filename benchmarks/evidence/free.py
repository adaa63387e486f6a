"""Free rivals: what a training run says of itself, kept at every look of the base runs.

``python -m benchmarks.evidence.free`` trains the base runs again and keeps

* how many predictions on the training set have changed since the look before (Label Wave, arXiv 2502.07551, counts them
  epoch by epoch and stops at the first minimum of their moving average), and
* the norm of the output layer's gradient on one batch, and of that layer's weight (arXiv 2601.16874).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.evidence.ensemble import Ensemble, head_norms
from benchmarks.evidence.kept import DATA, Record, append, pack, read, rounded
from benchmarks.evidence.run import all_examples
from benchmarks.evidence.seen import FREE
from benchmarks.evidence.tasks import CASES, LOOKS, N_CONFIGURATIONS, Case, configurations

__all__ = ["generate", "probed"]

_BATCH = 256
_PARTS = 250


def generate(folder: Path = DATA) -> Iterator[str]:
    """Train what is missing, and pack it; yield a line for each task."""
    for case in CASES:
        done = {own["configuration"] for own in read(FREE, folder) if own["case"] == case.name}
        missing = [number for number in range(N_CONFIGURATIONS) if number not in done]
        for start in range(0, len(missing), case.together):
            append(FREE, probed(case, missing[start : start + case.together]), folder)
        yield f"{case.name}: {len(missing)} runs"
    pack(FREE, folder)


def probed(case: Case, numbers: list[int]) -> list[Record]:
    """Train some configurations as ``base`` runs are; a record each, with a line for each look.

    A line holds the step, the share of the training set whose predicted label has changed since the look before, the
    norm of the head's gradient, and that of its weight.
    """
    torch.set_num_threads(1)
    task, drawn = case.task(), configurations(case)
    ensemble = Ensemble(task, [drawn[number].settings for number in numbers], case.label)
    examples = all_examples(task)
    batch = examples.take(torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:_BATCH])
    records: list[Record] = [{"case": case.name, "configuration": number, "looks": []} for number in numbers]
    before: torch.Tensor | None = None
    for look in ensemble.train(case.n_steps, case.n_steps // LOOKS):
        now = _predictions(ensemble, examples)
        changed = torch.full((len(numbers),), torch.nan) if before is None else _share(now != before)
        gradients, weights = head_norms(ensemble, batch, "output.weight")
        for record, *own in zip(records, changed, gradients, weights, strict=True):
            record["looks"].append([look.step, *(rounded(float(value)) for value in own)])
        before = now
    return records


def _predictions(ensemble: Ensemble, examples: Any) -> torch.Tensor:
    index = torch.split(torch.arange(len(examples)), _PARTS)
    return torch.cat([ensemble.logits([examples.take(part).x]).argmax(-1) for part in index], dim=1)


def _share(changed: torch.Tensor) -> torch.Tensor:
    return changed.flatten(1).double().mean(1)


@click.command()
def main() -> None:
    """Train the base runs again, and keep what they say of themselves; resumes."""
    for line in generate():
        click.echo(line)


if __name__ == "__main__":
    main()
