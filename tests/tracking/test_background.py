from __future__ import annotations

import threading

import pytest

from ww_opt.tracking.background import Background


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def background(errors: list[Exception]) -> Background:
    return Background(patience=2, on_failure=errors.append)


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


def test_too_many_failures_in_a_row_end_all_attempts_until_told_to_try_again(
    background: Background, errors: list[Exception]
) -> None:
    done: list[str] = []
    background.attempt(fail)
    background.attempt(lambda: done.append("a success starts the count anew"))
    background.attempt(fail)
    background.attempt(fail)
    background.attempt(lambda: done.append("never"))
    assert len(errors) == 3
    background.try_again()
    background.attempt(fail)
    background.attempt(lambda: done.append("never"))
    background.try_again()
    background.attempt(lambda: done.append("again"))
    assert done == ["a success starts the count anew", "again"]


def test_a_job_that_raises_does_not_end_the_thread(background: Background, errors: list[Exception]) -> None:
    background.submit(fail)
    assert background.wait(10)
    assert [str(error) for error in errors] == ["away"]
