"""Ctrl-C and SIGTERM: inside a trial an exception, between trials a note; and an end in any case, soon."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any

import optuna

__all__ = ["STUCK_SECONDS", "Interruptions"]

STUCK_SECONDS = 8.0
"""How long it may take from the signal to the end of the books; then the process is ended whatever it does."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interruptions(AbstractContextManager["Interruptions"]):
    """Ctrl-C and SIGTERM, once, as a KeyboardInterrupt inside a trial; elsewhere ``is_due`` says that there was one.

    What comes after the first is ignored: a terminal and a scheduler may tell the same process twice. A signal that
    was ignored already (``nohup``) still is. In a thread other than the main one, signals stay as they are.

    Args:
        on_stuck: called from another thread where the process is still inside eight seconds after the signal: it
            computes where Python is not asked, or waits for a storage. Python itself runs no handler then.
    """

    def __init__(self, on_stuck: Callable[[], None] | None = None) -> None:
        self.is_due = False
        self._may_raise = False
        self._before: dict[int, Any] = {}
        self._on_stuck = on_stuck
        self._ends = threading.Event()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            if self._on_stuck is not None:
                self._watch(self._on_stuck)
            for number in _NUMBERS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        self._ends.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._stack.close()

    def let_through(self, objective: Callable[[optuna.Trial], float], trial: optuna.Trial) -> float:
        """Run a trial, and raise what comes meanwhile or came before."""
        self._may_raise = True
        try:
            if self.is_due:
                raise KeyboardInterrupt
            return objective(trial)
        finally:
            self._may_raise = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        is_first, self.is_due = not self.is_due, True
        if is_first and self._may_raise:
            raise KeyboardInterrupt

    def _watch(self, on_stuck: Callable[[], None]) -> None:
        """Hear of signals where the main thread does not: the interpreter writes their numbers to a socket at once."""
        heard, told = socket.socketpair()
        told.setblocking(False)
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

        def listen() -> None:
            with heard:
                while numbers := heard.recv(16):
                    if any(number in self._before for number in numbers) and not self._ends.wait(STUCK_SECONDS):
                        on_stuck()

        threading.Thread(target=listen, name="interruptions", daemon=True).start()
        self._stack.callback(told.close)  # ends the thread
        self._stack.callback(signal.set_wakeup_fd, before)
