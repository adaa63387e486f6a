"""Records -> MLflow, one way: nothing in the house reads MLflow back.

A study becomes a parent run and every finished trial a nested child: parameters, curves over steps, a table of the
layers, and in words why it ended. MLflow may be slow, down or broken: the study never notices. Each record first goes
into a file of this machine (:mod:`ww_opt.tracking.spool`); one daemon thread sends it. What is not sent when the
process ends, ``ww-opt mlflow sync`` sends, without study and storage. Importing this module costs the seconds that
``import mlflow`` takes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from ww_opt.reporting import summary
from ww_opt.study.first_use import database_file
from ww_opt.tracking import trials
from ww_opt.tracking.contents import Contents
from ww_opt.tracking.documents import Document, File
from ww_opt.tracking.outbox import Outbox, Target
from ww_opt.tracking.secrets import scrubbed
from ww_opt.tracking.spool import MAX_BYTES
from ww_opt.tracking.stores import Trouble, check, files_beside

__all__ = ["EXIT_SECONDS", "FLUSH_SECONDS", "MLflowCallback", "Weights"]

FLUSH_SECONDS = 30.0
"""Longest time that :meth:`MLflowCallback.finish` waits for MLflow."""
EXIT_SECONDS = 10.0
"""The same of an interpreter that ends without it."""
_PREPARE_SECONDS = 30.0


@dataclass(frozen=True)
class Weights:
    """Which weights MLflow gets: the state dict of the best trial, in the place of the one before.

    Args:
        file_of: where the weights of a trial lie, by its number.
        max_bytes: larger files stay where they are.
        register: at the end, make a version of the registered model of this name, however large; empty: none.

    Raises:
        ValueError: ``max_bytes`` is negative or NaN.
    """

    file_of: Callable[[int], Path]
    max_bytes: float = 100e6
    register: str = ""

    def __post_init__(self) -> None:
        if not self.max_bytes >= 0:
            raise ValueError(f"`max_bytes >= 0` must hold, but got max_bytes={self.max_bytes}.")

    def of(self, number: int) -> Path | None:
        """The file of a trial; ``None`` where there is none, or it is too large."""
        file = self.file_of(number)
        return file if file.is_file() and file.stat().st_size <= self.max_bytes else None

    def fitting(self, contents: Contents | None) -> Contents | None:
        """What a study gets at its end, without weights that are too large, which a tag tells."""
        if contents is None or contents.weights is None or self.register or not contents.weights.is_file():
            return contents
        if (size := contents.weights.stat().st_size) <= self.max_bytes:
            return contents
        told = f"not sent: {size / 1e6:.0f} MB, and no more than {self.max_bytes / 1e6:g} MB were asked for"
        return replace(contents, weights=None, tags={**contents.tags, "ww_opt.pick.weights": told})


class MLflowCallback:
    """Optuna callback that logs finished trials to MLflow and never holds up or ends the study.

    Give it to ``study.optimize(..., callbacks=[callback])`` and call :meth:`finish` at the end; where that is left out,
    an interpreter that exits waits ten seconds at most. Each process makes one of its own; all of them share one
    parent run.

    NaN and infinity are left out of the metrics and are empty in the tables. Names lose the characters that MLflow
    refuses (:func:`ww_opt.reporting.summary.clean_names`). Passwords in addresses are never written. A user's active
    run and global tracking URI are left alone. For a tracking server ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` (1),
    ``_BACKOFF_FACTOR`` (1), ``_TIMEOUT`` (3 seconds) and ``MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT`` (true) are set in
    the environment where the user has not.

    Args:
        tracking_uri: MLflow's address; default: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the current folder.
        experiment: the experiment's name; created where it does not exist.
        artifact_location: where a new experiment keeps its files; default: for SQLite the folder ``mlartifacts``
            beside the database file, otherwise what the server chooses.
        spool: folder of the records that wait for MLflow; default: ``mlflow-spool`` in the current folder. It is made
            when it is needed and goes when nothing waits.
        weights: which weights are sent; default: none.
        tell: told in a sentence of what goes wrong, once of each; default: a ``UserWarning``.

    Raises:
        ValueError: MLflow has no store for ``tracking_uri``. No connection is tried here.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "ww_opt",
        artifact_location: str | None = None,
        *,
        spool: Path | str = "mlflow-spool",
        weights: Weights | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self.uri = _absolute(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
        check(self.uri)
        self.spool = Path(spool).resolve()
        self._weights = weights
        self._file_of = None if weights is None else weights.of
        self._tell = tell or _warn
        self._told: set[str] = set()
        target = Target(self.uri, experiment, artifact_location or files_beside(self.uri))
        self._outbox = Outbox(target, self.spool, self._say, MAX_BYTES)
        self._at_exit: Callable[[], object] | None = None

    @property
    def trouble(self) -> Trouble | None:
        """Why MLflow could not be written when that was tried last."""
        return self._outbox.trouble

    @property
    def command(self) -> str:
        """What sends the records that wait, whenever and from wherever on this machine."""
        return shlex.join(["ww-opt", "mlflow", "sync", str(self.spool)])

    @property
    def n_lost_at_exit(self) -> int:
        """How many records neither MLflow nor the disk could take."""
        return self._outbox.n_lost_at_exit

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Keep one finished trial on this machine's disk, and return without a word from MLflow."""
        try:
            self._put(trials.ended(study, trial, self._file_of))
        except Exception as error:  # whatever a user's study holds
            self._say(f"Trial {trial.number} could not be made a record for MLflow: {error!r}.", None)

    def prepare(self, timeout: float = _PREPARE_SECONDS) -> Trouble | None:
        """Make store and experiment where they are not there yet, before the first trial, and take up old spools.

        Waits at most ``timeout`` seconds. Of what lasts until somebody mends it, nothing is tried again before
        :meth:`sync` or :meth:`finish`.

        Returns:
            What is wrong and lasts, which also stands in ``trouble``; ``None`` where nothing is, or it may pass.
        """
        outbox = self._outbox
        for job in (outbox.adopt, partial(outbox.breaker.attempt, outbox.runs.prepare)):
            outbox.background.submit(job)
        outbox.background.wait(timeout)
        outbox.background.submit(outbox.send)
        return None if self.trouble is None or self.trouble.is_passing else self.trouble

    def sync(self, study: optuna.Study, timeout: float = FLUSH_SECONDS) -> int:
        """Send every finished trial that is not in MLflow yet, and return how many records wait after that.

        Costs nothing when there is none. Where nothing was tried for a while it is tried again. Waits at most
        ``timeout`` seconds; the thread goes on after that.
        """
        if missing := _missing(self._outbox, study):
            self._outbox.background.submit(partial(_catch_up, self._outbox, study, self._file_of))
        return self._outbox.flush(timeout) if missing or len(self._outbox) else 0

    def finish(self, study: optuna.Study, timeout: float = FLUSH_SECONDS, contents: Contents | None = None) -> int:
        """As :meth:`sync`, then give the parent run ``contents``, its final status and end time."""
        outbox, register = self._outbox, ""
        outbox.background.submit(outbox.adopt)  # what processes that have ended left behind
        if _missing(outbox, study):
            outbox.background.submit(partial(_catch_up, outbox, study, self._file_of))
        if self._weights is not None:
            contents, register = self._weights.fitting(contents), self._weights.register
        if (document := trials.end(study, contents, register)) is not None:
            self._put(document)
        outbox.flush(timeout)
        outbox.close()
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None
        return len(outbox)

    def log_artifact(self, study: optuna.Study, path: Path | str, folder: str = "") -> None:
        """Send a file to the study's run, once for each content; a later one of its name takes its place.

        Args:
            study: one with at least one finished trial.
            path: of the file, which must stay there until it is sent.
            folder: where it goes among the artifacts.

        Raises:
            ValueError: there is no such file, or no trial has ended.
        """
        file = Path(path).resolve()
        if not file.is_file():
            raise ValueError(f"`path` must be a file, but there is none at {path}.")
        if not trials.finished(study):
            raise ValueError(f"A study must have a finished trial to have a run, but {study.study_name!r} has none.")
        self._put(File(trials.parent(study), str(file), folder))

    def _put(self, document: Document) -> None:
        self._outbox.put(document)
        if self._at_exit is None:
            self._at_exit = partial(_leave, weakref.ref(self))
            atexit.register(self._at_exit)

    def _say(self, sentence: str, of: Trouble | None) -> None:
        """Tell of each thing once; of MLflow itself once at all."""
        key = sentence if of is None else "MLflow"
        if key in self._told:
            return
        self._told.add(key)
        if of is not None:
            mended = "When it is back" if of.is_passing else f"Nothing is sent until this is mended: {of.remedy}. Then"
            sentence += (
                f" The study goes on, and its records wait in {self.spool}. {mended}, `{self.command}` sends them."
            )
        with contextlib.suppress(UserWarning):  # where warnings are errors the thread still has to live
            self._tell(scrubbed(sentence))


def _missing(outbox: Outbox, study: optuna.Study) -> list[FrozenTrial]:
    key = summary.study_id(study)
    return [trial for trial in trials.finished(study) if (key, trial.number) not in outbox.known]


def _catch_up(outbox: Outbox, study: optuna.Study, file_of: trials.FileOf | None) -> None:
    """Keep what neither MLflow nor a spool has. Runs in the thread."""
    key = summary.study_id(study)
    outbox.breaker.try_again()
    outbox.breaker.attempt(lambda: outbox.known.update((key, number) for number in outbox.runs.recall(key)))
    for trial in _missing(outbox, study):
        outbox.put(trials.ended(study, trial, file_of))


def _leave(ref: weakref.ref[MLflowCallback]) -> None:
    """What an interpreter does that exits without :meth:`MLflowCallback.finish`."""
    callback = ref()
    if callback is None:
        return
    outbox = callback._outbox
    left = outbox.flush(EXIT_SECONDS) if len(outbox) else 0
    outbox.close()
    if left:
        some = f"{left} record{'s are' if left > 1 else ' is'} not in MLflow yet"
        callback._say(f"{some}: `{callback.command}` sends what waits in {callback.spool}.", None)


def _absolute(uri: str) -> str:
    """The same address from every folder: records are sent later, and from elsewhere."""
    file = database_file(uri)
    return uri if file is None or file.is_absolute() else f"sqlite:///{file.resolve().as_posix()}"


def _warn(sentence: str) -> None:
    warnings.warn(sentence, UserWarning, stacklevel=2)
