"""The line that moves while a study runs."""

from __future__ import annotations

import io
import shutil
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

from ww_opt.search.ranking import best, outcome

if TYPE_CHECKING:
    import optuna

__all__ = ["Progress"]

_PROGRESS_WIDTH = 110


class Progress(AbstractContextManager["Progress"]):
    """An observer that draws one line: trial, score, best score, pruned so far, time left.

    Where stderr is no terminal, each trial is a line of its own.
    """

    def __init__(self, name: str, n_trials: int, *, n_done: int = 0, n_pruned: int = 0) -> None:
        from tqdm import tqdm

        self._on_terminal = sys.stderr.isatty()
        self._n_pruned = n_pruned
        bar = " |{bar}| " if self._on_terminal else ", "
        self._bar = tqdm(
            total=max(n_trials, n_done),
            initial=n_done,
            desc=name,
            bar_format="{desc} {n_fmt}/{total_fmt}" + bar + "{remaining} left{postfix}",
            ncols=min(shutil.get_terminal_size((80, 24)).columns, _PROGRESS_WIDTH) if self._on_terminal else None,
            file=sys.stderr if self._on_terminal else io.StringIO(),
        )

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, host: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Move on by one trial."""
        ended = outcome(trial)
        self._n_pruned += ended == "pruned"
        found = best(host)
        leader = f"{found.values[0]:.3f} (trial {found.number})" if found is not None else "-"
        value = f"{trial.values[0]:.3f}" if ended == "completed" else ended
        words = f"trial {trial.number} {value}, best {leader}, pruned {self._n_pruned}"
        self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(ended != "interrupted")  # that one is done again
        if not self._on_terminal:
            click.echo(str(self._bar), err=True)
