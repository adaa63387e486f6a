"""Suggest, train, diagnose, score, report: one trial."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import optuna
import torch
from torch import nn
from torch.optim import Optimizer

from ww_opt.search import records
from ww_opt.search.space import LayerwiseSpace
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.scores import Direction, Score, named_score
from ww_opt.spectral.scores import score as score_of
from ww_opt.training.judging import Judgement, late_loss
from ww_opt.training.layerwise import apply_dropout, parameter_groups
from ww_opt.training.run import Checkpoint, Task, train

__all__ = ["SpectralObjective", "report", "report_late"]


def report(
    trial: optuna.Trial,
    model: nn.Module,
    step: int,
    *,
    train_loss: float | None = None,
    n_steps: int = 0,
    score: str | Score = "default",
) -> float:
    """Diagnose a model in training, remember what was seen, report the score, and stop the trial when told to.

    Args:
        trial: the running trial. Optuna's own pruners and :class:`ww_opt.SpectralPruner` work alike.
        model: only read.
        step: steps or epochs done; one report a step.
        train_loss: training loss so far. Not finite: the trial is pruned at once. Guarded scores use it.
        n_steps: length of the run, in the unit of ``step``; lets pruners know where half of the run is. At its end they
            are not asked any more.
        score: a key of ``SCORES``, or a ``Score``. ``SCORES["default"].guarded()`` adds the training loss, and once
            :func:`report_late` was called, what late examples said instead.

    Returns:
        The reported value.

    Raises:
        optuna.TrialPruned: the pruner says so, or the loss, a weight or the score is not finite. The reason is
            recorded.
        ValueError: the score is unknown, or no layer is wide enough to be judged.
    """
    chosen = named_score(score)
    if train_loss is not None and not math.isfinite(train_loss):
        raise _pruned(trial, step, f"the training loss became {train_loss} at step {step}: training diverged")
    started = time.perf_counter()
    diagnosis = diagnose(model)
    late = _late(trial)
    judged_late = late_loss(late) if late else None
    # late examples judge networks that are too narrow for spectra as well; the training loss alone is no judge, but
    # what is trained once more is not judged
    is_judge = records.read(trial, "guard", "late") == "late" or isinstance(trial, optuna.trial.FixedTrial)
    needs_spectra = not (chosen.is_guarded and is_judge)
    raw = score_of(diagnosis, chosen.unguarded()) if needs_spectra else chosen.unguarded()(diagnosis)
    first_loss = records.read(trial, "first_loss")
    value = raw
    if chosen.is_guarded:
        in_nats = None if late else records.read(trial, "in_nats", True)  # a late loss knows
        losses = {"train_loss": train_loss, "first_loss": first_loss, "late_loss": judged_late}
        value = chosen(diagnosis, **losses, in_nats=in_nats)
    records.write_look(
        trial,
        records.Look(
            step=step,
            n_steps=n_steps,
            value=value,
            score=raw,
            train_loss=math.nan if train_loss is None else float(train_loss),
            seconds=time.perf_counter() - started,
            late_loss=math.nan if judged_late is None else judged_late,
            late_accuracy=sum(own.n * own.accuracy for own in late) / sum(own.n for own in late) if late else math.nan,
            layers=records.layer_records(diagnosis),
        ),
    )
    if not math.isfinite(value):
        broken = [row.name for row in diagnosis if row.M > 0 and not row.is_analysed]
        what = f"the weights of {broken} are not finite" if broken else f"the score {chosen.name!r} is {value}"
        raise _pruned(trial, step, f"{what} at step {step}")
    trial.report(value, step)
    # a run at its end has cost all that it can: pruned, it would only be lost to the ranking
    if not 0 < n_steps <= step and trial.should_prune():
        pruner = trial.study.pruner
        explain = getattr(pruner, "explain", None)  # ours has one
        reason = explain(trial.study.get_trials(deepcopy=False)[trial.number]) if explain else ""
        raise _pruned(trial, step, reason or f"{type(pruner).__name__} at step {step}")
    return value


def report_late(trial: optuna.Trial, judgements: Sequence[Judgement]) -> None:
    """Remember what examples that came late have said so far; from now on guarded scores of the trial go by it.

    For a loop of one's own, with :class:`ww_opt.LateEntry`, whose docstring shows one. Call :func:`report` with
    ``score=SCORES["default"].guarded()``, and return ``score(model, train_loss=..., late_loss=late_loss(judgements))``.

    Args:
        trial: the running trial.
        judgements: all of the run so far, each from :func:`ww_opt.judge` on a cohort before it joined.
    """
    records.write(trial, late=[asdict(own) for own in judgements])


def _late(trial: optuna.Trial) -> list[Judgement]:
    return [Judgement.from_record(own) for own in records.read(trial, "late", ())]


def _pruned(trial: optuna.Trial, step: int, reason: str) -> optuna.TrialPruned:
    records.write(trial, reason=reason, steps=step)
    return optuna.TrialPruned(reason)


@dataclass(frozen=True)
class SpectralObjective:
    """An Optuna objective without a test set: the value is the spectral score of the trained model.

    Args:
        task: what is trained.
        space: what is searched, per layer.
        n_steps: optimizer steps of a trial.
        interval_steps: steps between looks; a tenth of the run by default. Each look diagnoses the model, remembers the
            rows, reports the score and asks the pruner.
        score: a key of ``SCORES``.
        guard: ``True``: add the training loss, see :func:`ww_opt.spectral.scores.guard`. ``"late"``: let a few training
            examples join late, and guard by what they say just before (:mod:`ww_opt.training.late_entry`); until then
            by the training loss. Needs ``task.late_entry``.
        seed: of the initial weights and the order of the data, the same for every trial, so that trials differ in their
            settings alone.
        on_trained: called with the trial and the model of every trial that ran to its end.
    """

    task: Task
    space: LayerwiseSpace
    n_steps: int
    interval_steps: int | None = None
    score: str = "default"
    guard: bool | Literal["late"] = False
    seed: int = 0
    on_trained: Callable[[optuna.Trial, nn.Module], None] | None = None

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
        interval = self.interval
        if not 1 <= interval <= self.n_steps:
            raise ValueError(
                "`1 <= interval_steps <= n_steps` must hold, but got "
                f"interval_steps={interval}, n_steps={self.n_steps}."
            )

    @property
    def interval(self) -> int:
        """Steps between looks."""
        return max(self.n_steps // 10, 1) if self.interval_steps is None else self.interval_steps

    @property
    def direction(self) -> Direction:
        """``minimize`` or ``maximize``: what ``optuna.create_study`` needs."""
        return named_score(self.score).direction

    def __call__(self, trial: optuna.Trial) -> float:
        """Run one trial.

        Raises:
            optuna.TrialPruned: see :func:`report`.
        """
        chosen = named_score(self.score)
        _check_direction(trial, self.direction)
        late_entry = self.task.late_entry if self.guard == "late" else None
        records.write(trial, guard=self.guard)
        task = replace(self.task, late_entry=late_entry, optimizer=_recording(trial, self.task.optimizer))
        value = math.nan
        with _seeded(self.seed, self.task.device):
            model = self.task.build_model()
            settings = self.space.suggest(trial, model)
            apply_dropout(model, settings, self.space.label)
            groups = parameter_groups(model, settings, self.space.label)
            records.write(trial, settings={label: asdict(own) for label, own in settings.items()})
            for checkpoint in train(model, task, groups, n_steps=self.n_steps, interval_steps=self.interval):
                value = self._look(trial, checkpoint, chosen.guarded() if self.guard else chosen)
            if self.on_trained is not None:
                self.on_trained(trial, model)
        return value

    def _look(self, trial: optuna.Trial, checkpoint: Checkpoint, score: Score) -> float:
        if records.read(trial, "first_loss") is None:
            records.write(trial, first_loss=checkpoint.first_loss, in_nats=checkpoint.in_nats)
        if checkpoint.late:
            report_late(trial, checkpoint.late)
        # the running loss sees a divergence that the few batches of the clean loss may miss
        loss = checkpoint.train_loss if math.isfinite(checkpoint.running_loss) else checkpoint.running_loss
        return report(
            trial,
            checkpoint.model,
            checkpoint.step,
            train_loss=loss,
            n_steps=checkpoint.n_steps,
            score=score,
        )


def _check_direction(trial: optuna.Trial, direction: Direction) -> None:
    host = getattr(trial, "study", None)  # a fixed trial has none
    found = [own.name.lower() for own in host.directions] if host is not None else [direction]
    if found != [direction]:
        raise ValueError(
            f"The study must {direction} like its objective, but it was created to {' and '.join(found)}: "
            "`optuna.create_study(direction=objective.direction)`."
        )


def _recording(trial: optuna.Trial, build: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Remember the class of the optimizer that is built: trials of another one are not ranked with this one."""

    def call(groups: Any) -> Optimizer:
        optimizer = build(groups)
        records.write(trial, optimizer=type(optimizer).__name__)
        return optimizer

    return call


@contextmanager
def _seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch inside, and give the caller his random stream back."""
    kind = torch.device(device).type
    accelerators = [] if kind == "cpu" else [torch.device(device)]
    with torch.random.fork_rng(devices=accelerators, device_type=kind if accelerators else "cuda"):
        torch.manual_seed(seed)
        yield
