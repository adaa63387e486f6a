"""What tracking costs a study, and what an outage costs: ``python -m benchmarks.tracking``.

A real MLflow server (:mod:`benchmarks.faulty_mlflow`, a process of its own) has one fault after the other. A trial
trains for a while (it sleeps) and has ten looks at twenty layers. Beside it, in the same run, Optuna's MLflowCallback
(``pip install optuna-integration``; deprecated, without successor), with MLflow's time limits as ours sets them.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import click
import optuna
from mlflow import MlflowClient
from optuna.trial import FrozenTrial

from ww_opt.search import records
from ww_opt.tracking.mlflow import FLUSH_SECONDS, MLflowCallback
from ww_opt.tracking.outbox import Target
from ww_opt.tracking.replay import headers, replay
from ww_opt.tracking.stores import HTTP_DEFAULTS, make_whole

__all__ = ["main"]

N_LOOKS, N_LAYERS = 10, 20
FAULTS = ("none", "down", "down in the middle", "errors", "hang", "slow")

Callback = Callable[[optuna.Study, FrozenTrial], None]


@dataclass(frozen=True)
class Row:
    """One study: seconds it took, those in its callback, by the clock and of computing, and how it ended."""

    seconds: float
    held: float
    computing: float
    end: str


class Server:
    """The process, and its faults by name."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()

    def fault(self, name: str) -> None:
        """Have this one from now on."""
        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Start the server, and end it."""
    make_whole(f"sqlite:///{(folder / 'server.db').as_posix()}")
    command = [sys.executable, "-m", "benchmarks.faulty_mlflow", str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def objective(trial: optuna.Trial, seconds: float) -> float:
    """Sleep, and have looks."""
    value = trial.suggest_float("lr/all", 1e-4, 1e-1, log=True)
    draw = random.Random(trial.number)
    for step in range(N_LOOKS):
        time.sleep(seconds / N_LOOKS)
        layers = tuple(
            records.LayerRecord(
                name=f"blocks.{i}.linear", N=512, M=256, alpha=2 + draw.random(), D=0.1, sigma=0.2, n_tail=40,
                spikes=3, n_eigenvalues=256, traps=0, rank_loss=0, stable_rank=20.0, spectral_norm=4.0,
            )
            for i in range(N_LAYERS)
        )  # fmt: skip
        records.write_look(trial, records.Look(step, N_LOOKS, value, value, math.nan, 0.01, layers))
        trial.report(value, step)
    return value


def tuned(
    callback: Callback | None, n_trials: int, seconds: float, at: Callable[[int], None]
) -> tuple[Row, optuna.Study]:
    """Run a study, in memory."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    held = computing = 0.0

    def timed(study: optuna.Study, trial: FrozenTrial) -> None:
        nonlocal held, computing
        at(trial.number)
        if callback is not None:
            started, computed = time.perf_counter(), time.thread_time()
            callback(study, trial)
            held, computing = held + time.perf_counter() - started, computing + time.thread_time() - computed

    started, end = time.perf_counter(), "finished"
    try:
        study.optimize(lambda trial: objective(trial, seconds), n_trials, callbacks=[timed])
    except Exception as error:
        end = f"aborted after {len(study.trials)} trials: {type(error).__name__}"
    return Row(time.perf_counter() - started, held, computing, end), study


def weather(server: Server, fault: str, n_trials: int) -> Callable[[int], None]:
    """Bring the fault, at once or for the middle third of the trials."""
    in_the_middle = fault == "down in the middle"
    server.fault("none" if in_the_middle else fault)

    def at(number: int) -> None:
        if in_the_middle and number in (n_trials // 3, 2 * n_trials // 3):
            server.fault("down" if number == n_trials // 3 else "none")

    return at


def ours(server: Server, fault: str, n_trials: int, seconds: float) -> tuple[Row, str]:
    """A study with our callback, its flush, and after that a sync; what of it is in MLflow then."""
    name, folder = f"ours, {fault}", Path(tempfile.mkdtemp())
    callback = MLflowCallback(server.address, name, spool=folder / "spool", tell=lambda _: None)
    row, study = tuned(callback, n_trials, seconds, weather(server, fault, n_trials))
    started = time.perf_counter()
    left = callback.finish(study)
    told = f"flush {time.perf_counter() - started:.1f} s, {left} of {n_trials + 1} records left"
    server.fault("none")
    callback._outbox.background.wait(600)
    del callback
    gc.collect()
    for header in headers(folder / "spool"):
        replay(folder / "spool", header, Target(server.address, name), 600.0, click.echo)
    return row, f"{told}; after sync {counted(server.address, name, study)}"


def counted(address: str, name: str, study: optuna.Study) -> str:
    """How many trials are there once, with every point once."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    whole = 0
    for run in children:
        points = [
            (point.key, point.step)
            for key in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, key)
        ]
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
        whole += len(points) == len(set(points)) > 0 and sorted(files) == ["layers.csv", "layers.json"]
    numbers = {run.data.tags["ww_opt.trial"] for run in children}
    double, parents = len(children) - len(numbers), len(runs) - len(children)
    return f"{whole} whole of {len(study.trials)}, {double} double, {parents} parent"


def theirs(server: Server, fault: str, n_trials: int, seconds: float) -> tuple[Row, str]:
    """A study with Optuna's callback."""
    module = import_module("optuna_integration.mlflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback = module.MLflowCallback(
            server.address, create_experiment=False, mlflow_kwargs={"experiment_id": "0"}, tag_trial_user_attrs=False
        )
        row, study = tuned(callback, n_trials, seconds, weather(server, fault, n_trials))
    server.fault("none")
    runs = MlflowClient(server.address).search_runs(["0"])
    started = [run for run in runs if run.info.start_time >= int(study.trials[0].datetime_start.timestamp() * 1000)]  # type: ignore[union-attr]
    return row, f"{len(started)} of {n_trials} trials there"


@click.command()
@click.option("--trials", "n_trials", default=15, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="That a trial takes.")
@click.option(
    "--rounds", default=3, show_default=True, help="Of studies without tracking, whose median is the measure."
)
@click.option("--fault", "faults", multiple=True, type=click.Choice(FAULTS), help="Default: all.")
def main(n_trials: int, seconds: float, rounds: int, faults: tuple[str, ...]) -> None:
    """Print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    os.environ |= HTTP_DEFAULTS
    folder = Path(tempfile.mkdtemp())
    off = [tuned(None, n_trials, seconds, lambda _: None)[0].seconds for _ in range(rounds)]
    measure = median(off)
    click.echo(
        f"{n_trials} trials of {seconds:g} s; without tracking {measure:.2f} s ({min(off):.2f} to {max(off):.2f})"
    )
    click.echo(f"Our flush at the end takes {FLUSH_SECONDS:g} s at most.\n")
    click.echo(
        "| server | callback | study | ratio | held per trial | of it computing | end |\n|---|---|---|---|---|---|---|"
    )
    has_theirs = _is_there("optuna_integration.mlflow")
    with running(folder) as server:
        for fault in faults or FAULTS:
            for who, run in (("ours", ours), *([("Optuna's", theirs)] if has_theirs else [])):
                row, told = run(server, fault, n_trials, seconds)
                ratio = row.seconds / measure if row.end == "finished" else math.nan
                spent = [f"{own / n_trials * 1e3:.1f} ms" for own in (row.held, row.computing)]
                cells = [fault, who, f"{row.seconds:.2f} s", f"{ratio:.3f}", *spent]
                click.echo(f"| {' | '.join([*cells, f'{row.end}; {told}'])} |")


def _is_there(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
