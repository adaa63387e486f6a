"""Redis and the gRPC proxy carry a study as a database does; skipped where their drivers are not installed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests import tiny
from ww_opt.study.remote import open_remote, refusal_of_proxy
from ww_opt.study.shared_storage import stamps
from ww_opt.study.stale import requeue_stale
from ww_opt.study.storages import StorageError, open_behind_proxy, open_storage
from ww_opt.study.study import open_study, run

STUDY = replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, n_steps=2, interval_steps=2), n_trials=2)


@pytest.fixture
def redis_url(monkeypatch: pytest.MonkeyPatch) -> str:
    fakeredis = pytest.importorskip("fakeredis")
    redis = pytest.importorskip("redis")
    server = fakeredis.FakeServer()

    def from_url(url: str, **_: Any) -> Any:
        assert "socket_timeout=" in url, "a server that does not answer would be waited for without end"
        return fakeredis.FakeRedis(server=server)

    monkeypatch.setattr(redis.Redis, "from_url", from_url)
    return "redis://me:secret@localhost:6379/0"


@pytest.fixture
def grpc_url(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("grpc")
    from optuna.storages._grpc.server import make_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    storage = open_behind_proxy(f"sqlite:///{tmp_path / 'a.db'}")
    server = make_server(storage, "127.0.0.1", port, ThreadPoolExecutor(4))
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(params=["redis_url", "grpc_url"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_a_study_from_beginning_to_end(url: str, tmp_path: Path) -> None:
    host = open_study(STUDY, url)
    left = host.ask()
    assert left.number == 0
    assert len(stamps(host.trials[0])) == 1, "the stamp is the worker's, not that of what stands between"
    host._storage.running = None  # type: ignore[attr-defined]
    assert requeue_stale(host) == [0]
    run(STUDY, host, tmp_path / "kept")
    assert [trial.state for trial in open_study(STUDY, url).trials] == [TrialState.COMPLETE] * 2


def test_workers_in_threads_get_each_queued_trial_once(redis_url: str) -> None:
    """Through the proxy they do not where SQLite stands behind it: hence it is refused there."""
    url = redis_url
    study = optuna.create_study(storage=open_storage(url), study_name="a")
    for number in range(12):
        study.enqueue_trial({"x": number / 12})
    got: list[int] = []

    def work() -> None:
        own = optuna.load_study(storage=open_storage(url), study_name="a")
        for _ in range(3):
            trial = own.ask()
            trial.suggest_float("x", 0.0, 1.0)
            got.append(trial.number)
            own.tell(trial, 1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(12))


def test_no_pickle_is_read_from_redis(redis_url: str) -> None:
    storage: Any = open_remote(redis_url)
    storage._backend._redis.set(":snapshot", b"cos\nsystem\n(S'false'\ntR.")
    storage._backend.save_snapshot(b"x")
    assert storage._backend.load_snapshot() is None
    assert storage._backend._redis.get(":snapshot") != b"x"
    open_remote(redis_url)


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis")
    with pytest.raises(StorageError, match=r"redis://\*\*\*@127\.0\.0\.1:1.*check host and port"):
        open_storage("redis://me:secret@127.0.0.1:1")
    pytest.importorskip("grpc")
    monkeypatch.setattr("ww_opt.study.remote._SECONDS", 0.2)
    with pytest.raises(StorageError, match=r"grpc://127\.0\.0\.1:1.*check host and port"):
        open_storage("grpc://127.0.0.1:1")


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(storage: str) -> None:
        raise ImportError("No module named 'redis'.")

    monkeypatch.setattr("ww_opt.study.storages.open_remote", missing)
    with pytest.raises(StorageError, match=r"needs the database's driver.*ww_opt\[dist\]"):
        open_storage("redis://localhost")


@pytest.mark.parametrize("storage", ["postgresql://me@host/x", "mysql+pymysql://me@host/x"])
def test_the_proxy_carries_databases(storage: str) -> None:
    assert refusal_of_proxy(storage) == ""
