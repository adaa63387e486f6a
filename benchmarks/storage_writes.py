"""``python -m benchmarks.storage_writes``: what does a trial cost a storage, as parameters grow from 10 to 300?

A trial suggests its parameters, looks four times at a third as many layers, reports each look and is told. Counted are
transactions (a journal's: appends, each brought to the disk) and the bytes by which the file grows, with stock Optuna
beside ours. Times are those of this machine, with nothing else in them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import optuna
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from ww_opt.search import records
from ww_opt.study.storages import open_storage

N_PARAMETERS = (10, 30, 100, 300)
N_TRIALS, N_LOOKS = 8, 4


class Cost(NamedTuple):
    """What one trial costs on average."""

    transactions: float
    kilobytes: float
    seconds: float


def _trial(study: optuna.Study, n_parameters: int) -> None:
    trial = study.ask()
    for number in range(n_parameters):
        trial.suggest_float(f"lr/layers.{number}", 1e-4, 1e-1, log=True)
    layer = records.LayerRecord("layers.0", 768, 768, 3.1, 0.05, 0.2, 90, 40, 768, 0, 0, 20.5, 3.5)
    for step in range(1, N_LOOKS + 1):
        layers = (layer,) * (n_parameters // 3)
        records.write_look(trial, records.Look(step, N_LOOKS, 0.5, 0.5, 0.5, 0.01, layers=layers))
        trial.report(0.5, step)
    study.tell(trial, 0.5)


def _counted(backend: object, storage: BaseStorage) -> Callable[[], int]:
    """Count transactions of a storage from now on."""
    n = 0

    def count(*_: object) -> None:
        nonlocal n
        n += 1

    journal = getattr(backend, "_backend", None)
    database = journal if isinstance(journal, RDBStorage) else storage
    if isinstance(database, RDBStorage):
        sqlalchemy.event.listen(database.engine, "commit", count)
    else:
        append = journal.append_logs  # type: ignore[union-attr]

        def appended(logs: list[dict[str, object]]) -> None:
            count()
            append(logs)

        vars(journal)["append_logs"] = appended
    return lambda: n


def measure(kind: str, n_parameters: int, *, is_ours: bool) -> Cost:
    """Run trials against a fresh file.

    Args:
        kind: ``journal`` or ``sqlite``.
        n_parameters: suggested by each trial.
        is_ours: our storage, else stock Optuna's.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a.{kind}"
        address = str(file) if kind == "journal" else f"sqlite:///{file.as_posix()}"
        if is_ours:
            storage = open_storage(address)
            assert isinstance(storage, BaseStorage)
            backend: object = storage.backend  # type: ignore[attr-defined]
        else:
            stock = JournalStorage(JournalFileBackend(address)) if kind == "journal" else RDBStorage(address)
            storage = optuna.storages.get_storage(stock)
            backend = storage
        study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
        _trial(study, n_parameters)  # the first one of a process asks for what the others know
        n_before, size, started = _counted(backend, storage), file.stat().st_size, time.perf_counter()
        for _ in range(N_TRIALS):
            _trial(study, n_parameters)
        seconds = time.perf_counter() - started
        grown = file.stat().st_size - size
    return Cost(n_before() / N_TRIALS, grown / N_TRIALS / 1000, seconds / N_TRIALS)


def main() -> None:
    """Print one row a storage and number of parameters."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("| storage | parameters | transactions | kB | s | kB a parameter |\n|---|---|---|---|---|---|")
    for kind in ("journal", "sqlite"):
        for is_ours in (True, False):
            for n in N_PARAMETERS:
                cost = measure(kind, n, is_ours=is_ours)
                name = f"{kind}{'' if is_ours else ', stock Optuna'}"
                row = f"{cost.transactions:.0f} | {cost.kilobytes:.1f} | {cost.seconds:.3f} | {cost.kilobytes / n:.2f}"
                print(f"| {name} | {n} | {row} |", flush=True)


if __name__ == "__main__":
    main()
