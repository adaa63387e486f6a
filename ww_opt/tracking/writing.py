"""Documents -> MLflow. Each is written once and may be written twice: the second time changes nothing."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from ww_opt.reporting.summary import LayerTable, clean_names
from ww_opt.tracking.documents import Document, End, Ended, File, State, Weights
from ww_opt.tracking.runs import Runs, ask, is_server, post_once, quiet

__all__ = ["write"]

_TAGS_AT_ONCE, _TAG_LENGTH = 100, 8000  # MLflow takes no more
_WEIGHTS, _WEIGHTS_NAME = "best", "weights.pt"
_GONE = re.compile(r"The run \S+ must be in the 'active' state")
_COUNTED = ("ww_opt.pick.", "ww_opt.finding.", "ww_opt.pruned.", "ww_opt.alarms", "ww_opt.trust")


@quiet()
def write(runs: Runs, document: Document) -> None:
    """Write what is not there yet.

    Raises:
        MlflowException: MLflow is not well.
        OSError: a file or a server cannot be reached.
    """
    try:
        _write(runs, document)
    except MlflowException as error:
        if not _GONE.search(str(error)):
            raise
        _write(runs, document)  # a worker that began at once has made one of two parents meanwhile


def _write(runs: Runs, document: Document) -> None:
    if isinstance(document, Ended):
        _write_trial(runs, document)
    elif isinstance(document, End):
        _write_end(runs, document)
    else:
        _send(runs, runs.parent(document.parent), document)


def _write_trial(runs: Runs, document: Ended) -> None:
    """The final status comes last, so a run that is still RUNNING was interrupted and is written again."""
    parent = runs.parent(document.parent)
    run = runs.child(str(parent.info.run_id), document)
    if run.info.status != "RUNNING":
        return
    run_id = run.info.run_id
    ask(
        runs.client.log_batch,
        run_id,
        [Metric(name, value, document.end, step) for name, step, value in document.points],
        [Param(name, value) for name, value in document.params.items() if name not in run.data.params],
        [RunTag(name, value) for name, value in document.tags.items()],
    )
    if document.table:
        table = LayerTable(tuple(document.table[0]), document.table[1:])
        ask(runs.client.log_text, run_id, table.to_json(), "layers.json")
        ask(runs.client.log_text, run_id, table.to_csv(), "layers.csv")
    points = [Metric(name, value, document.end, document.trial) for name, value in document.curves.items()]
    _tell(runs, parent, document.state, points, document.trial)
    ask(runs.client.set_terminated, run_id, document.status, document.end)


def _write_end(runs: Runs, document: End) -> None:
    parent = runs.parent(document.parent)
    run_id, known = parent.info.run_id, parent.data
    moment = document.state.moment
    fresh = [Param(name, value) for name, value in document.params.items() if name not in known.params]
    points = [Metric(name, value, moment, document.step) for name, value in document.metrics.items()]
    ask(runs.client.log_batch, run_id, points, fresh)
    if not _is_news(parent, moment + 1):
        return
    for name in [name for name in known.tags if name.startswith(_COUNTED) and name not in document.tags]:
        _untag(runs, run_id, name)  # of an earlier pick
    for path in document.files:
        _send(runs, parent, File(document.parent, path))
    if document.state.weights is not None:
        _send_weights(runs, parent, document.state.weights)
    if document.state.best is not None:
        _mark_best(runs, parent, str(document.state.best))
    if document.register and document.state.weights is not None:
        _register(runs, parent, document.register, document.state.weights)
    own = {**document.tags, "mlflow.note.content": document.state.note[:_TAG_LENGTH], "ww_opt.as_of": str(moment)}
    for part in _parts([RunTag(name, value) for name, value in own.items()]):
        ask(runs.client.log_batch, run_id, tags=part)
    ask(runs.client.set_terminated, run_id, "FINISHED", moment)
    runs.recall(document.parent.id)  # trials that workers wrote at the same time are made one


def _is_news(parent: Run, moment: int) -> bool:
    """Whether the parent does not know more already; what a study's end tells is more than its last trial does."""
    return moment > int(parent.data.tags.get("ww_opt.as_of", "0"))


def _tell(runs: Runs, parent: Run, state: State, points: Sequence[Metric], trial: int | None) -> None:
    """Bring the parent up to what is known, unless it is known better; mark the best, once it is there.

    That it is known comes last: what was interrupted is done again.
    """
    tags, news = parent.data.tags, {}
    best = tags.get("ww_opt.best_trial")
    if _is_news(parent, state.moment):
        news = {"mlflow.note.content": state.note[:_TAG_LENGTH], "ww_opt.as_of": str(state.moment)}
        best = None if state.best is None else str(state.best)
        if state.weights is not None:
            _send_weights(runs, parent, state.weights)
    if best is not None and (best != tags.get("ww_opt.best_trial") or best == str(trial)):
        _mark_best(runs, parent, best)
    ask(runs.client.log_batch, parent.info.run_id, points, (), [RunTag(name, own) for name, own in news.items()])


def _mark_best(runs: Runs, parent: Run, number: str) -> None:
    study_id = parent.data.tags["ww_opt.study_id"]
    found = runs.find(study_id, {"ww_opt.trial": number})
    if not found:  # yet to be written; it will mark itself
        ask(runs.client.set_tag, parent.info.run_id, "ww_opt.best_trial", number)
        return
    best = str(found[0].info.run_id)
    for run in runs.find(study_id, {"ww_opt.best": "true"}):
        if run.info.run_id != best:
            _untag(runs, run.info.run_id, "ww_opt.best")
    ask(runs.client.set_tag, best, "ww_opt.best", "true")
    tags = [RunTag("ww_opt.best_trial", number), RunTag("ww_opt.best_run_id", best)]
    ask(runs.client.log_batch, parent.info.run_id, tags=tags)


def _untag(runs: Runs, run_id: str, name: str) -> None:
    try:
        ask(runs.client.delete_tag, run_id, name)
    except MlflowException as error:  # another worker was quicker, or it was done and not told
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _send(runs: Runs, parent: Run, document: File) -> None:
    """Send a file whose content is not there yet under its name; one that is gone is told in a tag."""
    path = Path(document.path)
    place = f"{document.folder}/{path.name}" if document.folder else path.name
    name = f"ww_opt.file.{clean_names([place], 230)[place]}"
    if not path.is_file():
        ask(runs.client.set_tag, parent.info.run_id, name, "gone before it was sent")
        return
    digest = _digest(path)
    if parent.data.tags.get(name) != digest:
        ask(runs.client.log_artifact, parent.info.run_id, str(path), document.folder or None)
        ask(runs.client.set_tag, parent.info.run_id, name, digest)


def _send_weights(runs: Runs, parent: Run, weights: Weights) -> None:
    """Send the best weights in the place of the ones before; of what was removed meanwhile there is a better one."""
    path = Path(weights.path)
    if not path.is_file():
        return
    told = f"trial {weights.trial}, {_digest(path)}"
    if parent.data.tags.get("ww_opt.weights") != told:
        _send_as(runs, parent, path, _WEIGHTS)
        ask(runs.client.set_tag, parent.info.run_id, "ww_opt.weights", told)


def _send_as(runs: Runs, parent: Run, path: Path, folder: str) -> None:
    with tempfile.TemporaryDirectory() as aside:
        own = Path(aside) / _WEIGHTS_NAME
        try:
            own.symlink_to(path)
        except OSError:  # Windows, where not everybody may
            shutil.copyfile(path, own)
        ask(runs.client.log_artifact, parent.info.run_id, str(own), folder)


def _register(runs: Runs, parent: Run, name: str, weights: Weights) -> None:
    """Make a version of a registered model, whose weights nothing overwrites; the same weights are one version."""
    path = Path(weights.path)
    if not path.is_file():
        return
    digest, client = _digest(path), runs.client
    try:
        client.create_registered_model(name)
    except MlflowException:
        ask(client.get_registered_model, name)  # it is there, or this raises too
    found = ask(client.search_model_versions, f"name='{name}'")
    if any(version.tags.get("ww_opt.digest") == digest for version in found):
        return
    folder = f"registered/{digest}"
    _send_as(runs, parent, path, folder)
    tags = {
        "ww_opt.digest": digest,
        "ww_opt.trial": str(weights.trial),
        "ww_opt.format": "state dict",
        "ww_opt.study_id": parent.data.tags["ww_opt.study_id"],
    }
    source = f"{str(parent.info.artifact_uri).rstrip('/')}/{folder}"
    if not is_server(runs.registry_uri):
        client.create_model_version(name, source, parent.info.run_id, tags, await_creation_for=0)
        return
    body = {"name": name, "source": source, "run_id": parent.info.run_id}
    pairs = [{"key": key, "value": value} for key, value in tags.items()]
    post_once(runs.registry_uri, "/api/2.0/mlflow/model-versions/create", {**body, "tags": pairs})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _parts(tags: Sequence[RunTag]) -> Iterator[Sequence[RunTag]]:
    return (tags[i : i + _TAGS_AT_ONCE] for i in range(0, len(tags), _TAGS_AT_ONCE))
