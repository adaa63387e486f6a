"""Jobs in one background thread, for work that must neither hold up nor end what asked for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["Background"]


class Background:
    """A queue of jobs and one daemon thread, which lives while there is something to do.

    Inside a job, :meth:`attempt` is a circuit breaker: after ``patience`` failures in a row nothing is attempted any
    more until :meth:`try_again`. An interpreter that exits does not wait for the thread: :meth:`wait` first.

    Args:
        patience: failures in a row, at least 1.
        on_failure: told of every exception, in the thread; must not raise.
    """

    def __init__(self, patience: int, on_failure: Callable[[Exception], None]) -> None:
        self._patience = patience
        self._on_failure = on_failure
        self._failures = 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._is_working = False

    def submit(self, job: Callable[[], None]) -> None:
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

    def attempt(self, action: Callable[[], None]) -> None:
        """Run an action that may fail, unless too many failed in a row before it."""
        if self._failures >= self._patience:
            return
        try:
            action()
            self._failures = 0
        except Exception as error:  # whatever a server, a driver or a file system raises
            self._failures += 1
            self._on_failure(error)

    def try_again(self) -> None:
        """Allow one more attempt where too many failed."""
        self._failures = min(self._failures, self._patience - 1)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._is_working = False
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception as error:  # outside of `attempt` too, the thread has to live
                self._on_failure(error)
