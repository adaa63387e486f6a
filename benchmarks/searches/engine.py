"""Run many searches of one task in lockstep: what they ask for at a time is trained at once.

A search is a generator: it yields a :class:`Request` and is sent an :class:`Answer`, until it returns its pick.
Training is that of ``SpectralObjective``, several times faster (see :mod:`benchmarks.evidence.ensemble`); a test holds
the values to the objective's own.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial

from benchmarks.evidence.ensemble import Ensemble
from benchmarks.evidence.run import all_examples, sealed_accuracies, unused_examples
from benchmarks.evidence.tasks import Case
from ww_opt.search.records import LayerRecord, layer_records
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.rows import Diagnosis
from ww_opt.spectral.scores import SCORES
from ww_opt.training.judging import Judgement, judge_parts, late_loss
from ww_opt.training.late_entry import LateEntry
from ww_opt.training.layouts import layout_of

__all__ = ["JUDGES", "Answer", "Env", "Parameters", "Request", "Search", "lockstep"]

Parameters: TypeAlias = Mapping[str, float]
Training: TypeAlias = Literal["late", "plain", "split"]
JUDGES: Mapping[str, Training] = {
    "late guard": "late",
    "weights": "plain",
    "training loss guard": "plain",
    "split": "split",
    "test set": "plain",
}
"""What a value goes by -> how its runs are trained: with examples that join late, on all, or without a tenth."""
_SPLIT = (0.1,)
_TOGETHER = 16


class Request(NamedTuple):
    """A run that a search asks for: settings per layer, the draw (of weights, order, cohorts, split), the judge."""

    parameters: Parameters
    draw: int
    judge: str = "late guard"


class Answer(NamedTuple):
    """What came of it: the judge's value, lower is better (infinite: diverged), the layers' rows, sealed accuracy."""

    value: float
    layers: tuple[LayerRecord, ...]
    test: float


class _Run(NamedTuple):
    """What judges may go by; ``held_out`` is the accuracy on the split, ``late`` what the cohorts said."""

    first_loss: float
    train_loss: float
    diagnosis: Diagnosis
    late: Sequence[Judgement]
    held_out: float
    test: float


Heard: TypeAlias = list[tuple[Request, Answer]]
Search: TypeAlias = Generator[Request, Answer, Parameters]


def _value(judge: str, run: _Run) -> float:
    own = SCORES["default"]
    if judge == "split":
        return -run.held_out
    if judge == "test set":
        return -run.test
    if judge == "weights":
        return own.unguarded()(run.diagnosis)
    late = late_loss(run.late) if judge == "late guard" else None
    return own.guarded()(run.diagnosis, train_loss=run.train_loss, first_loss=run.first_loss, late_loss=late)


@dataclass(frozen=True)
class Env:
    """A task to search on: its space, what the user came with, and how runs are trained and judged."""

    case: Case

    @cached_property
    def parameters(self) -> dict[str, BaseDistribution]:
        """Name -> distribution, per layer."""
        return self.case.space.parameters(self._task.build_model())

    @cached_property
    def untuned(self) -> dict[str, float]:
        """The task's own optimizer at its usual rate, with the usual decay and dropout: what a user comes with."""
        adamw = self.case.optimizer == "adamw"
        usual = {"lr": 1e-3 if adamw else 0.05, "weight_decay": 1e-2 if adamw else 1e-6, "dropout": 0.1}
        return {name: usual[name.partition("/")[0]] for name in self.parameters}

    @cached_property
    def _task(self) -> Any:
        return self.case.task()

    @cached_property
    def _unused(self) -> Any:
        return unused_examples(self.case)

    @cached_property
    def _examples(self) -> Any:
        return all_examples(self._task)

    def runs(self, requests: Sequence[Request]) -> list[Answer]:
        """Train and judge what was asked for, all of one draw and one way of training.

        Runs with late entry are those of ``SpectralObjective(..., guard="late")``, the others those of a plain one.
        """
        draw, training = requests[0].draw, JUDGES[requests[0].judge]
        entry = split = None
        task = self._task
        if training == "late":
            late = replace(task.late_entry, seed=draw)
            entry = late.over(self.case.n_steps)
            task = replace(task, batches=lambda: (late.take(index) for index in entry))
        elif training == "split":
            parts = LateEntry(len(self._examples), 1, 2, _SPLIT, (0.5,), draw)
            rest, split = self._examples.take(parts.present), self._examples.take(parts.cohorts[0])
            task = replace(task, batches=lambda: _shuffled(rest, self.case.batch_size))
        ensemble = self._ensemble(task, [own.parameters for own in requests], draw)
        heard: list[list[Judgement]] = [[] for _ in requests]
        first, last = None, None
        interval = math.gcd(self.case.n_steps, *entry.steps) if entry is not None else self.case.n_steps
        for look in ensemble.train(self.case.n_steps, interval):
            first, last = first or look, look
            for cohort in entry.joining(look.step) if entry is not None else ():
                self._hear(ensemble, late.take(cohort), look.step, heard)
        assert first is not None
        assert last is not None
        tests = sealed_accuracies(ensemble, self.case, self._unused, self._model)
        held_out = [math.nan] * len(requests)
        if split is not None:
            held_out = (ensemble.logits([split.x]).argmax(-1) == split.y).double().mean(-1).tolist()
        answers = []
        for k, request in enumerate(requests):
            losses = float(first.train_loss[k]), float(last.train_loss[k])
            answers.append(self._answer(request.judge, ensemble.state(k), losses, heard[k], (held_out[k], tests[k])))
        return answers

    def _hear(self, ensemble: Ensemble, cohort: Any, step: int, heard: list[list[Judgement]]) -> None:
        logits = ensemble.logits([cohort.x])
        for own, logit in zip(heard, logits, strict=True):
            own.append(judge_parts([(logit, cohort.y)], step, layout_of(logit, cohort.y)))

    def _answer(
        self,
        judge: str,
        state: dict[str, torch.Tensor],
        losses: tuple[float, float],
        heard: Sequence[Judgement],
        accuracies: tuple[float, float],
    ) -> Answer:
        if not math.isfinite(losses[1]):
            return Answer(math.inf, (), accuracies[1])
        self._model.load_state_dict(state)
        diagnosis = diagnose(self._model)
        value = _value(judge, _Run(*losses, diagnosis, heard, *accuracies))
        return Answer(value if math.isfinite(value) else math.inf, layer_records(diagnosis), accuracies[1])

    def plain_runs(self, asked: Sequence[Parameters], seed: int) -> list[float]:
        """Train on all examples in the plain way; sealed accuracies."""
        ensemble = self._ensemble(self._task, asked, seed)
        for _ in ensemble.train(self.case.n_steps, self.case.n_steps):
            pass
        return sealed_accuracies(ensemble, self.case, self._unused, self._model)

    @cached_property
    def _model(self) -> torch.nn.Module:
        model: torch.nn.Module = self._task.build_model()
        return model

    def _ensemble(self, task: Any, asked: Sequence[Parameters], seed: int) -> Ensemble:
        space = self.case.space
        settings = [space.suggest(FixedTrial(dict(own)), self._model) for own in asked]
        return Ensemble(task, settings, self.case.label, seed)


def _shuffled(examples: Any, batch_size: int) -> Iterator[Any]:
    return (examples.take(index) for index in torch.split(torch.randperm(len(examples)), batch_size))


def lockstep(
    env: Env, searches: Mapping[Any, Search]
) -> Iterator[tuple[Any, list[tuple[Request, Answer]], Parameters]]:
    """Run searches to their ends; yield key, what was asked and answered, and the pick of each that has ended."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked: dict[Any, Request] = {}
    heard: dict[Any, Heard] = {key: [] for key in searches}
    for key, search in searches.items():
        asked[key] = next(search)
    while asked:
        alike = min((request.draw, JUDGES[request.judge]) for request in asked.values())
        keys = [key for key, own in asked.items() if (own.draw, JUDGES[own.judge]) == alike][:_TOGETHER]
        answers = env.runs([asked[key] for key in keys])
        for key, answer in zip(keys, answers, strict=True):
            heard[key].append((asked.pop(key), answer))
            try:
                asked[key] = searches[key].send(answer)
            except StopIteration as end:
                yield key, heard[key], end.value
