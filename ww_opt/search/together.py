"""One trial on several processes (DistributedDataParallel): rank 0 asks Optuna and judges, and all do as it hears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import optuna
import torch
from torch import distributed

__all__ = ["RankZeroFailed", "Together"]

T = TypeVar("T")
_GOES_ON, _ENDS = 0, 1


class RankZeroFailed(RuntimeError):
    """Rank 0 raised, and this rank ends with it; the traceback is rank 0's own."""


class Together:
    """The processes that train one trial together.

    Rank 0 alone has the trial, and :class:`ww_opt.Run`: it suggests, diagnoses and decides. What it says, all ranks
    get; what it raises, all ranks raise, so that none waits for one that has left::

        ranks = ww_opt.Together()
        params = ranks.agree(lambda: dict(lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True)))
        model = DistributedDataParallel(build_model())
        optimizer = torch.optim.AdamW(model.parameters(), lr=params["lr"])
        run = ranks.agree_on_zero(lambda: ww_opt.Run(trial, model.module, n_steps=600, guard=True))
        for batch in my_share_of_the_batches:
            loss = ...
            ranks.step(run, loss)      # rank 0 counts, looks and reports; where it prunes, all ranks stop here
        value = ranks.agree(lambda: run.value())

    Each of the calls is a collective: all ranks make them in the same order. A rank other than 0 that raises is not
    heard of by the others; ``torchrun`` ends them, or the time-out of their next collective.

    Args:
        group: as ``torch.distributed`` has them; ``None``: all processes.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        if not distributed.is_available() or not distributed.is_initialized():
            raise RuntimeError(
                "`Together` are the processes of `torch.distributed`, but that is not initialised: call "
                "`torch.distributed.init_process_group` first, and start with `torchrun`."
            )
        self._group = group
        self._source = distributed.get_global_rank(group, 0) if group is not None else 0
        self.rank = distributed.get_rank(group)
        self.n = distributed.get_world_size(group)

    @property
    def is_zero(self) -> bool:
        """Whether this is the rank that asks Optuna."""
        return self.rank == 0

    def agree(self, action: Callable[[], T]) -> T:
        """Do it on rank 0, and return on all ranks what it returned there; it must be picklable.

        Raises:
            optuna.TrialPruned: rank 0 raised that.
            KeyboardInterrupt: rank 0 was interrupted.
            RankZeroFailed: rank 0 raised something else; there it is raised itself.
        """
        said: list[Any] = [None, None]
        error: BaseException | None = None
        if self.is_zero:
            try:
                said[0] = action()
            except BaseException as raised:
                error = raised
                said[1] = (type(raised).__name__, str(raised))
        distributed.broadcast_object_list(said, src=self._source, group=self._group)
        if error is not None:
            raise error
        if said[1] is not None:
            raise _as_here(*said[1])
        found: T = said[0]
        return found

    def agree_on_zero(self, action: Callable[[], T]) -> T | None:
        """Do it on rank 0 and keep there what it returns; other ranks get ``None``, and what rank 0 raises."""
        kept: list[T] = []
        self.agree(lambda: kept.append(action()))
        return kept[0] if kept else None

    def step(self, run: Any, loss: torch.Tensor | float) -> None:
        """Count an optimizer step on rank 0, :meth:`ww_opt.Run.step`; where that raises, all ranks raise.

        Args:
            run: what :meth:`agree_on_zero` returned.
            loss: rank 0's own training loss; those of other ranks are not read.
        """
        error: BaseException | None = None
        if self.is_zero:
            try:
                run.step(loss)
            except BaseException as raised:
                error = raised
        # a byte a step, and words only where it ends
        on_cuda = distributed.get_backend(self._group) == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
        ends = torch.tensor([_GOES_ON if error is None else _ENDS], dtype=torch.uint8, device=device)
        distributed.broadcast(ends, src=self._source, group=self._group)
        if int(ends) == _ENDS:
            self.agree(lambda: _raise(error))


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _as_here(kind: str, text: str) -> BaseException:
    if kind == "TrialPruned":
        return optuna.TrialPruned(text)
    if kind == "KeyboardInterrupt":
        return KeyboardInterrupt()
    return RankZeroFailed(f"rank 0 raised {kind}: {text}")
