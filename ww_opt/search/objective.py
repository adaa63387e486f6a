"""Suggest, train, diagnose, score, report: one trial."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

import optuna
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from ww_opt.search import records
from ww_opt.search.looks import Looks, Moment, cadence_of
from ww_opt.search.report import check_trial, directions, pruned, report_late, wants_ahead
from ww_opt.search.space import LayerwiseSpace
from ww_opt.search.starting import origin_of
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.scores import Direction, named_score
from ww_opt.training.cadence import CADENCES, Cadence
from ww_opt.training.freezing import FreezeSchedule
from ww_opt.training.layerwise import LayerSettings, labelled, parameter_groups
from ww_opt.training.loop import entry_of
from ww_opt.training.randomness import seeded, undisturbed
from ww_opt.training.run import Checkpoint, first_batch, loss_before, train
from ww_opt.training.task import Task

__all__ = ["SpectralObjective"]

_LOG = logging.getLogger(__name__)
_TURN = threading.RLock()
_TRAINED: Any = WeakIdKeyDictionary()  # parameters that some trial of this process has trained


@dataclass(frozen=True)
class SpectralObjective:
    """An Optuna objective without a test set: the value is the spectral score of the trained model.

    Args:
        task: what is trained.
        space: what is searched, per layer.
        n_steps: optimizer steps of a trial.
        interval_steps: steps between looks. Each look diagnoses the model, remembers the rows, reports the score and
            asks the pruner. ``None``: 12, 8, 4 or 2 looks a run, whichever ``look_budget`` allows, and always where a
            cohort joins or :class:`ww_opt.SpectralPruner` compares. The first trial that comes to its end measures
            that, and its study keeps it: on a machine near a boundary another study with the same seeds may look more
            or less often. Weights and values are the same then; another pruner may act at another look.
        score: a key of ``SCORES``, or ``"alpha:3.5"``, the alpha that it aims at.
        guard: ``True``: add the training loss, see :func:`ww_opt.spectral.scores.guard`. ``"late"``: let a few training
            examples join late, and guard by what they say just before (:mod:`ww_opt.training.late_entry`); until then
            by the training loss. Needs ``task.late_entry``.
        seed: of the global streams of torch, numpy and ``random``, hence of the initial weights and the order of the
            data, the same for every trial, so that trials differ in their settings alone. The caller's streams are
            given back. Generators of your own (``torch.Generator``, ``numpy.random.default_rng``) go on from trial to
            trial unless ``build_model`` or ``batches`` makes them anew. Trials in threads of one process take turns.
        on_trained: called with the trial and the model of every trial that ran to its end.
        look_budget: share of the training time that looks may take where ``interval_steps`` is ``None``, in (0, 1].
            Those at half of the run, at its end and where somebody decides are taken even where they take more.
        in_background: diagnose a snapshot of the weights in a thread beside the training. Looks then answer at the next
            check points, with the same values, records and decisions; what is pruned has trained up to
            there. Where training leaves no core idle nothing is gained.
        freeze: freeze layers from the input on once they stand still (:class:`ww_opt.FreezeSchedule`); the record
            ``frozen`` says when and why. It takes three looks at least, so give ``interval_steps``, a twelfth of the
            run. Values are not those of trials that freeze nothing. Not with ``in_background``.
    """

    task: Task
    space: LayerwiseSpace
    n_steps: int
    interval_steps: int | None = None
    score: str = "default"
    guard: bool | Literal["late"] = False
    seed: int = 0
    on_trained: Callable[[optuna.Trial, nn.Module], None] | None = None
    look_budget: float = 0.05
    in_background: bool = False
    freeze: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("task", Task), ("space", LayerwiseSpace)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"`{name}` must be a ww_opt.{kind.__name__}, but got a {type(getattr(self, name)).__name__}."
                )
        for name in ("n_steps", "interval_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) and not (name == "interval_steps" and value is None):
                raise TypeError(f"`{name}` must be a whole number, but got {name}={value!r}.")
        named_score(self.score)
        if self.guard not in (False, True, "late"):
            raise ValueError(f"`guard` must be False, True or 'late', but got {self.guard!r}.")
        if self.guard == "late" and self.task.late_entry is None:
            raise ValueError(
                f"`guard='late'` needs the examples by number, but task {self.task.name!r} has no `late_entry`: "
                "give it `LateExamples(...)` or `LateExamples.from_loader(loader)`, or take `guard=True`."
            )
        if self.freeze and self.in_background:
            raise ValueError(
                "`freeze=True` acts on each look at once, and `in_background=True` has it answer later: leave one of "
                "them out."
            )
        Cadence(self.n_steps, self.interval_steps, self.look_budget)

    @property
    def interval(self) -> int:
        """Steps between looks, at the least."""
        return max(self.n_steps // CADENCES[0], 1) if self.interval_steps is None else self.interval_steps

    @property
    def direction(self) -> Direction:
        """``minimize`` or ``maximize``: what ``optuna.create_study`` needs."""
        return named_score(self.score).direction

    @property
    def conditions(self) -> dict[str, Any]:
        """What the loss before training depends on beside the task: it compares only where these are the same."""
        kind = torch.device(self.task.device).type
        return {"seed": self.seed, "device": kind, "amp": str(self.task.amp), "is_late": self.guard == "late"}

    def loss_before(self) -> float:
        """Return the loss before training that every trial begins with; nothing is trained, and nobody told.

        Raises:
            Exception: what the user's callables raise, and what :meth:`__call__` does before the first step.
        """
        task = replace(self.task, late_entry=self.task.late_entry if self.guard == "late" else None)
        with _one_at_a_time(), seeded(self.seed, task.device):
            model = task.build_model()
            label = self.space.label
            groups = parameter_groups(model, dict.fromkeys(labelled(model, label), LayerSettings()), label)
            return loss_before(model, task, groups, n_steps=self.n_steps)

    def __call__(self, trial: optuna.Trial) -> float:
        """Run one trial.

        Raises:
            optuna.TrialPruned: see :func:`ww_opt.report`; or the user's code raised because training had diverged.
            ValueError: the study has another direction, the model is not fresh, or before the first step
                (:func:`ww_opt.training.run.train`).
            TypeError: what ``build_model`` returned is no model, or ``trial`` no trial.
        """
        chosen = named_score(self.score)
        check_trial(trial)
        _check_direction(trial, self.direction)
        late_entry = self.task.late_entry if self.guard == "late" else None
        task = replace(self.task, late_entry=late_entry, optimizer=_recording(trial, self.task.optimizer))
        with _one_at_a_time(), seeded(self.seed, self.task.device):
            records.begin(trial)
            records.write(trial, guard=self.guard)
            model = self.task.build_model()
            _check_fresh(model, self.task.name)
            groups = self.space.configure(trial, model)
            if (origin := origin_of(trial)) is not None:
                records.write(trial, origin=origin)
            entry = entry_of(task, self.n_steps)
            joining = () if entry is None else entry.steps
            cadence = cadence_of(trial, self.n_steps, self.interval_steps, self.look_budget, joining)
            score = chosen.guarded() if self.guard else chosen
            with Looks(trial, cadence, score, in_background=self.in_background) as looks:
                checkpoints = train(model, task, groups, n_steps=self.n_steps, interval_steps=cadence)
                schedule = self._schedule(model, task)
                for at in checkpoints:
                    with looks.counted(training=at.seconds, step=at.step, before=at.loss_seconds):
                        looks.catch_up()
                        if at.has_new_late:
                            report_late(trial, at.late)
                        if cadence.is_look(at.step) or not at.is_finite:
                            self._look(trial, at, looks)
                            if schedule is not None and schedule.update(diagnose(model), at.step):
                                records.write(trial, frozen=[asdict(event) for event in schedule.events])
            if schedule is not None:
                schedule.thaw()
            if self.on_trained is not None:
                self.on_trained(trial, model)
        return looks.value

    def _schedule(self, model: nn.Module, task: Task) -> FreezeSchedule | None:
        if not self.freeze:
            return None
        with undisturbed(task.device):
            batch = first_batch(task, self.n_steps)
        return FreezeSchedule(model, lambda inner: task.loss(inner, batch))

    def _look(self, trial: optuna.Trial, checkpoint: Checkpoint, looks: Looks) -> None:
        if checkpoint.error:
            raise pruned(trial, checkpoint.step, f"training diverged by step {checkpoint.step}: it {checkpoint.error}")
        if checkpoint.is_first:
            records.write(trial, in_nats=checkpoint.in_nats)
            records.write(trial, before=self.conditions | {"loss": checkpoint.first_loss})
        if checkpoint.is_finite and wants_ahead(trial, checkpoint.step, checkpoint.n_steps):
            report_late(trial, (), ahead=checkpoint.judge_ahead())
        # the running loss sees a divergence that the few batches of the clean loss may miss
        loss = checkpoint.train_loss if math.isfinite(checkpoint.running_loss) else checkpoint.running_loss
        first, step = checkpoint.first_loss, checkpoint.step
        if not math.isfinite(first) and not math.isfinite(loss):
            raise pruned(
                trial,
                step,
                f"the training loss became {loss} at step {step}, and was {first} before the first one: look for NaN "
                "or infinite values in the data, in `loss` and in the initial weights",
            )
        looks.look(checkpoint.model, Moment(step, loss, first if math.isfinite(first) else None))


def _check_direction(trial: optuna.Trial, direction: Direction) -> None:
    found = directions(trial)
    if found and found != (direction,):
        raise ValueError(
            f"The study must {direction} like its objective, but it was created to {' and '.join(found)}: "
            "`optuna.create_study(direction=objective.direction)`."
        )


def _check_fresh(model: object, name: str) -> None:
    """Refuse a model whose weights an earlier trial trained, wholly or in part."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`build_model` of task {name!r} must return a model, but it returned a {type(model).__name__}: end it "
            "with `return model`."
        )
    used = [own for own, parameter in model.named_parameters() if parameter.requires_grad and parameter in _TRAINED]
    if used:
        raise ValueError(
            f"`build_model` of task {name!r} must build a fresh model for each trial, but {len(used)} of its weights "
            f"({', '.join(used[:3])}) were trained in an earlier one, and would go on from there: build it inside "
            "`build_model`, or return `copy.deepcopy` of it."
        )
    for parameter in model.parameters():
        _TRAINED[parameter] = True


def _recording(trial: optuna.Trial, build: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Remember the class of the optimizer that is built: trials of another one are not ranked with this one."""

    def call(groups: Any) -> Optimizer:
        optimizer = build(groups)
        records.write(trial, optimizer=type(optimizer).__name__)
        return optimizer

    return call


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let the trials of a process take turns: random streams and the modes of torch belong to the whole process."""
    if not _TURN.acquire(blocking=False):
        _tell_of_threads()
        _TURN.acquire()
    try:
        yield
    finally:
        _TURN.release()


@cache
def _tell_of_threads() -> None:
    _LOG.warning(
        "Trials of one process take turns, since they share its random streams: `n_jobs` of `study.optimize` gains "
        "nothing. `ww-opt run --workers N` runs them on N processes."
    )
