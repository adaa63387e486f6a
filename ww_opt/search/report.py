"""One look at a model in training: diagnose, remember, report, and stop the trial when told to."""

from __future__ import annotations

import logging
import math
import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, TypedDict, Unpack

import optuna
import torch
from optuna.trial import BaseTrial, FixedTrial
from torch import nn

from ww_opt.search import records
from ww_opt.search.decisions import FAULT, NOT_FINITE, WRAPPED, Decision, leave_own
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.rows import Diagnosis
from ww_opt.spectral.scores import Score, named_score
from ww_opt.spectral.scores import score as score_of
from ww_opt.training.judging import Judgement, late_loss

__all__ = ["Losses", "check_trial", "directions", "pruned", "report", "report_late", "rung_steps", "wants_ahead"]

_LOG = logging.getLogger(__name__)


class Losses(TypedDict, total=False):
    """Training losses that guards go by: the present one, and the one before the first step."""

    train_loss: float | None
    first_loss: float | None


def report(
    trial: optuna.Trial,
    model: nn.Module | Diagnosis,
    step: int,
    *,
    n_steps: int = 0,
    score: str | Score = "default",
    **losses: Unpack[Losses],
) -> float:
    """Diagnose a model in training, remember what was seen, report the score, and stop the trial when told to.

    The value is reported as the study reads it: where it maximises and the score is to be minimised, or the other way
    round, it is the score's negative. A study of several objectives takes no reports and prunes nothing: there the
    look is remembered and no more, and the value is the score itself.

    Args:
        trial: the running trial. Optuna's own pruners and :class:`ww_opt.SpectralPruner` work alike.
        model: only read; or what :func:`ww_opt.spectral.diagnose` said of it at this step.
        step: steps or epochs done; rising from report to report.
        n_steps: length of the run, in the unit of ``step``; lets pruners know where half of the run is. At its end they
            are not asked any more. 0: not known.
        score: a key of ``SCORES``, or a ``Score``. ``SCORES["default"].guarded()`` adds the training loss, and once
            :func:`report_late` was called, what late examples said instead.
        losses: ``train_loss``, the training loss so far. Not finite: the trial is pruned at once. Guarded scores need
            it. ``first_loss``, the same before the first step, beside which they read it; once given it is remembered.

    Returns:
        The reported value.

    Raises:
        optuna.TrialPruned: the pruner says so, or the loss, a weight or the score is not finite. The reason is
            recorded.
        TypeError: the trial is none, a step is no whole number or a loss is no number.
        ValueError: the score is unknown, no layer is wide enough to be judged and no late examples guard, or a step is
            negative, beyond ``n_steps`` or not after the one before.
    """
    chosen = named_score(score)
    check_trial(trial)
    known = records.own_attributes(trial)
    step, n_steps = _checked_steps(known, step, n_steps)
    train_loss, first_loss = _checked_losses(trial, known, losses)
    if train_loss is not None and not math.isfinite(train_loss):
        raise pruned(trial, step, f"the training loss became {train_loss} at step {step}: training diverged")
    started = time.perf_counter()
    diagnosis = model if isinstance(model, Diagnosis) else diagnose(model)
    late = [Judgement.from_record(own) for own in records.read(known, "late", ())]
    judged_late = late_loss(late) if late else None
    # late examples judge networks that are too narrow for spectra as well; the training loss alone is no judge, but
    # what is trained once more is not judged
    is_judge = records.read(known, "guard", "late") == "late" or isinstance(trial, FixedTrial)
    needs_spectra = not (chosen.is_guarded and is_judge)
    raw = score_of(diagnosis, chosen.unguarded()) if needs_spectra else chosen.unguarded()(diagnosis)
    value = raw
    if chosen.is_guarded:
        if first_loss is None:
            _tell_of_first_loss()
        in_nats = None if late else bool(records.read(known, "in_nats", True))  # a late loss knows
        beside = {"train_loss": train_loss, "first_loss": first_loss, "late_loss": judged_late}
        value = chosen(diagnosis, **beside, in_nats=in_nats)
    unsigned, asked = value, directions(trial)
    if asked and asked != (chosen.direction,) and len(asked) == 1:
        value = -value
    records.write_look(
        trial,
        records.Look(
            step=step,
            n_steps=n_steps,
            value=value,
            score=raw,
            train_loss=math.nan if train_loss is None else train_loss,
            seconds=time.perf_counter() - started,
            late_loss=math.nan if judged_late is None else judged_late,
            late_accuracy=sum(own.n * own.accuracy for own in late) / sum(own.n for own in late) if late else math.nan,
            layers=records.layer_records(diagnosis),
            n_late=sum(own.n_examples for own in late),
            **_ahead(known, step),
            direction=chosen.unguarded().direction,
        ),
    )
    if not math.isfinite(value):
        broken = [row.name for row in diagnosis if row.M > 0 and not row.is_analysed]
        what = f"the weights of {broken} are not finite" if broken else f"the score {chosen.name!r} is {unsigned}"
        raise pruned(trial, step, f"{what} at step {step}")
    if len(asked) <= 1:
        _ask(trial, value, step, is_last=0 < n_steps <= step)
    return value


def _ask(trial: optuna.Trial, value: float, step: int, *, is_last: bool) -> None:
    """Report the value, and raise where the pruner says so."""
    trial.report(value, step)
    # a run at its end has cost all that it can: pruned, it would only be lost to the ranking
    if is_last or not trial.should_prune():
        return
    pruner = trial.study.pruner
    explain = getattr(pruner, "explain", None)  # ours has one, and has left its decision
    reason = explain(trial.study.get_trials(deepcopy=False)[trial.number]) if explain else ""
    name = type(pruner).__name__
    raise pruned(trial, step, reason or f"{name} at step {step}", rule="" if reason else name)


def report_late(trial: optuna.Trial, judgements: Sequence[Judgement], *, ahead: Judgement | None = None) -> None:
    """Remember what examples that came late have said so far; from now on guarded scores of the trial go by it.

    For a loop of one's own, with :class:`ww_opt.LateEntry`; :class:`ww_opt.Run` calls it by itself. Call :func:`report`
    with ``score=SCORES["default"].guarded()``, and return its last value.

    Args:
        trial: the running trial.
        judgements: all of the run so far, each from :func:`ww_opt.judge` on a cohort before it joined.
        ahead: what all those say who are still to join (:meth:`ww_opt.LateEntry.waiting`), at the step of the next
            report. It moves no value: :class:`ww_opt.SpectralPruner` compares trials by it, where
            :func:`wants_ahead` says so.
    """
    if judgements:
        records.write(trial, late=[asdict(own) for own in judgements])
    if ahead is not None:
        records.write(trial, ahead={"step": ahead.step, "n": ahead.n_examples, "loss": late_loss([ahead])})


def wants_ahead(trial: optuna.Trial, step: int, n_steps: int) -> bool:
    """Whether the study's pruner would compare this trial, at ``step``, by what those say who are still to join."""
    pruner = getattr(getattr(trial, "study", None), "pruner", None)
    asked = getattr(pruner, "wants_ahead", None)  # ours has one
    return bool(asked and asked(records.last_step(trial), step, n_steps))


def rung_steps(trial: optuna.Trial, n_steps: int) -> tuple[int, ...]:
    """Steps of a run of ``n_steps`` at which the study's pruner compares trials; none where it is not ours."""
    pruner = getattr(getattr(trial, "study", None), "pruner", None)
    asked = getattr(pruner, "rung_steps", None)
    return tuple(asked(n_steps)) if asked else ()


def _ahead(known: dict[str, Any], step: int) -> dict[str, Any]:
    said = records.read(known, "ahead") or {}
    if said.get("step") != step:
        return {}
    return {"ahead_loss": math.nan if said["loss"] is None else said["loss"], "n_ahead": said["n"]}


def directions(trial: optuna.Trial) -> tuple[str, ...]:
    """Return what the trial's study does with its values; empty where there is none, as with a fixed trial."""
    host = getattr(trial, "study", None)
    return () if host is None else tuple(own.name.lower() for own in host.directions)


def pruned(trial: optuna.Trial, step: int, reason: str, *, rule: str = NOT_FINITE) -> optuna.TrialPruned:
    """Remember why a trial ends, and return what ends it. ``rule``: by which; empty where that is on record."""
    records.write(trial, reason=reason, steps=step)
    if rule:
        half = FAULT if rule == NOT_FINITE else WRAPPED
        leave_own(trial, Decision(step, rule, half, is_pruned=True, words=reason))
    return optuna.TrialPruned(reason)


def check_trial(trial: object) -> None:
    """Refuse what is no trial of Optuna's.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(trial, BaseTrial):
        raise TypeError(
            f"`trial` must be what Optuna gives to an objective, but got a {type(trial).__name__}: write "
            "`def objective(trial)`, and hand it on."
        )


def _checked_steps(known: dict[str, object], step: int, n_steps: int) -> tuple[int, int]:
    whole = _whole("step", step), _whole("n_steps", n_steps)
    step, n_steps = whole
    if step < 0 or n_steps < 0 or (n_steps and step > n_steps):
        raise ValueError(
            f"`0 <= step <= n_steps` must hold, but got step={step}, n_steps={n_steps}: count both in one unit, or "
            "leave `n_steps` out where it is not known."
        )
    last = records.last_step(known)
    if last is not None and step <= last:
        raise ValueError(
            f"`step` must rise from report to report, but got step={step} after step={last}: report once a step, and "
            "where a trial trains several models count on, or report one of them."
        )
    return whole


def _whole(name: str, value: object) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise TypeError(f"`{name}` must be a whole number, but got {name}={value!r}.")


def _checked_losses(
    trial: optuna.Trial, known: dict[str, object], losses: Mapping[str, object]
) -> tuple[float | None, float | None]:
    """Return the loss now and the one before the first step, which is remembered."""
    if unknown := sorted(set(losses) - set(Losses.__annotations__)):
        raise TypeError(f"`report` takes the losses {sorted(Losses.__annotations__)}, but got {', '.join(unknown)}.")
    numbers = {name: _number(name, value) for name, value in losses.items() if value is not None}
    if "first_loss" in numbers:
        if not math.isfinite(numbers["first_loss"]):
            raise ValueError(f"`first_loss` must be finite, but got first_loss={numbers['first_loss']}.")
        if numbers["first_loss"] != records.read(known, "first_loss"):
            records.write(trial, first_loss=numbers["first_loss"])
    return numbers.get("train_loss"), numbers.get("first_loss", records.read(known, "first_loss"))


def _number(name: str, value: object) -> float:
    if isinstance(value, torch.Tensor):
        value = value.detach()
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`{name}` must be a number, but got a {type(value).__name__}: take the mean.") from None


@cache
def _tell_of_first_loss() -> None:
    _LOG.warning(
        "A guarded score reads losses beside the one before the first step, but `ww_opt.report` was not given it, and "
        "that of chance among ten classes, ln 10, stands in: pass `first_loss=`, or use `ww_opt.Run`, which takes it."
    )
