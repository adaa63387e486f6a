"""The runs of one experiment: finds, creates and fills them."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cached_property

import optuna
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState

from ww_opt.reporting import summary
from ww_opt.search import records
from ww_opt.search.ranking import best, is_interrupted, outcome
from ww_opt.tracking.contents import Contents, best_late_accuracy
from ww_opt.tracking.stores import Deleted, make_whole

__all__ = ["Runs", "finished", "quiet"]

_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
_KEY_LENGTH, _PARAM_LENGTH, _TAG_LENGTH = 250, 6000, 8000  # MLflow's own limits
_TAGS_AT_ONCE = 100  # MLflow takes no more in a batch
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow guesses, and opens its pages for prompts


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


class Runs:
    """The runs of one experiment. Every method may raise; only the thread calls them.

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
        make_whole(self._tracking_uri)
        return MlflowClient(self._tracking_uri)

    @cached_property
    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return self._client.create_experiment(self._experiment, self._artifact_location, _KIND)
            except MlflowException:  # another process was quicker
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == LifecycleStage.DELETED:
            raise Deleted(self._experiment, str(found.experiment_id))
        return str(found.experiment_id)

    @quiet()
    def prepare(self) -> None:
        """Make the store and the experiment where they are not there yet."""
        assert self._experiment_id

    @quiet()
    def recall(self, study: optuna.Study) -> None:
        """Learn which trials MLflow already has."""
        for run in self._search(study):
            if "ww_opt.trial" in run.data.tags and run.info.status != "RUNNING":
                self.written[summary.study_id(study)].add(int(run.data.tags["ww_opt.trial"]))

    @quiet()
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
            _fill(self._client, run.info.run_id, trial)
            self._update(parent, study, trial)
            self._client.set_terminated(run.info.run_id, _status(trial), _milliseconds(trial.datetime_complete))
        self.written[summary.study_id(study)].add(trial.number)

    @quiet()
    def end(self, study: optuna.Study, contents: Contents | None) -> None:
        """Give the parent run what is known at the end; a study without a finished trial has no parent run."""
        ends = [_milliseconds(trial.datetime_complete) for trial in finished(study)]
        if not ends:
            return
        parent = self._parent(study)
        if contents is not None:
            _describe(self._client, parent, contents, max(ends), max(trial.number for trial in finished(study)))
        self._client.set_terminated(parent, "FINISHED", max(ends))

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
                start = min(_milliseconds(trial.datetime_start) for trial in finished(study))
                run = self._client.create_run(self._experiment_id, start, tags, name)
            self._parents[key] = str(run.info.run_id)
        return self._parents[key]

    def _update(self, parent: str, study: optuna.Study, trial: FrozenTrial) -> None:
        ended, moment = finished(study), _milliseconds(trial.datetime_complete)
        before = [own for own in ended if _milliseconds(own.datetime_complete) <= moment]
        values = {
            "best_value": summary.best_value_at(study, ended, trial),
            "best_late_accuracy": best_late_accuracy(before),
        }
        points = [Metric(key, own, moment, trial.number) for key, own in values.items() if math.isfinite(own)]
        leader = best(study, ended)
        text = summary.study_note(study, ended, leader)[:_TAG_LENGTH]
        self._client.log_batch(parent, points, tags=[RunTag("mlflow.note.content", text)])
        if leader is not None and leader.number != self._best.get(summary.study_id(study)):
            self._mark_best(parent, study, leader.number)

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


def _describe(client: MlflowClient, parent: str, contents: Contents, moment: int, step: int) -> None:
    known = client.get_run(parent).data
    params, tags, metrics = (summary.clean_names(own) for own in (contents.params, contents.tags, contents.metrics))
    fresh = {params[name]: text for name, text in contents.params.items() if params[name] not in known.params}
    stale = [name for name in known.tags if _is_counted(name) and name not in tags.values()]
    for name in stale:  # of an earlier pick
        client.delete_tag(parent, name)
    for part in _parts([RunTag(tags[name], text[:_TAG_LENGTH]) for name, text in contents.tags.items()]):
        client.log_batch(parent, tags=part)
    client.log_batch(
        parent,
        [Metric(metrics[name], value, moment, step) for name, value in contents.metrics.items()],
        [Param(name, text[:_PARAM_LENGTH]) for name, text in fresh.items()],
    )
    for file in contents.files:
        client.log_artifact(parent, str(file))


def _fill(client: MlflowClient, run_id: str, trial: FrozenTrial) -> None:
    params, points = summary.parameters(trial), summary.curves(trial)
    names, keys = summary.clean_names(params), summary.clean_names(name for name, _ in points)
    moment = _milliseconds(trial.datetime_complete)
    text, reason = summary.note(trial, _TAG_LENGTH), records.reason(trial)[:_TAG_LENGTH]
    tags = {"mlflow.note.content": text, "ww_opt.reason": reason, "ww_opt.outcome": outcome(trial)}
    client.log_batch(
        run_id,
        [Metric(keys[name], value, moment, step) for (name, step), value in points.items()],
        [Param(names[name], str(value)[:_PARAM_LENGTH]) for name, value in params.items()],
        [RunTag(name, text) for name, text in tags.items() if text],
    )
    table = summary.layer_table(trial)
    if table.rows:
        client.log_text(run_id, table.to_json(), "layers.json")
        client.log_text(run_id, table.to_csv(), "layers.csv")


def _tags(study: optuna.Study) -> dict[str, str]:
    key, directions = summary.study_id(study), ",".join(direction.name.lower() for direction in study.directions)
    return {"ww_opt.study.study": study.study_name, "ww_opt.study_id": key, "ww_opt.direction": directions}


def _status(trial: FrozenTrial) -> str:
    return "KILLED" if is_interrupted(trial) else _STATUS[trial.state]


def _is_counted(tag: str) -> bool:
    return tag.startswith(("ww_opt.pick.", "ww_opt.finding.", "ww_opt.pruned.", "ww_opt.alarms", "ww_opt.trust"))


def _parts(tags: list[RunTag]) -> Iterator[list[RunTag]]:
    return (tags[i : i + _TAGS_AT_ONCE] for i in range(0, len(tags), _TAGS_AT_ONCE))


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have ended in any way."""
    return study.get_trials(deepcopy=False, states=tuple(_STATUS))


def _milliseconds(moment: datetime | None) -> int:
    return int((moment or datetime.now()).timestamp() * 1000)
