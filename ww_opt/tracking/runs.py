"""The runs of one experiment in MLflow: found, made once, and made one where two processes made two."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response

from ww_opt.tracking.documents import Ended, Parent
from ww_opt.tracking.stores import Deleted, make_whole

__all__ = ["Runs", "ask", "is_server", "post_once", "quiet"]

P = ParamSpec("P")
T = TypeVar("T")

_KEY_LENGTH = 250  # MLflow's own limit
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow guesses, and opens its pages for prompts
_TRIES, _PAUSE = 3, 0.1
_SLOW = 1.0
_MAY_PASS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


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


def ask(method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Ask MLflow what may be asked twice: an answer that it is unwell, where it comes at once, is not the last word.

    Raises:
        MlflowException: it said so three times, or took its time, or the fault is ours.
    """
    for left in reversed(range(_TRIES)):
        started = time.monotonic()
        try:
            return method(*args, **named)
        except (MlflowException, OSError) as error:
            if not left or not _may_pass(error) or time.monotonic() - started > _SLOW:
                raise
            time.sleep(_PAUSE)
    raise AssertionError("unreachable")


def is_server(uri: str) -> bool:
    """Whether an address is a server's."""
    return uri.startswith(("http://", "https://"))


def post_once(uri: str, endpoint: str, body: Mapping[str, Any]) -> Any:
    """Ask a server once for something new: MLflow 3.17 itself asks again after a 500, and could make two."""
    creds = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
    answer = http_request(creds, endpoint, "POST", max_retries=0, json=body)  # type: ignore[no-untyped-call]
    return verify_rest_response(answer, endpoint).json()


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, MlflowException) or error.error_code in _MAY_PASS


class Runs:
    """The runs of one experiment. Every method may raise; only one thread calls them.

    Each run has the study's digest and the trial's number as tags, and is searched for before it is made.
    """

    def __init__(self, tracking_uri: str, experiment: str, artifact_location: str | None) -> None:
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._artifact_location = artifact_location
        self.registry_uri = os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri
        self._parents: dict[str, str] = {}

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow; its store is made where there is none."""
        make_whole(self._tracking_uri)
        return MlflowClient(self._tracking_uri, registry_uri=self.registry_uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment, which is made where there is none."""
        found = ask(self.client.get_experiment_by_name, self._experiment)
        if found is None:
            try:
                return self.client.create_experiment(self._experiment, self._artifact_location, _KIND)
            except MlflowException:  # another process was quicker
                found = ask(self.client.get_experiment_by_name, self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == LifecycleStage.DELETED:
            raise Deleted(self._experiment, str(found.experiment_id))
        return str(found.experiment_id)

    @quiet()
    def prepare(self) -> None:
        """Make the store and the experiment where they are not there yet."""
        assert self.experiment_id

    @quiet()
    def recall(self, study_id: str) -> set[int]:
        """Learn which trials MLflow has whole; what several workers wrote at the same time is made one."""
        found: dict[int, list[Run]] = {}
        for run in self.find(study_id):
            if "ww_opt.trial" in run.data.tags:
                found.setdefault(int(run.data.tags["ww_opt.trial"]), []).append(run)
        kept = {number: self._one_of(runs) for number, runs in found.items()}
        return {number for number, run in kept.items() if run is not None and run.info.status != "RUNNING"}

    def find(self, study_id: str, tags: Mapping[str, str] | None = None) -> list[Run]:
        """All runs of a study that have these tags, in an order that all processes see alike."""
        wanted = {"ww_opt.study_id": study_id, **(tags or {})}
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        order = ["attributes.start_time", "attributes.run_id"]
        runs: list[Run] = []
        token = None
        while True:
            page = ask(self.client.search_runs, [self.experiment_id], query, order_by=order, page_token=token)
            runs += page
            if not (token := page.token):
                return runs

    def parent(self, parent: Parent) -> Run:
        """The run of a study, as it is now; made where there is none, or where it was deleted."""
        known = self._parents.get(parent.id)
        if known is not None:
            run = ask(self.client.get_run, known)
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                return run
        role = {"ww_opt.role": "study"}
        name = parent.name[:_KEY_LENGTH]
        made = self._made(parent, role, role, (parent.start, name))
        # workers that begin at once each make one; all see the same ones, in the same order, soon after
        run = self._one_of(self.find(parent.id, role)) or made
        self._parents[parent.id] = str(run.info.run_id)
        return run

    def child(self, parent: str, document: Ended) -> Run:
        """The run of a trial, made where there is none."""
        number = {"ww_opt.trial": str(document.trial)}
        tags = {**number, "mlflow.parentRunId": parent}
        return self._made(document.parent, number, tags, (document.start, f"trial {document.trial}"))

    def _made(self, parent: Parent, key: Mapping[str, str], tags: Mapping[str, str], how: tuple[int, str]) -> Run:
        """Find the run that has ``key``, or make it: after each failure it is looked for again."""
        own = {"ww_opt.study_id": parent.id, "ww_opt.study.study": parent.name, "ww_opt.direction": parent.direction}
        for left in reversed(range(_TRIES)):
            if (run := self._one_of(self.find(parent.id, key))) is not None:
                return run
            started = time.monotonic()
            try:
                return self._created({**own, **tags}, *how)
            except (MlflowException, OSError) as error:
                if not left or not _may_pass(error) or time.monotonic() - started > _SLOW:
                    raise
                time.sleep(_PAUSE)
        raise AssertionError("unreachable")

    def _created(self, tags: Mapping[str, str], start: int, name: str) -> Run:
        if not is_server(self._tracking_uri):
            return self.client.create_run(self.experiment_id, start, dict(tags), name)
        body = {
            "experiment_id": self.experiment_id,
            "start_time": start,
            "run_name": name,
            "user_id": "unknown",
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        found = post_once(self._tracking_uri, "/api/2.0/mlflow/runs/create", body)
        return ask(self.client.get_run, str(found["run"]["info"]["run_id"]))

    def _one_of(self, found: list[Run]) -> Run | None:
        """The first of the runs of one thing; what the others have goes to it, and they go.

        A whole trial stays as long as the one before it is not whole: whoever writes that one may have died.
        """
        for other in found[1:]:
            if "ww_opt.trial" not in other.data.tags:
                _move(self, other, found[0])
            elif found[0].info.status != "RUNNING" or other.info.status == "RUNNING":
                ask(self.client.delete_run, other.info.run_id)  # whoever is writing it finds the first one then
        return found[0] if found else None


def _move(runs: Runs, other: Run, kept: Run) -> None:
    """Give a run's children, points, parameters and tags to another that stands for the same thing, and delete it."""
    client, own = runs.client, kept.info.run_id
    for child in runs.find(other.data.tags["ww_opt.study_id"], {"mlflow.parentRunId": other.info.run_id}):
        ask(client.set_tag, child.info.run_id, "mlflow.parentRunId", own)
    points = [point for key in other.data.metrics for point in ask(client.get_metric_history, other.info.run_id, key)]
    params = [Param(key, value) for key, value in other.data.params.items() if key not in kept.data.params]
    # what a tag says of files is not true of the other run
    foreign = ("ww_opt.file.", "ww_opt.weights", "mlflow.")
    tags = [
        RunTag(key, value)
        for key, value in other.data.tags.items()
        if key not in kept.data.tags and not key.startswith(foreign)
    ]
    copies = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
    ask(client.log_batch, own, copies, params, tags)
    ask(client.delete_run, other.info.run_id)
