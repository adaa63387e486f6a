"""A trial in a training loop that is not ours: late entry, settings per layer, dropout and reports in one object."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal

import optuna
import torch
from torch import nn
from torch.optim import Optimizer

from ww_opt.search import records
from ww_opt.search.looks import Looks, Moment, cadence_of
from ww_opt.search.report import check_trial, report_late, wants_ahead
from ww_opt.search.space import LayerwiseSpace
from ww_opt.spectral.scores import named_score
from ww_opt.training.cadence import Cadence
from ww_opt.training.cohorts import is_cross_entropy, judge_cohort, look_at_first_batch
from ww_opt.training.init_scale import as_built
from ww_opt.training.judging import Judgement
from ww_opt.training.late_entry import LateEntry, LateExamples
from ww_opt.training.modes import evaluating
from ww_opt.training.optimizers import build_optimizer
from ww_opt.training.randomness import undisturbed
from ww_opt.training.task import placed

__all__ = ["Run"]

_FIRST_BATCHES = 8  # over which the loss before training is averaged, as in `train`
_UNSHARPENED = 40  # place of the factor 1 among a judgement's losses


@dataclass
class Run:
    """One trial of a loop of your own, or of a framework's.

    Four calls make the loop a trial::

        run = ww_opt.Run(trial, model, n_steps=600, space=space, late=late)
        optimizer = run.optimizer(torch.optim.AdamW)
        for x, y in run.batches():
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        return run.value()

    :meth:`step` does the rest: it lets those who are about to join judge the model, looks and reports every
    ``interval_steps`` steps and at the end, and raises ``optuna.TrialPruned``. Looking changes nothing: modes of the
    model and random streams are put back. Seed the streams before the model is built, so that trials differ in their
    settings alone. Where a framework owns the loop, give its optimizer ``groups``, its DataLoader
    ``batch_sampler=run.entry``, and call :meth:`step` after each optimizer step.

    Args:
        trial: the running trial.
        model: as it was built, on its device; ``space`` sets its dropout and the scale of its weights, in place.
        n_steps: optimizer steps of the run.
        space: what is searched, per layer. ``None``: nothing is suggested here.
        late: the training examples by number, of which some join late and judge the model. ``None``: no late entry.
        interval_steps: steps between looks. ``None``: as ``look_budget`` allows, see
            :class:`ww_opt.SpectralObjective`; what the loop does between steps counts as training.
        score: a key of ``SCORES``, or ``"alpha:3.5"``, the alpha that it aims at.
        guard: as in :class:`ww_opt.SpectralObjective`; by default ``"late"`` with ``late``, else ``False``.
        first_loss: training loss before the first step. By default it is taken: with ``late`` in eval mode over eight
            batches and of the weights before ``init_scale``, else from the first step.
        loss: ``loss(model, batch)``, a scalar; only needed where ``late`` has no ``logits``.
        look_budget: share of the training time that looks may take where ``interval_steps`` is ``None``.
        in_background: as in :class:`ww_opt.SpectralObjective`.
        in_nats: whether the loss is a cross-entropy. ``None``: told from the graph of the first loss.

    Attributes:
        groups: parameter groups for an optimizer; without a space, one of all trainable parameters.
        entry: the index batches of the run; ``None`` without ``late``.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a count is out of range, the score is unknown, the guard asks for what is missing, or as
            :meth:`ww_opt.LayerwiseSpace.configure`.
    """

    trial: optuna.Trial
    model: nn.Module
    _: KW_ONLY
    n_steps: int
    space: LayerwiseSpace | None = None
    late: LateExamples | None = None
    interval_steps: int | None = None
    score: str = "default"
    guard: bool | Literal["late"] | None = None
    first_loss: float | None = None
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None
    look_budget: float = 0.05
    in_background: bool = False
    in_nats: bool | None = None
    groups: list[dict[str, Any]] = field(init=False, repr=False)
    entry: LateEntry | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        self._device = next((own.device for own in self.model.parameters()), torch.device("cpu"))
        self._optimizer: Optimizer | None = None
        self._late: list[Judgement] = []
        self._done, self._is_due = 0, False
        self._running, self._n_running = torch.zeros((), device=self._device), 0
        records.begin(self.trial)
        guard = self.guard if self.guard is not None else "late" if self.late is not None else False
        records.write(self.trial, guard=guard)
        if self.space is not None:
            self.groups = self.space.configure(self.trial, self.model)
        else:
            self.groups = [{"params": [own for own in self.model.named_parameters() if own[1].requires_grad]}]
        if self.late is not None:
            self.entry = self.late.over(self.n_steps)
            first = self.entry.present[: self.late.batch_size]
            with undisturbed(self._device), evaluating(self.model), as_built(self.model):
                self.late = look_at_first_batch(self.model, self.late, placed(self.late.take(first), self._device))
            if self.first_loss is None:
                some = self.entry.present[: _FIRST_BATCHES * self.late.batch_size]
                with as_built(self.model):
                    losses = self._judged(some, 0).losses
                self.first_loss = losses[_UNSHARPENED if len(losses) > 1 else 0]
        joining = () if self.entry is None else self.entry.steps
        self._cadence = cadence_of(self.trial, self.n_steps, self.interval_steps, self.look_budget, joining)
        chosen = named_score(self.score)
        score = chosen.guarded() if guard else chosen
        self._looks = Looks(self.trial, self._cadence, score, in_background=self.in_background)
        self._may_look = frozenset(self._cadence.steps)
        self._started = time.perf_counter()
        self._look(() if self.entry is None else self.entry.joining(0))

    def optimizer(self, build: Callable[..., Optimizer]) -> Optimizer:
        """Build the optimizer on ``groups``, with every setting of the space translated or refused.

        Args:
            build: a class, or ``functools.partial`` of one. One with a ``train`` and an ``eval`` mode of its own, as
                schedule-free ones have, is put into eval mode for looks; its train mode is the loop's to set.

        Raises:
            TypeError: what is built is no optimizer.
            ValueError: a setting acts on nothing in it.
        """
        self._optimizer = build_optimizer(build, self.groups)
        records.write(self.trial, optimizer=type(self._optimizer).__name__)
        return self._optimizer

    def batches(self, source: Iterable[Any] | Callable[[], Iterable[Any]] | None = None) -> Iterator[Any]:
        """Yield the batches of ``n_steps`` steps, on the model's device, epoch after epoch.

        Args:
            source: a DataLoader, or a function that returns the batches of an epoch. ``None``: those of ``late``.

        Raises:
            RuntimeError: :meth:`step` was not called since the batch before.
            ValueError: there is no source or two, or an epoch is empty.
        """
        if (source is None) == (self.late is None):
            raise ValueError(
                "Batches come from `late` or from a source, but got "
                + ("neither: `run.batches(loader)`." if source is None else "both: leave the source out.")
            )
        late = self.late
        items = map(late.take, iter(self.entry or ())) if late is not None else _endless(source)
        while self._done < self.n_steps:
            if self._is_due:
                raise RuntimeError(
                    "`run.step(loss)` must follow each optimizer step, but another batch is asked for without: call it "
                    "at the end of the loop's body. Where several batches make up a step, cut them out of one."
                )
            self._is_due = True
            yield placed(next(items), self._device)

    def step(self, loss: torch.Tensor | float) -> None:
        """Count an optimizer step; look and report where it is time, and let judge who is about to join.

        Args:
            loss: the step's training loss, a scalar.

        Raises:
            optuna.TrialPruned: see :func:`ww_opt.report`.
            TypeError: the loss is no scalar.
            ValueError: all ``n_steps`` were done already.
        """
        if self._done >= self.n_steps:
            raise ValueError(
                f"A run has n_steps={self.n_steps} steps, but one more was done: give it as many as there are."
            )
        own = torch.as_tensor(loss).detach()
        if own.numel() != 1:
            raise TypeError(f"`loss` must be a scalar, but got shape {tuple(own.shape)}: take the batch's mean.")
        self._done, self._is_due = self._done + 1, False
        self._running, self._n_running = self._running + own.reshape(()).to(self._running), self._n_running + 1
        if self._done == 1:
            if self.in_nats is None and isinstance(loss, torch.Tensor):
                self.in_nats = is_cross_entropy(loss)
            if self.in_nats is not None:
                records.write(self.trial, in_nats=self.in_nats)
            if self.first_loss is None and math.isfinite(float(own)):
                self.first_loss = float(own)
        joining = self.entry.joining(self._done) if self.entry is not None else ()
        if joining or self._done in self._may_look:
            self._look(joining)

    def value(self) -> float:
        """Return what the trial is worth: the last reported value, for the objective to return.

        Raises:
            ValueError: the run is not at its end.
        """
        if self._done < self.n_steps:
            raise ValueError(
                f"A run must come to its end before it is worth anything, but {self._done} of {self.n_steps} steps "
                "were done: call `run.step(loss)` after each, or give `Run` as many `n_steps` as the loop has."
            )
        return self._looks.value

    def _look(self, joining: Sequence[torch.Tensor]) -> None:
        """Hear what was found beside the training, let judge who joins, and look where it is time."""
        training = time.perf_counter() - self._started - self._cadence.looking
        counted = partial(self._looks.counted, training=training, step=self._done)
        if self._cadence.is_waited_for:
            with counted():
                self._looks.catch_up()
        for cohort in joining:
            self._late.append(self._judged(cohort, self._done))
        if joining and self.guard in (None, "late"):
            report_late(self.trial, self._late)
        # between looks the loss alone is asked whether training has diverged
        if self._done in self._may_look and (
            self._cadence.is_look(self._done) or not math.isfinite(float(self._running))
        ):
            if self.entry is not None and self.guard in (None, "late") and self._wants_ahead():
                waiting = self.entry.waiting(self._done)
                report_late(self.trial, [], ahead=self._judged(waiting, self._done) if len(waiting) else None)
            moment = Moment(self._done, float(self._running) / self._n_running, self.first_loss)
            self._running, self._n_running = torch.zeros_like(self._running), 0
            with counted(), undisturbed(self._device), evaluating(self.model, self._optimizer):
                self._looks.look(self.model, moment)

    def _wants_ahead(self) -> bool:
        return math.isfinite(float(self._running)) and wants_ahead(self.trial, self._done, self.n_steps)

    def _judged(self, index: torch.Tensor, step: int) -> Judgement:
        late = self.late
        assert late is not None
        with undisturbed(self._device), evaluating(self.model, self._optimizer), torch.no_grad():
            return judge_cohort(
                self.model,
                late,
                index,
                step,
                lambda part: placed(late.take(part), self._device),
                lambda batch: self.loss(self.model, batch) if self.loss is not None else torch.tensor(math.nan),
            )


def _endless(source: Any) -> Iterator[Any]:
    while True:
        n_batches = 0
        for batch in source() if callable(source) else source:
            n_batches += 1
            yield batch
        if n_batches == 0:
            raise ValueError("A run needs at least one training batch an epoch, but its source gave none.")


def _check(run: Run) -> None:
    check_trial(run.trial)
    kinds = {"model": nn.Module, "space": LayerwiseSpace | None, "late": LateExamples | None}
    for name, kind in kinds.items():
        if not isinstance(getattr(run, name), kind):
            asked = {"model": "a torch.nn.Module", "space": "a ww_opt.LayerwiseSpace", "late": "a ww_opt.LateExamples"}
            raise TypeError(f"`{name}` must be {asked[name]}, but got a {type(getattr(run, name)).__name__}.")
    for name in ("n_steps", "interval_steps"):
        value = getattr(run, name)
        if (not isinstance(value, int) or isinstance(value, bool)) and not (name == "interval_steps" and value is None):
            raise TypeError(f"`{name}` must be a whole number, but got {name}={value!r}.")
    Cadence(run.n_steps, run.interval_steps, run.look_budget)
    named_score(run.score)
    if run.guard not in (None, False, True, "late"):
        raise ValueError(f"`guard` must be False, True or 'late', but got {run.guard!r}.")
    if run.guard == "late" and run.late is None:
        raise ValueError("`guard='late'` needs the examples by number: give `late=LateExamples(...)`, or `guard=True`.")
    if run.late is not None and run.late.logits is None and run.loss is None:
        raise ValueError("Late examples without `logits` are judged by the loss, but got none: give `loss=`.")
    is_scaled = run.space is not None and run.space.init_scale not in (None, {})
    if run.guard is True and run.late is None and run.first_loss is None and is_scaled:
        raise ValueError(
            "`guard=True` counts from the loss before training, but with `init_scale` in the space the first step's is "
            "that of scaled weights: give `first_loss=`, the loss of a batch before `Run` is made, or `late=`."
        )
    if run.first_loss is not None and not math.isfinite(run.first_loss):
        raise ValueError(f"`first_loss` must be finite, but got first_loss={run.first_loss}.")
