"""Jobs in one background thread, for work that must neither hold up nor end what asked for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Background", "Breaker"]

_LONGEST_PAUSE = 300.0


class Background:
    """A queue of jobs and one daemon thread, which lives while there is something to do.

    An interpreter that exits does not wait for the thread: :meth:`wait` first.

    Args:
        on_failure: told of an exception that a job let through, in the thread; must not raise.
    """

    def __init__(self, on_failure: Callable[[Exception], object]) -> None:
        self._on_failure = on_failure
        self._jobs: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()
        self._is_working = False

    def submit(self, job: Callable[[], object]) -> None:
        """Queue a job and return at once; jobs run in the order of their submission."""
        with self._lock:
            self._jobs.append(job)
            if not self._is_working:
                self._is_working = True
                threading.Thread(target=self._work, name="ww_opt", daemon=True).start()

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for all jobs submitted so far; tell whether they are done."""
        done = threading.Event()
        self.submit(done.set)
        return done.wait(timeout)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._is_working = False
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception as error:  # the thread has to live
                self._on_failure(error)


class Breaker:
    """A circuit breaker: after too many failures in a row nothing is attempted for a while, then once.

    Each further failure doubles the pause, up to five minutes; a success closes the circuit.

    Args:
        patience: failures in a row, at least 1.
        pause: the first pause, in seconds.
        on_failure: told of every exception; returns whether it may pass. One that lasts until somebody mends it opens
            the circuit at once, and for good.
    """

    def __init__(self, patience: int, pause: float, on_failure: Callable[[Exception], bool]) -> None:
        self._patience = patience
        self._first_pause = pause
        self._on_failure = on_failure
        self._failures, self._pause, self._open_until = 0, pause, 0.0

    @property
    def is_open(self) -> bool:
        """Whether nothing is attempted just now."""
        return time.monotonic() < self._open_until

    def try_again(self) -> None:
        """Where nothing is attempted, allow one attempt now."""
        if self.is_open:
            self._open_until, self._failures = 0.0, self._patience - 1

    def attempt(self, action: Callable[[], object]) -> bool:
        """Run an action that may fail, unless the circuit is open; tell whether it was done."""
        if self.is_open:
            return False
        try:
            action()
        except Exception as error:  # whatever a server, a driver or a file system raises
            self._failures += 1
            if not self._on_failure(error):
                self._open_until = float("inf")
            elif self._failures >= self._patience:
                self._open_until = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return False
        self._failures, self._pause, self._open_until = 0, self._first_pause, 0.0
        return True
