"""Ctrl-C and SIGTERM: inside a trial an exception, between trials a note."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any

import optuna

__all__ = ["Interruptions"]


class Interruptions(AbstractContextManager["Interruptions"]):
    """Ctrl-C and SIGTERM, once, as a KeyboardInterrupt inside a trial; elsewhere ``is_due`` says that there was one.

    What comes after the first is ignored: a terminal and a scheduler may tell the same process twice. A signal that
    was ignored already (``nohup``) still is. In a thread other than the main one, signals stay as they are.
    """

    def __init__(self) -> None:
        self.is_due = False
        self._may_raise = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
