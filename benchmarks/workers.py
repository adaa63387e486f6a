"""``python -m benchmarks.workers [SAMPLER ...]``: how long do workers wait, and do they keep out of each other's way?

Four processes share a study of 150 parameters; a trial sleeps. What is not sleep is waiting: for the sampler to think,
for the storage, for each other.

``python -m benchmarks.workers efficiency [URL ...]``: 1, 2 and 4 processes on trials of one second of sleep and ten
parameters, over a journal, SQLite and the storages that are named; share of the time from the first ask to the last
answer that is not waiting.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from ww_opt import LayerwiseSampler
from ww_opt.study.budget import AtWork, NoneLeft
from ww_opt.study.shared_storage import stamps
from ww_opt.study.storages import open_storage, shown

N_WORKERS, N_TRIALS, N_LABELS = 4, 200, 50
SECONDS = 5.0
"""Length of a trial; the demo's take two, the tasks of docs/evidence.md 1 to 7."""
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "LayerwiseSampler": lambda seed: LayerwiseSampler(seed=seed),
    "Optuna's GP": lambda seed: GPSampler(seed=seed),
    "Optuna's TPE": lambda seed: TPESampler(seed=seed),
}
SPACE = {
    f"{kind}/{label:02d}": FloatDistribution(low, high, log=kind != "dropout")
    for label in range(N_LABELS)
    for kind, low, high in (("lr", 1e-4, 1e-1), ("weight_decay", 1e-5, 1e-1), ("dropout", 0.0, 0.5))
}


def _work(place: str, name: str, number: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name="w", storage=open_storage(place), sampler=SAMPLERS[name](number), load_if_exists=True
    )
    waited = 0.0  # telling counts with the next trial: a finished one takes no more notes
    for _ in range(N_TRIALS // N_WORKERS):
        started = time.perf_counter()
        trial = study.ask(dict(SPACE))
        waited += time.perf_counter() - started
        time.sleep(SECONDS)
        rates = np.log([value for key, value in trial.params.items() if key.startswith("lr/")])
        value = float(((rates - np.linspace(-7.0, -4.0, N_LABELS)) ** 2).mean())
        started = time.perf_counter()
        trial.set_user_attr("waited", waited)
        study.tell(trial, value)
        waited = time.perf_counter() - started


def _take(place: str, name: str, number: int, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = RandomSampler(seed=number)
    study = optuna.create_study(study_name=name, storage=open_storage(place), sampler=sampler, load_if_exists=True)
    with AtWork(study, n_trials), suppress(NoneLeft):
        while True:
            trial = study.ask()
            for own in range(10):
                trial.suggest_float(f"lr/{own}", 1e-4, 1e-1, log=True)
            time.sleep(1.0)
            study.tell(trial, 1.0)


def efficiency(places: Sequence[str]) -> None:
    """Print one row a storage and number of workers."""
    spawn = multiprocessing.get_context("spawn")
    print("trials of one second\n| storage | workers | trials | not waiting |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for place in (f"{folder}/a.journal", f"sqlite:///{folder}/a.db", *places):
            for n_workers in (1, 2, 4):
                n_trials, name = 8 * n_workers, uuid.uuid4().hex
                study = optuna.create_study(study_name=name, storage=open_storage(place))
                team = [spawn.Process(target=_take, args=(place, name, own, n_trials)) for own in range(n_workers)]
                for worker in team:
                    worker.start()
                for worker in team:
                    worker.join()
                # of each worker by itself, so that starting processes does not count
                spans: dict[int, list[float]] = {}
                for trial in study.get_trials(deepcopy=False):
                    assert trial.datetime_start is not None
                    assert trial.datetime_complete is not None
                    times = spans.setdefault(stamps(trial)[-1].process.pid, [])
                    times += [trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()]
                busy = n_trials / sum(max(times) - min(times) for times in spans.values())
                kind = shown(place) if "://" in place and "sqlite" not in place else place.rpartition(".")[2]
                print(f"| {kind} | {n_workers} | {n_trials} | {busy:.1%} |", flush=True)


def main() -> None:
    """Print one row a sampler and storage."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if sys.argv[1:2] == ["efficiency"]:
        efficiency(sys.argv[2:])
        return
    spawn = multiprocessing.get_context("spawn")
    print(f"{N_WORKERS} workers, {N_TRIALS} trials of {SECONDS:g} s, {len(SPACE)} parameters")
    print("| sampler | storage | share of the time waiting | last quarter | distinct points |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or SAMPLERS:
        for suffix in (".journal", ".db"):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"study{suffix}"
                place = str(file) if suffix == ".journal" else f"sqlite:///{file.as_posix()}"
                study = optuna.create_study(study_name="w", storage=open_storage(place))
                team = [spawn.Process(target=_work, args=(place, name, number)) for number in range(N_WORKERS)]
                for worker in team:
                    worker.start()
                for worker in team:
                    worker.join()
                trials = study.get_trials(deepcopy=False)
            waited = np.array([trial.user_attrs["waited"] for trial in trials])
            share, late = (own.sum() / (own.sum() + SECONDS * len(own)) for own in (waited, waited[-N_TRIALS // 4 :]))
            distinct = len({tuple(trial.params.values()) for trial in trials})
            print(f"| {name} | {suffix[1:]} | {share:.1%} | {late:.1%} | {distinct} of {len(trials)} |", flush=True)


if __name__ == "__main__":
    main()
