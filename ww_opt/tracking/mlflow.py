"""Records -> MLflow, one way: nothing in the house reads MLflow back.

A study becomes a parent run and every finished trial a nested child: parameters, curves over steps, a table of the
layers, and in words why it ended. MLflow may be slow, down or broken: the study never notices. One daemon thread
writes, its failures end in one warning, and a later :meth:`MLflowCallback.sync` writes what is missing, because the
records stand in Optuna's storage. Importing this module costs the seconds that ``import mlflow`` takes.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from ww_opt.reporting import summary
from ww_opt.tracking.background import Background
from ww_opt.tracking.contents import Contents
from ww_opt.tracking.runs import Runs, finished
from ww_opt.tracking.stores import Trouble, check, files_beside, shown, trouble

__all__ = ["MLflowCallback"]

_PATIENCE = 3  # failures in a row before logging is suspended


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
        on_trouble: told once, in the writing thread, of the first failure; default: a ``UserWarning``.

    Raises:
        ValueError: MLflow has no store for ``tracking_uri``. No connection is tried here.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "ww_opt",
        artifact_location: str | None = None,
        *,
        on_trouble: Callable[[Trouble], object] | None = None,
    ) -> None:
        local = f"sqlite:///{Path('mlflow.db').resolve().as_posix()}"
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        self.trouble: Trouble | None = None
        check(self.uri)
        self._experiment = experiment
        self._runs = Runs(self.uri, experiment, artifact_location or files_beside(self.uri))
        self._background = Background(_PATIENCE, self._warn)
        self._on_trouble = on_trouble
        self._has_warned = False

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Queue one finished trial and return at once."""
        self._background.submit(partial(self._write, study, [trial]))

    def prepare(self, timeout: float = 30.0) -> Trouble | None:
        """Make store and experiment where they are not there yet, before the first trial.

        Waits at most ``timeout`` seconds. Of what lasts until somebody mends it, nothing is tried again; a later
        :meth:`sync` or :meth:`finish` does.

        Returns:
            What is wrong and lasts, which also stands in ``trouble``; ``None`` where nothing is, or it may pass.
        """
        self._background.submit(partial(self._background.attempt, self._runs.prepare))
        self._background.wait(timeout)
        return None if self.trouble is None or self.trouble.is_passing else self.trouble

    def sync(self, study: optuna.Study, timeout: float = 60.0) -> int:
        """Write every finished trial that is not in MLflow yet, and return how many are unwritten after that.

        Costs nothing when there is none. Where logging is suspended it is tried again. Waits at most ``timeout``
        seconds; the thread goes on after that.
        """
        return self._wait(study, [partial(self._catch_up, study)], timeout) if self._missing(study) else 0

    def finish(self, study: optuna.Study, timeout: float = 60.0, contents: Contents | None = None) -> int:
        """As :meth:`sync`, then give the parent run ``contents``, its final status and end time."""
        end = partial(self._background.attempt, partial(self._runs.end, study, contents))
        return self._wait(study, [partial(self._catch_up, study), end], timeout)

    def _wait(self, study: optuna.Study, jobs: Iterable[Callable[[], None]], timeout: float) -> int:
        for job in jobs:
            self._background.submit(job)
        self._background.wait(timeout)
        return len(self._missing(study))

    def _missing(self, study: optuna.Study) -> list[FrozenTrial]:
        written = self._runs.written[summary.study_id(study)]
        return [trial for trial in finished(study) if trial.number not in written]

    def _catch_up(self, study: optuna.Study) -> None:
        self._background.try_again()
        self.trouble = None
        if self._missing(study):
            self._background.attempt(partial(self._runs.recall, study))
        self._write(study, self._missing(study))

    def _write(self, study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
        for trial in trials:
            if self.trouble is None or self.trouble.is_passing:
                self._background.attempt(partial(self._runs.write, study, trial))

    def _warn(self, error: Exception) -> None:
        self.trouble = trouble(error, self.uri, self._experiment)
        if self._has_warned:
            return
        self._has_warned = True
        if self._on_trouble is not None:
            self._on_trouble(self.trouble)
            return
        when = f"after {_PATIENCE} failures in a row logging is suspended. When MLflow is back,"
        if not self.trouble.is_passing:
            when = f"nothing is logged until this is mended: {self.trouble}. Then"
        first_line = next(iter(str(error).splitlines()), "")
        message = (
            f"MLflow at {self.uri} could not be written: {type(error).__name__}: {first_line}. The study goes on, and "
            f"its records are safe in Optuna's storage; {when} call `MLflowCallback(tracking_uri, experiment)"
            ".sync(study)` to write what is missing."
        )
        with contextlib.suppress(UserWarning):  # where warnings are errors the thread still has to live
            warnings.warn(shown(message), UserWarning, stacklevel=2)
