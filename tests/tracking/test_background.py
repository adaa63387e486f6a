from __future__ import annotations

import threading

import pytest

from ww_opt.tracking import background as module
from ww_opt.tracking.background import Background, Breaker


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def background(errors: list[Exception]) -> Background:
    return Background(on_failure=errors.append)


def fail() -> None:
    raise RuntimeError("away")


def test_jobs_run_in_order_in_one_other_thread(background: Background) -> None:
    seen: list[tuple[int, int]] = []
    for i in range(50):
        background.submit(lambda i=i: seen.append((i, threading.get_ident())))  # type: ignore[misc]
    assert background.wait(10)
    assert [i for i, _ in seen] == list(range(50))
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_the_thread_ends_when_there_is_nothing_to_do_and_comes_back(background: Background) -> None:
    threads: list[threading.Thread] = []
    for _ in range(2):
        background.submit(lambda: threads.append(threading.current_thread()))
        assert background.wait(10)
        threads[-1].join(10)
        assert not threads[-1].is_alive()
    assert all(thread.daemon for thread in threads)


def test_submitting_never_waits_and_waiting_has_a_limit(background: Background) -> None:
    release = threading.Event()
    background.submit(lambda: release.wait(10) and None)
    assert not background.wait(0.01)
    release.set()
    assert background.wait(10)


def test_a_job_that_raises_does_not_end_the_thread(background: Background, errors: list[Exception]) -> None:
    background.submit(fail)
    assert background.wait(10)
    assert [str(error) for error in errors] == ["away"]


class Lasting(Exception):
    pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its only element is the time."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def breaker(errors: list[Exception]) -> Breaker:
    def told(error: Exception) -> bool:
        errors.append(error)
        return not isinstance(error, Lasting)

    return Breaker(patience=2, pause=20.0, on_failure=told)


def test_too_many_failures_in_a_row_end_all_attempts_for_a_while(
    breaker: Breaker, errors: list[Exception], clock: list[float]
) -> None:
    assert not breaker.attempt(fail)
    assert breaker.attempt(int), "a success starts the count anew"
    assert not breaker.attempt(fail)
    assert not breaker.is_open
    assert not breaker.attempt(fail)
    assert breaker.is_open
    assert not breaker.attempt(errors.clear), "nothing is attempted"
    assert len(errors) == 3
    clock[0] = 20.0
    assert not breaker.attempt(fail), "once"
    clock[0] = 59.0
    assert breaker.is_open, "twice as long"
    clock[0] = 60.0
    assert breaker.attempt(int)
    assert not breaker.attempt(fail)
    assert not breaker.is_open


def test_an_open_one_may_be_told_to_try_once(breaker: Breaker, errors: list[Exception], clock: list[float]) -> None:
    breaker.attempt(fail)
    breaker.try_again()
    assert not breaker.attempt(fail), "it was not open: its count stays"
    assert breaker.is_open
    breaker.try_again()
    breaker.attempt(fail)
    assert breaker.is_open
    assert len(errors) == 3


def test_what_lasts_is_not_tried_again_by_itself(breaker: Breaker, clock: list[float]) -> None:
    def fail_for_good() -> None:
        raise Lasting

    breaker.attempt(fail_for_good)
    clock[0] = 1e9
    assert breaker.is_open
    breaker.try_again()
    assert breaker.attempt(int)
    assert not breaker.is_open
