"""Our storage keeps Optuna's contract, writes settings in one go, and bears that it cannot be reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, PendingRollbackError

from benchmarks.storage_writes import measure
from ww_opt.study.patience import Patience, is_lost
from ww_opt.study.shared_storage import SharedStorage
from ww_opt.study.storages import open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Lost(ConnectionError):
    """The connection was lost."""


class Failing:
    """A backend whose named method fails ``times``, before or after it has done its work."""

    def __init__(self, backend: BaseStorage, name: str, times: int, *, is_done: bool) -> None:
        self._backend, self._name, self._times, self._is_done = backend, name, times, is_done

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)
        if name != self._name:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._times:
                self._times -= 1
                if self._is_done:
                    method(*args, **kwargs)
                raise Lost("server closed the connection")
            return method(*args, **kwargs)

        return call


def shared(backend: Any, **changes: Any) -> SharedStorage:
    patience = Patience("'here'", **{"seconds": 5.0, "longest_pause": 0.01, **changes})
    return SharedStorage(backend, "here", patience, is_remote=True)  # type: ignore[abstract]


@pytest.fixture(params=["journal", "sqlite", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    if request.param == "journal":
        return JournalStorage(JournalFileBackend(str(tmp_path / "a.journal")))
    return get_storage(None if request.param == "memory" else f"sqlite:///{tmp_path / 'a.db'}")


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "name",
    ["create_new_trial", "set_trial_state_values", "set_trial_user_attr", "get_all_trials", "set_trial_system_attr"],
)
def test_a_lost_connection_is_borne_and_nothing_done_twice(backend: BaseStorage, name: str, is_done: bool) -> None:
    study = optuna.create_study(storage=shared(backend))
    storage = study._storage
    assert isinstance(storage, SharedStorage)
    storage.backend = Failing(backend, name, 2, is_done=is_done)  # type: ignore[assignment]
    study.enqueue_trial({"x": 0.25})
    if name == "set_trial_state_values":
        # what was taken from the queue, and the answer lost, may be another's: it is left to be found
        storage.backend = backend
    for _ in range(2):
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        trial.set_user_attr("a", 1)
        if name == "set_trial_state_values":
            storage.backend = Failing(backend, name, 2, is_done=is_done)  # type: ignore[assignment]
        study.tell(trial, 1.0)
    assert [own.state for own in study.trials] == [TrialState.COMPLETE] * 2
    assert study.trials[0].params == {"x": 0.25}
    assert study.trials[1].user_attrs == {"a": 1}


def test_waiting_is_bounded(backend: BaseStorage) -> None:
    study = optuna.create_study(storage=shared(backend, seconds=0.2))
    study._storage.backend = Failing(backend, "get_all_trials", 10**9, is_done=False)  # type: ignore[attr-defined]
    with pytest.raises(Lost):
        study.get_trials()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sleeping takes no time; what was slept is listed."""
    slept: list[float] = []
    monkeypatch.setattr("ww_opt.study.patience.time.sleep", slept.append)
    monkeypatch.setattr("ww_opt.study.patience.time.monotonic", lambda: sum(slept))
    return slept


def test_half_a_minute_away_is_waited_for_with_rising_pauses(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    def action(_: bool) -> str:
        if sum(clock) < 30.0:
            raise Lost("gone")
        return "back"

    assert Patience("'postgresql://***@host/x'").tried(action) == "back"
    assert 30.0 <= sum(clock) < 36.0
    assert all(pause <= 5.0 for pause in clock)
    assert clock[-1] > clock[0]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert (
        told[0] == "The storage 'postgresql://***@host/x' cannot be reached (gone). It is tried again for 300 seconds."
    )
    assert told[1].startswith("The storage 'postgresql://***@host/x' is back after 3")


def wrapped(error: BaseException) -> StorageInternalError:
    """As Optuna hands a database's error on."""
    try:
        raise StorageInternalError("raised during the commit") from error
    except StorageInternalError as found:
        return found


class Psycopg(Exception):
    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def operational(text: str, sqlstate: str | None = None) -> StorageInternalError:
    return wrapped(OperationalError("select", {}, Psycopg(text, sqlstate)))


def of_sqlite(text: str) -> StorageInternalError:
    import sqlite3

    return wrapped(OperationalError("select", {}, sqlite3.OperationalError(text)))


@pytest.mark.parametrize(
    ("make", "is_passing"),
    [
        (lambda: operational("server closed the connection unexpectedly"), True),
        (lambda: operational("terminating connection", "57P01"), True),
        (lambda: operational("the database system is starting up", "57P03"), True),
        (lambda: operational("deadlock detected", "40P01"), True),
        (lambda: operational("too many clients", "53300"), True),
        (lambda: operational("disk full", "53100"), False),
        (lambda: operational("password authentication failed"), False),
        (lambda: operational('database "x" does not exist'), False),
        (lambda: wrapped(PendingRollbackError("Can't reconnect until invalid transaction is rolled back")), True),
        (lambda: of_sqlite("database is locked"), True),
        (lambda: of_sqlite("database or disk is full"), False),
        (lambda: of_sqlite("attempt to write a readonly database"), False),
        (lambda: TimeoutError(), True),
        (lambda: OSError(28, "No space left on device"), False),
        (lambda: KeyError("x"), False),
    ],
)
def test_what_is_worth_waiting_for(make: Callable[[], Exception], is_passing: bool) -> None:
    assert is_lost(make()) is is_passing


SPACE: dict[str, BaseDistribution] = {
    **{f"x{number}": FloatDistribution(1e-4, 1.0, log=True) for number in range(5)},
    "n": IntDistribution(1, 9),
    "kind": CategoricalDistribution(("a", "b")),
}


class TestParameters:
    @pytest.fixture(params=["a.journal", "sqlite:///a.db"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(tmp_path)
        return str(request.param)

    def test_they_are_what_stock_optuna_reads(self, place: str) -> None:
        study = optuna.create_study(study_name="a", storage=open_storage(place))
        asked = []
        for value in range(3):
            trial = study.ask(SPACE)
            study.tell(trial, float(value))
            asked.append(trial.params)
        stock: Any = JournalStorage(JournalFileBackend(place)) if place.endswith(".journal") else place
        found = optuna.load_study(study_name="a", storage=stock).trials
        assert [own.params for own in found] == asked
        assert all(own.distributions == SPACE for own in found)

    def test_whoever_asks_sees_them(self, place: str) -> None:
        study = optuna.create_study(study_name="a", storage=open_storage(place))
        trial = study.ask()
        value = trial.suggest_float("x", 0.0, 1.0)
        assert study.trials[0].params == {"x": value}
        trial.suggest_float("y", 0.0, 1.0)
        trial.report(1.0, 1)
        other = optuna.load_study(study_name="a", storage=open_storage(place))
        assert set(other.trials[0].params) == {"x", "y"}

    def test_another_kind_of_distribution_is_refused_as_by_optuna(self, place: str) -> None:
        study = optuna.create_study(study_name="a", storage=open_storage(place))
        for _ in range(2):
            study.tell(study.ask(SPACE), 1.0)
        trial = study.ask()
        trial.suggest_int("x0", 1, 3)
        trial.suggest_int("x1", 1, 3)
        with pytest.raises(ValueError, match="distribution"):
            trial.set_user_attr("a", 1)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_transactions_of_a_trial_do_not_grow_with_its_parameters_and_bytes_no_faster(kind: str) -> None:
    few, many = (measure(kind, n, is_ours=True) for n in (10, 100))
    assert many.transactions == few.transactions < 20
    assert many.kilobytes < 10 * few.kilobytes
    assert measure(kind, 100, is_ours=False).transactions > 100


def test_a_database_in_the_storage_is_asked_whether_its_connections_hold() -> None:
    from ww_opt.study.storages import _engine_options

    assert _engine_options("postgresql+psycopg://me@host/x")["pool_pre_ping"]
    assert _engine_options("postgresql+psycopg://me@host/x?connect_timeout=3")["connect_args"]["connect_timeout"] == "3"
    assert "pool_pre_ping" not in _engine_options("sqlite:///a.db")


def test_optuna_wraps_no_database_of_ours_again(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}")
    assert optuna.create_study(storage=storage)._storage is storage
    assert not isinstance(storage, RDBStorage)
