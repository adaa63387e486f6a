"""Records -> MLflow, one way: nothing in the house reads MLflow back.

A study becomes a parent run and every finished trial a nested child: parameters, curves over steps, a table of the
layers, and in words why it ended. MLflow may be slow, down or broken: the study never notices. One daemon thread
writes, its failures end in one warning, and a later :meth:`MLflowCallback.sync` writes what is missing, because the
records stand in Optuna's storage. Importing this module costs the seconds that ``import mlflow`` takes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

import optuna
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState

from ww_opt.reporting import summary
from ww_opt.search import records
from ww_opt.tracking.background import Background

__all__ = ["MLflowCallback"]

_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_PATIENCE = 3  # failures in a row before logging is suspended
_KEY_LENGTH, _PARAM_LENGTH, _TAG_LENGTH = 250, 6000, 8000  # MLflow's own limits
_HTTP_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # with MLflow's own values one call blocks for 4 to 20 minutes
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines and one more request a trial
}


class MLflowCallback:
    """Optuna callback that logs finished trials to MLflow and never holds up or ends the study.

    Give it to ``study.optimize(..., callbacks=[callback])`` and call :meth:`finish` at the end. With several worker
    processes leave it out of the workers and call :meth:`sync` in the process that started them: MLflow has no
    "create unless it exists", so two processes that write the same trial at once could make it twice.

    NaN and infinity are left out of the metrics and are empty in the tables. Names lose the characters that MLflow
    refuses (:func:`ww_opt.reporting.summary.clean_names`). A
    user's active run and global tracking URI are left alone. For a
    tracking server ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` (1), ``_BACKOFF_FACTOR`` (1), ``_TIMEOUT`` (3 seconds) and
    ``MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT`` (true) are set in the environment where the user has not.

    Args:
        tracking_uri: MLflow's address; default: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the current folder.
        experiment: the experiment's name; created where it does not exist.
        artifact_location: where a new experiment keeps its files; default: for SQLite the folder ``mlartifacts``
            beside the database file, otherwise what the server chooses.

    Raises:
        ValueError: MLflow has no store for ``tracking_uri``. No connection is tried here.
    """

    def __init__(
        self, tracking_uri: str | None = None, experiment: str = "ww_opt", artifact_location: str | None = None
    ) -> None:
        local = f"sqlite:///{Path('mlflow.db').resolve().as_posix()}"
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        _check(self.uri)
        self._runs = _Runs(self.uri, experiment, artifact_location or _beside(self.uri))
        self._background = Background(_PATIENCE, self._warn)
        self._has_warned = False

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Queue one finished trial and return at once."""
        self._background.submit(partial(self._write, study, [trial]))

    def sync(self, study: optuna.Study, timeout: float = 60.0) -> int:
        """Write every finished trial that is not in MLflow yet, and return how many are unwritten after that.

        Costs nothing when there is none. Where logging is suspended it is tried again. Waits at most ``timeout``
        seconds; the thread goes on after that.
        """
        return self._wait(study, [partial(self._catch_up, study)], timeout) if self._missing(study) else 0

    def finish(self, study: optuna.Study, timeout: float = 60.0) -> int:
        """As :meth:`sync`, then give the parent run its final status and end time."""
        end = partial(self._background.attempt, partial(self._runs.end, study))
        return self._wait(study, [partial(self._catch_up, study), end], timeout)

    def _wait(self, study: optuna.Study, jobs: Iterable[Callable[[], None]], timeout: float) -> int:
        for job in jobs:
            self._background.submit(job)
        self._background.wait(timeout)
        return len(self._missing(study))

    def _missing(self, study: optuna.Study) -> list[FrozenTrial]:
        written = self._runs.written[summary.study_id(study)]
        return [trial for trial in _finished(study) if trial.number not in written]

    def _catch_up(self, study: optuna.Study) -> None:
        self._background.try_again()
        if self._missing(study):
            self._background.attempt(partial(self._runs.recall, study))
        self._write(study, self._missing(study))

    def _write(self, study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
        for trial in trials:
            self._background.attempt(partial(self._runs.write, study, trial))

    def _warn(self, error: Exception) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        message = (
            f"MLflow at {self.uri} could not be written: {type(error).__name__}: {error}. The study goes on, and its "
            f"records are safe in Optuna's storage; after {_PATIENCE} failures in a row logging is suspended. When "
            "MLflow is back, call `MLflowCallback(tracking_uri, experiment).sync(study)` to write what is missing."
        )
        with contextlib.suppress(UserWarning):  # where warnings are errors the thread still has to live
            warnings.warn(re.sub(r"//[^/\s@]+@", "//***@", message), UserWarning, stacklevel=2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MLflow and urllib3 log in this thread, and in no other, off the terminal."""
    own = threading.get_ident()

    def is_foreign(record: logging.LogRecord) -> bool:
        return record.thread != own

    places = [logging.getLogger("urllib3.connectionpool"), *logging.getLogger("mlflow").handlers]
    for place in places:
        place.addFilter(is_foreign)
    try:
        yield
    finally:
        for place in places:
            place.removeFilter(is_foreign)


class _Runs:
    """The runs of one experiment: finds, creates and fills them. Every method may raise; only the thread calls them.

    A child's final status comes last, so a run that is still RUNNING was interrupted. Writing it again changes
    nothing in what it has: to MLflow, equal parameters and equal points (value, step and time) are the same.
    """

    def __init__(self, tracking_uri: str, experiment: str, artifact_location: str | None) -> None:
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._artifact_location = artifact_location
        self._parents: dict[str, str] = {}
        self._best: dict[str, int] = {}
        self.written: defaultdict[str, set[int]] = defaultdict(set)  # study id -> trial numbers

    @cached_property
    def _client(self) -> MlflowClient:
        return MlflowClient(self._tracking_uri)

    @cached_property
    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        return self._client.create_experiment(self._experiment, self._artifact_location)

    @_quiet()
    def recall(self, study: optuna.Study) -> None:
        """Learn which trials MLflow already has."""
        for run in self._search(study):
            if "ww_opt.trial" in run.data.tags and run.info.status != "RUNNING":
                self.written[summary.study_id(study)].add(int(run.data.tags["ww_opt.trial"]))

    @_quiet()
    def write(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Write one finished trial and what it changes in the parent; what is there already stays as it is."""
        parent = self._parent(study)
        number = {"ww_opt.trial": str(trial.number)}
        run = next(iter(self._search(study, number)), None)
        if run is None:
            tags = {**_tags(study), **number, "mlflow.parentRunId": parent}
            start = _milliseconds(trial.datetime_start)
            run = self._client.create_run(self._experiment_id, start, tags, f"trial {trial.number}")
        if run.info.status == "RUNNING":
            self._fill(run.info.run_id, trial)
            self._update(parent, study, trial)
            self._client.set_terminated(run.info.run_id, _STATUS[trial.state], _milliseconds(trial.datetime_complete))
        self.written[summary.study_id(study)].add(trial.number)

    @_quiet()
    def end(self, study: optuna.Study) -> None:
        """Give the parent run its final status; a study without a finished trial has no parent run."""
        ends = [_milliseconds(trial.datetime_complete) for trial in _finished(study)]
        if ends:
            self._client.set_terminated(self._parent(study), "FINISHED", max(ends))

    def _search(self, study: optuna.Study, tags: Mapping[str, str] | None = None) -> list[Run]:
        wanted = {"ww_opt.study_id": summary.study_id(study), **(tags or {})}
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        order = ["attributes.start_time", "attributes.run_id"]
        runs: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment_id], query, order_by=order, page_token=token)
            runs += page
            if not (token := page.token):
                return runs

    def _parent(self, study: optuna.Study) -> str:
        key, role = summary.study_id(study), {"ww_opt.role": "study"}
        if key not in self._parents:
            run = next(iter(self._search(study, role)), None)
            if run is None:
                tags, name = {**_tags(study), **role}, study.study_name[:_KEY_LENGTH]
                start = min(_milliseconds(trial.datetime_start) for trial in _finished(study))
                run = self._client.create_run(self._experiment_id, start, tags, name)
            self._parents[key] = str(run.info.run_id)
        return self._parents[key]

    def _fill(self, run_id: str, trial: FrozenTrial) -> None:
        params, points = summary.parameters(trial), summary.curves(trial)
        names, keys = summary.clean_names(params), summary.clean_names(name for name, _ in points)
        moment = _milliseconds(trial.datetime_complete)
        text, reason = summary.note(trial, _TAG_LENGTH), records.reason(trial)[:_TAG_LENGTH]
        tags = {"mlflow.note.content": text, "ww_opt.reason": reason}
        self._client.log_batch(
            run_id,
            [Metric(keys[name], value, moment, step) for (name, step), value in points.items()],
            [Param(names[name], str(value)[:_PARAM_LENGTH]) for name, value in params.items()],
            [RunTag(name, text) for name, text in tags.items() if text],
        )
        table = summary.layer_table(trial)
        if table.rows:
            self._client.log_text(run_id, table.to_json(), "layers.json")
            self._client.log_text(run_id, table.to_csv(), "layers.csv")

    def _update(self, parent: str, study: optuna.Study, trial: FrozenTrial) -> None:
        finished, moment = _finished(study), _milliseconds(trial.datetime_complete)
        value = summary.best_value_at(study, finished, trial)
        points = [Metric("best_value", value, moment, trial.number)] if math.isfinite(value) else []
        best = summary.best_of(study, finished)
        text = summary.study_note(study, finished, best)[:_TAG_LENGTH]
        self._client.log_batch(parent, points, tags=[RunTag("mlflow.note.content", text)])
        if best is not None and best.number != self._best.get(summary.study_id(study)):
            self._mark_best(parent, study, best.number)

    def _mark_best(self, parent: str, study: optuna.Study, number: int) -> None:
        found = self._search(study, {"ww_opt.trial": str(number)})
        if not found:
            return  # yet to be written; it will mark itself
        for run in self._search(study, {"ww_opt.best": "true"}):
            self._client.delete_tag(run.info.run_id, "ww_opt.best")
        run_id = str(found[0].info.run_id)
        self._client.set_tag(run_id, "ww_opt.best", "true")
        self._client.log_batch(
            parent, tags=[RunTag("ww_opt.best_trial", str(number)), RunTag("ww_opt.best_run_id", run_id)]
        )
        self._best[summary.study_id(study)] = number


def _tags(study: optuna.Study) -> dict[str, str]:
    key, directions = summary.study_id(study), ",".join(direction.name.lower() for direction in study.directions)
    return {"ww_opt.study.study": study.study_name, "ww_opt.study_id": key, "ww_opt.direction": directions}


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=tuple(_STATUS))


def _milliseconds(moment: datetime | None) -> int:
    return int((moment or datetime.now()).timestamp() * 1000)


def _check(uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _DATABASES:  # a database may be away just now, and SQLite takes seconds at first: the thread's job
        try:
            MlflowClient(uri)
        except MlflowException as error:
            raise ValueError(
                f"`tracking_uri` must name a store that MLflow can write, but got {uri!r}: {error.message} "
                "Use an address such as 'sqlite:///mlflow.db' or 'http://localhost:5000'."
            ) from error
        for name, value in _HTTP_DEFAULTS.items():
            os.environ.setdefault(name, value)


def _beside(uri: str) -> str | None:
    scheme, _, path = uri.partition(":///")
    path = path.partition("?")[0]
    is_file = scheme.startswith("sqlite") and path not in ("", ":memory:")
    return (Path(path).resolve().parent / "mlartifacts").as_uri() if is_file else None
