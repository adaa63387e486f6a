"""One trial in a loop that a framework owns: what ``Trainer`` and Lightning need alike.

The path of the data::

    the user's space, late, looks                  -> Asked
    the framework's steps, ranks, examples         -> Plan
    trial, model, Plan, Asked                      -> Hosted: a Run on rank 0, groups of parameters on every rank
    Plan                                           -> EntryBatches -> the framework's DataLoader
    an optimizer step's loss -> Hosted.step -> Run -> cohorts judge, looks, records, reports, the pruner
                             <- TrialPruned or None: on every rank what rank 0 decided

Records are those of :class:`ww_opt.Run`, so that pruner, sampler, tracking and closing text read them as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
import torch
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Sampler

from ww_opt.search.own_loop import Run
from ww_opt.search.report import rung_steps
from ww_opt.search.space import LayerwiseSpace
from ww_opt.training.cadence import Cadence
from ww_opt.training.cohorts import is_cross_entropy
from ww_opt.training.late_entry import LateExamples
from ww_opt.training.optimizers import build_optimizer

__all__ = ["Asked", "EntryBatches", "Hosted", "Plan", "Team", "is_settled", "steps_of"]

_LATE = ("logits", "shares", "times", "seed", "kind", "class_dim", "ignore_index")
_LOOKS = ("interval_steps", "score", "guard", "first_loss", "look_budget", "in_background")


def is_settled(trial: object) -> bool:
    """Whether a trial brings its settings and asks for no judgement: the pick, to be trained on everything."""
    return isinstance(trial, FixedTrial | FrozenTrial)


@dataclass(frozen=True)
class Asked:
    """What the user asks of each trial.

    Args:
        space: what is searched, per layer; ``None``: nothing here.
        late: whether some training examples join late and judge; a mapping of options of
            :class:`ww_opt.LateExamples`: ``logits``, ``shares``, ``times``, ``seed``, ``kind``, ``class_dim``,
            ``ignore_index``.
        looks: options of :class:`ww_opt.Run`: ``interval_steps``, ``score``, ``guard``, ``first_loss``,
            ``look_budget``, ``in_background``.

    Raises:
        TypeError: an option is of another type, or unknown.
    """

    space: LayerwiseSpace | None = None
    late: bool | Mapping[str, Any] = True
    looks: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.space, LayerwiseSpace | None):
            raise TypeError(f"`space` must be a ww_opt.LayerwiseSpace, but got a {type(self.space).__name__}.")
        if not isinstance(self.late, bool | Mapping):
            raise TypeError(
                f"`late` must be True, False or a mapping of options, but got a {type(self.late).__name__}: write "
                "`late={'shares': (0.05, 0.05, 0.05)}`."
            )
        if not isinstance(self.looks, Mapping):
            raise TypeError(
                f"`looks` must be a mapping of options, but got a {type(self.looks).__name__}: write "
                "`looks={'interval_steps': 50}`."
            )
        for name, known in (("late", _LATE), ("looks", _LOOKS)):
            own = getattr(self, name)
            if isinstance(own, Mapping) and (unknown := sorted(set(own) - set(known))):
                raise TypeError(f"`{name}` takes the options {sorted(known)}, but got {', '.join(unknown)}.")

    @property
    def late_options(self) -> dict[str, Any]:
        """Options of the late examples beside those that the data say."""
        return dict(self.late) if isinstance(self.late, Mapping) else {}


def _alone(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Team:
    """The processes of a run. ``exchange`` gives everybody what rank 0 gave; all of them call it."""

    n: int = 1
    rank: int = 0
    exchange: Callable[[Any], Any] = _alone


@dataclass(frozen=True)
class Plan:
    """How a framework cuts a run into steps and batches.

    Attributes:
        n_steps: optimizer steps of the run.
        epoch_batches: batches that a rank's loader gives an epoch.
        accumulate: batches of a rank whose gradients make up a step.
        team: the processes.
        late: the training examples by number; ``batch_size`` counts those of a step on all ranks. ``None``: no late
            entry.
    """

    n_steps: int
    epoch_batches: int
    accumulate: int = 1
    team: Team = field(default_factory=Team)
    late: LateExamples | None = None

    @property
    def n_parts(self) -> int:
        """Batches, of all ranks, that make up a step."""
        return self.accumulate * self.team.n


def steps_of(n_batches: int | None, accumulate: int, n_epochs: float | None, max_steps: int) -> int:
    """Return the optimizer steps of a run.

    Args:
        n_batches: of a rank and an epoch; ``None``: the loader does not know.
        accumulate: batches that make up a step; the last step of an epoch may have fewer.
        n_epochs: ``None``: as many as it takes.
        max_steps: 0 or less: as many as the epochs have.

    Raises:
        ValueError: the length of the run cannot be known.
    """
    in_epochs = None if n_batches is None or n_epochs is None else math.ceil(-(-n_batches // accumulate) * n_epochs)
    known = [own for own in (in_epochs, max_steps if max_steps > 0 else None) if own is not None]
    if not known or min(known) < 1:
        raise ValueError(
            "A trial needs the length of its run, but there is neither a loader that has one nor `max_steps`: give "
            "`max_steps`."
        )
    return min(known)


class EntryBatches(Sampler[list[int]]):
    """Example numbers of a rank's batches, epoch by epoch, in a run in which cohorts join late.

    The order has a stream of its own, so that ranks agree, and trials do whatever their models draw. An epoch begins
    where the run stands, so that what a framework fetched in vain, or broke off, is lost to nobody.

    Args:
        plan: of a run with late entry; asked for when an epoch begins.
        done: optimizer steps done so far.
        seed: of the order.
    """

    def __init__(self, plan: Callable[[], Plan], done: Callable[[], int], seed: int = 0) -> None:
        self._plan, self._done, self._seed = plan, done, seed
        self._stream: Iterator[torch.Tensor] | None = None
        self._at = 0

    def __len__(self) -> int:
        return self._plan().epoch_batches

    def __iter__(self) -> Iterator[list[int]]:
        plan, done = self._plan(), self._done()
        if self._stream is None or self._at != done:
            generator = torch.Generator().manual_seed(self._seed)
            assert plan.late is not None
            self._stream = plan.late.over(plan.n_steps).batches(generator)
            for _ in range(done):
                next(self._stream, None)
            self._at = done
        for _ in range(plan.epoch_batches // plan.accumulate):
            batch = next(self._stream, None)
            if batch is None:
                return
            self._at += 1
            for part in torch.tensor_split(batch, plan.n_parts)[plan.team.rank :: plan.team.n]:
                yield part.tolist()


@dataclass
class Hosted:
    """A trial in somebody else's loop. Rank 0 looks and decides; the others take its settings and its word.

    Args:
        trial: the running trial; only rank 0's counts. One whose settings are fixed (:func:`is_settled`) is trained
            with them and not judged.
        model: as it was built, on its device, without wrappers; set in place as :class:`ww_opt.Run` does.
        plan: of the run.
        asked: what the user asks.
        loss: ``loss(model, batch)``, a scalar, where late examples have no ``logits``.

    Attributes:
        run: the :class:`ww_opt.Run`, on rank 0, of a trial that is judged.
        groups: parameter groups.

    Raises:
        TypeError, ValueError: as :class:`ww_opt.Run`.
    """

    trial: BaseTrial | None
    model: nn.Module
    plan: Plan
    asked: Asked
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None
    run: Run | None = field(init=False, default=None)
    groups: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        trial, team, space = self.trial, self.plan.team, self.asked.space
        if team.rank == 0 and not is_settled(trial):
            self.run = Run(
                trial,  # type: ignore[arg-type]  # Run says what it is not
                self.model,
                n_steps=self.plan.n_steps,
                space=space,
                late=self.plan.late,
                loss=self.loss,
                **self.asked.looks,
            )
            self.groups = self.run.groups
        elif team.rank == 0:
            self.groups = self._configured(trial)
        rungs = () if trial is None or is_settled(trial) else rung_steps(trial, self.plan.n_steps)  # type: ignore[arg-type]
        told = (dict(trial.params), is_settled(trial), rungs) if team.rank == 0 and trial is not None else None
        said = team.exchange(told)
        if team.rank > 0:
            self.groups = self._configured(FixedTrial(said[0]))
        joining = (*said[2], *(() if self.plan.late is None else self.plan.late.over(self.plan.n_steps).steps))
        interval, budget = self.asked.looks.get("interval_steps"), self.asked.looks.get("look_budget", 0.05)
        # the steps at which rank 0 may decide; all know them
        is_asked = team.n > 1 and not said[1]
        self._points = frozenset(Cadence(self.plan.n_steps, interval, budget, joining).steps if is_asked else ())
        self._done = 0

    @property
    def value(self) -> float:
        """What the trial is worth; NaN where this process does not judge."""
        return self.run.value() if self.run is not None else math.nan

    def optimizer(self, build: Callable[..., Optimizer]) -> Optimizer:
        """Build the optimizer on the groups; see :meth:`ww_opt.Run.optimizer`."""
        return self.run.optimizer(build) if self.run is not None else build_optimizer(build, self.groups)

    def step(self, loss: torch.Tensor | float, graph: torch.Tensor | None = None) -> optuna.TrialPruned | None:
        """Count an optimizer step; look, judge and report where it is time.

        Args:
            loss: the step's training loss, of this rank.
            graph: at the first step, a loss with its graph: tells whether it is a cross-entropy.

        Returns:
            What ends the trial, on every rank, where the pruner says so.
        """
        ended: optuna.TrialPruned | None = None
        self._done += 1
        if self.run is not None:
            if self._done == 1 and graph is not None:
                self.run.in_nats = is_cross_entropy(graph)
            try:
                self.run.step(loss)
            except optuna.TrialPruned as error:
                ended = error
        return self.plan.team.exchange(ended) if self._done in self._points else ended

    def _configured(self, trial: BaseTrial | None) -> list[dict[str, Any]]:
        if self.asked.space is not None and trial is not None:
            return self.asked.space.configure(trial, self.model)
        return [{"params": [own for own in self.model.named_parameters() if own[1].requires_grad]}]
