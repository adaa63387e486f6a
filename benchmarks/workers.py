"""``python -m benchmarks.workers [SAMPLER ...]``: how long do workers wait, and do they keep out of each other's way?

Four processes share a study of 150 parameters; a trial sleeps. What is not sleep is waiting: for the sampler to think,
for the storage, for each other.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler

from ww_opt import LayerwiseSampler
from ww_opt.study.storages import open_storage

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


def main() -> None:
    """Print one row a sampler and storage."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
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
