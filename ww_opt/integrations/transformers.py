"""Hugging Face's Trainer: searches without an evaluation set, with settings per layer, late entry and pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.trial import BaseTrial
from torch import nn
from torch.utils.data import DataLoader

from ww_opt.integrations.hosted import Asked, Hosted, is_settled
from ww_opt.integrations.trainer_trial import begin, layerwise, team_of
from ww_opt.search.faults import DEFAULT_FAULTS
from ww_opt.search.pruner import SpectralPruner
from ww_opt.search.sampler import LayerwiseSampler
from ww_opt.search.space import LayerwiseSpace

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        f"ww_opt.integrations.transformers needs transformers, which cannot be imported here ({error}): "
        "`pip install 'ww_opt[transformers]'`."
    ) from error

__all__ = ["SpectralCallback", "SpectralMixin", "SpectralTrainer"]

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object  # any Trainer may stand behind the mixin

_NOT_HERE = optuna.trial.FixedTrial({})
"""Stands on ranks that were not given the trial."""


class SpectralCallback(TrainerCallback):
    """What happens after each optimizer step of a trial; :class:`SpectralMixin` adds it and speaks to it.

    Those who are about to join judge the model, it is looked at, reported and, where the pruner says so, the Trainer is
    told to stop. ``TrialPruned`` is raised when ``train`` has ended, so that progress bars, loggers and the other ranks
    end as usual; nothing is evaluated or saved on the way.

    Attributes:
        hosted: the trial that runs; ``None`` outside one.
        ended: what ends it.
    """

    def __init__(self) -> None:
        self.hosted: Hosted | None = None
        self.ended: optuna.TrialPruned | None = None
        self._loss: Any = 0.0
        self._graph: torch.Tensor | None = None
        self._has_begun = False

    def begin(self, hosted: Hosted | None) -> None:
        """Turn to another trial, or to none."""
        self.hosted, self.ended, self._loss, self._graph, self._has_begun = hosted, None, 0.0, None, False

    def hear(self, *, loss: torch.Tensor | None = None, graph: torch.Tensor | None = None) -> None:
        """Add the share of a batch to the step's loss; keep the run's first loss with its graph."""
        if loss is not None:
            self._loss = self._loss + loss.detach()
        if graph is not None and not self._has_begun:
            self._graph, self._has_begun = graph, True

    def on_trainbegin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Refuse a run that is not the one that was foreseen."""
        if self.hosted is None or self.hosted.run is None:
            return
        if state.max_steps != self.hosted.plan.n_steps:
            raise ValueError(
                f"A trial of {self.hosted.plan.n_steps} steps was foreseen, but the Trainer makes {state.max_steps}: "
                "give `max_steps`."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
        """Count the step, and stop the run where it is pruned."""
        if self.hosted is None:
            return control
        loss, self._loss = self._loss, 0.0
        graph, self._graph = self._graph, None
        self.ended = self.hosted.step(loss, graph)
        if self.ended is not None:
            control.should_training_stop = True
        return self._quiet(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
        """Neither evaluate nor save what was pruned."""
        return self._quiet(control)

    def _quiet(self, control: Any) -> Any:
        if self.ended is not None:
            control.should_evaluate = control.should_save = False
        return control


class SpectralMixin(_Base):
    """Makes trials of a Trainer's runs; stands before any Trainer, ``class Mine(SpectralMixin, SFTTrainer)``.

    :meth:`hyperparameter_search` then needs no evaluation set::

        trainer = SpectralTrainer(model_init=build, args=args, train_dataset=data, space=space)
        best = trainer.hyperparameter_search(backend="optuna", n_trials=20)
        trainer.train(trial=optuna.trial.FixedTrial(best.hyperparameters))  # the pick, on all examples from the start

    In an objective of your own call ``trainer.train(trial=trial)`` and return ``trainer.objective``. ``train()``
    without a trial is the Trainer's own. Optimizer, its options, learning-rate schedule, loss, collator, precision and
    accumulation are the Trainer's; the space sets learning rate, weight decay, momentum, dropout and initial scale per
    layer, and what it leaves out is as ``TrainingArguments`` say. Rank 0 looks and decides, all ranks stop.

    Cohorts judge by logits where those give the Trainer's own loss (classes, tokens, yes/no labels), else by that loss.
    Loss, score or weights that are not finite end a trial as pruned. What an evaluation set says is logged, and chooses
    nothing.

    Args:
        args: those of the Trainer.
        space: what is searched, per layer. ``None``: what ``hp_space`` suggests, and nothing else.
        late: whether training examples join late and judge, by default three cohorts of 5 %; a mapping of options of
            :class:`ww_opt.LateExamples` (``shares``, ``times``, ``seed``, ``logits``, ...); False: no late entry.
        looks: options of :class:`ww_opt.Run`: ``interval_steps``, ``score``, ``guard``, ``look_budget``, ...
        kwargs: those of the Trainer.

    Attributes:
        objective: what the last trial was worth.

    Raises:
        TypeError, ValueError: as :class:`ww_opt.Run` and :class:`ww_opt.LateExamples`; or, when a trial begins, weights
            or optimizer are sharded (FSDP, DeepSpeed), the run goes on from a checkpoint, or the batch size is looked
            for (``auto_find_batch_size``).
    """

    def __init__(
        self,
        *args: Any,
        space: LayerwiseSpace | None = None,
        late: bool | Mapping[str, Any] = True,
        looks: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.asked = Asked(space, late, {} if looks is None else looks)
        self.spectral = SpectralCallback()
        self.objective: float | None = None
        self._asked_trial: BaseTrial | None = None
        self._is_final = False
        super().__init__(*args, **kwargs)
        self.add_callback(self.spectral)

    def train(
        self, resume_from_checkpoint: Any = None, trial: BaseTrial | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as the Trainer does; with a trial, as that says.

        Raises:
            optuna.TrialPruned: see :func:`ww_opt.report`.
        """
        self.spectral.begin(None)
        is_searching = self.hp_search_backend is not None
        # rank 0 knows; in a search the other ranks have a frozen copy of its trial
        is_final = is_settled(trial) and not is_searching
        is_trial, self._is_final = team_of(self).exchange((trial is not None, is_final))
        if is_trial and not self._is_final and resume_from_checkpoint:
            raise ValueError(
                f"A trial begins at step 0, but got resume_from_checkpoint={resume_from_checkpoint!r}: leave it out; a "
                "study goes on with the next trial."
            )
        self._asked_trial = (trial if trial is not None else _NOT_HERE) if is_trial else None
        try:
            done = super().train(resume_from_checkpoint, trial, *args, **kwargs)
            hosted, ended = self.spectral.hosted, self.spectral.ended
            if hosted is not None and not self._is_final:
                self.objective = hosted.value if ended is None else math.nan
        finally:
            self._asked_trial = None
            self.spectral.begin(None)
        if ended is not None and hosted is not None and hosted.run is not None:
            raise ended
        return done

    def hyperparameter_search(
        self,
        hp_space: Callable[[optuna.Trial], dict[str, Any]] | None = None,
        compute_objective: None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Search as the Trainer does, by late examples and the weights instead of an evaluation.

        Args:
            hp_space: further fields of ``TrainingArguments`` to search; those of the space are suggested by themselves.
            compute_objective: must be left out.
            args: as for the Trainer.
            kwargs: likewise; ``backend`` is ``"optuna"``, and what it does not know goes to ``optuna.create_study``. By
                default the sampler is :class:`ww_opt.LayerwiseSampler`, and the pruner ends what is broken alone, as in
                a :class:`ww_opt.Study`: Optuna's own would compare trials before the first cohort has judged.

        Returns:
            The Trainer's ``BestRun``; ``optuna.trial.FixedTrial(best.hyperparameters)`` trains it.

        Raises:
            ValueError: there is a ``compute_objective`` or another backend.
        """
        backend = getattr(kwargs.setdefault("backend", "optuna"), "value", kwargs["backend"])
        if backend != "optuna":
            raise ValueError(f"Trials are Optuna's, but got backend={backend!r}: leave `backend` out.")
        if compute_objective is not None:
            raise ValueError(
                "A trial is worth what late examples and the weights say, but got a `compute_objective`, which reads "
                "an evaluation: leave it out, or take the plain Trainer."
            )

        kwargs = {"sampler": LayerwiseSampler(), "pruner": SpectralPruner(rules=DEFAULT_FAULTS)} | kwargs

        def both(trial: optuna.Trial) -> dict[str, Any]:
            if self.asked.space is not None:
                # the other ranks are told what was suggested before anybody trains
                model = self.model if self.model is not None else self.call_model_init(trial)
                self.asked.space.suggest(trial, model)
            return {} if hp_space is None else hp_space(trial)

        return super().hyperparameter_search(both, lambda _: self.objective, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the Trainer's loader; in a trial, with the batches of late entry."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        if self._asked_trial is None:
            return loader
        return begin(self, loader)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the Trainer's optimizer; in a trial, on the groups of its layers."""
        hosted = self.spectral.hosted
        own = super().create_optimizer
        if hosted is None:
            return own(*args, **kwargs)
        if self.asked.space is None:
            return hosted.optimizer(lambda _: own(*args, **kwargs))
        if self.optimizer is not None:
            raise ValueError(
                "The optimizer of a trial is built on its layers, but this Trainer has one already: leave `optimizers` "
                "out, and give `model_init`, or make a Trainer for each trial."
            )
        self.optimizer: Any = hosted.optimizer(partial(layerwise, self))
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a batch, and let its loss be heard."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.spectral.hear(loss=loss)
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the Trainer's loss, and let the first one be seen with its graph."""
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training and self.spectral.hosted is not None:
            self.spectral.hear(graph=found[0] if isinstance(found, tuple) else found)
        return found

    def _report_to_hp_search(self, *_: Any, **__: Any) -> None:
        """Report no evaluation: it would stand among the reports of the trial."""


class SpectralTrainer(SpectralMixin, Trainer):
    """Hugging Face's Trainer whose runs can be trials; see :class:`SpectralMixin`."""
