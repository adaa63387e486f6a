"""Run many searches of one task in lockstep: what they ask for at a time is trained at once.

A search is a generator: it yields a :class:`Request` and is sent an :class:`Answer`, until it returns its pick. All
training is that of ``SpectralObjective(..., guard="late")``, or plain, several times faster (see
:mod:`benchmarks.evidence.ensemble`); a test holds the values to the objective's own.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial

from benchmarks.evidence.ensemble import Ensemble, Look
from benchmarks.evidence.run import sealed_accuracies, unused_examples
from benchmarks.evidence.tasks import Case
from ww_opt.search.records import LayerRecord, layer_records
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.scores import SCORES
from ww_opt.training.judging import Judgement, judge_parts, late_loss
from ww_opt.training.layouts import layout_of

__all__ = ["Answer", "Env", "Parameters", "Request", "Search", "lockstep"]

Parameters: TypeAlias = Mapping[str, float]
_TOGETHER = 16


class Request(NamedTuple):
    """A late run that a search asks for: settings per layer, and the draw of initial weights, order and cohorts."""

    parameters: Parameters
    draw: int


class Answer(NamedTuple):
    """What came of it: the late score (infinite where training diverged), the layers' rows, the sealed accuracy."""

    value: float
    layers: tuple[LayerRecord, ...]
    test: float


Heard: TypeAlias = list[tuple[Request, Answer]]
Search: TypeAlias = Generator[Request, Answer, Parameters]


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

    def late_runs(self, asked: Sequence[Parameters], draw: int) -> list[Answer]:
        """Train with late entry and judge, as the objective with guard ``late`` does."""
        late = replace(self._task.late_entry, seed=draw)
        entry = late.over(self.case.n_steps)
        task = replace(self._task, batches=lambda: (late.take(index) for index in entry))
        ensemble = self._ensemble(task, asked, draw)
        heard: list[list[Judgement]] = [[] for _ in asked]
        first, last = None, None
        interval = math.gcd(self.case.n_steps, *entry.steps)
        for look in ensemble.train(self.case.n_steps, interval):
            first, last = first or look, look
            for cohort in entry.joining(look.step):
                self._hear(ensemble, late.take(cohort), look.step, heard)
        assert first is not None
        assert last is not None
        tests = sealed_accuracies(ensemble, self.case, self._unused, self._model)
        found = zip(heard, tests, strict=True)
        return [self._answer(ensemble, k, own, first, last, test) for k, (own, test) in enumerate(found)]

    def _hear(self, ensemble: Ensemble, cohort: Any, step: int, heard: list[list[Judgement]]) -> None:
        logits = ensemble.logits([cohort.x])
        for own, logit in zip(heard, logits, strict=True):
            own.append(judge_parts([(logit, cohort.y)], step, layout_of(logit, cohort.y)))

    def _answer(
        self, ensemble: Ensemble, k: int, heard: list[Judgement], first: Look, last: Look, test: float
    ) -> Answer:
        loss = float(last.train_loss[k])
        if not math.isfinite(loss):
            return Answer(math.inf, (), test)
        model = self._model
        model.load_state_dict(ensemble.state(k))
        diagnosis = diagnose(model)
        first_loss = float(first.train_loss[k])
        value = SCORES["default"].guarded()(
            diagnosis, train_loss=loss, first_loss=first_loss, late_loss=late_loss(heard)
        )
        return Answer(value if math.isfinite(value) else math.inf, layer_records(diagnosis), test)

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
        draw = min(request.draw for request in asked.values())
        keys = [key for key, request in asked.items() if request.draw == draw][:_TOGETHER]
        answers = env.late_runs([asked[key].parameters for key in keys], draw)
        for key, answer in zip(keys, answers, strict=True):
            heard[key].append((asked.pop(key), answer))
            try:
                asked[key] = searches[key].send(answer)
            except StopIteration as end:
                yield key, heard[key], end.value
