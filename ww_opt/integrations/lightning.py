"""Lightning: trials of a LightningModule, with settings per layer, late entry and pruning; no validation loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import torch
from optuna.trial import BaseTrial
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ww_opt.integrations.hosted import Asked, EntryBatches, Hosted, Plan, is_settled
from ww_opt.integrations.lightning_fit import check_fit, plan_of, training_loss
from ww_opt.search.space import LayerwiseSpace
from ww_opt.training.late_entry import LateExamples

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError(
            f"ww_opt.integrations.lightning needs Lightning, which cannot be imported here ({error}): "
            "`pip install 'ww_opt[lightning]'`."
        ) from error

__all__ = ["SpectralCallback", "layerwise_optimizer"]


def layerwise_optimizer(module: Any, build: Callable[..., Optimizer]) -> Optimizer:
    """Build the optimizer of a LightningModule on its layers: ``configure_optimizers`` returns it, or schedules it.

    Without a :class:`SpectralCallback` on the module's trainer it is ``build(module.parameters())``.

    Args:
        module: the LightningModule.
        build: a class, or ``functools.partial`` of one, with the options that are not searched.

    Raises:
        ValueError: as :class:`SpectralCallback`; or a setting acts on nothing in the optimizer.
    """
    found = [own for own in module.trainer.callbacks if isinstance(own, SpectralCallback)]
    if not found:
        return build([own for own in module.parameters() if own.requires_grad])
    return found[0]._begin(module, is_built=True).optimizer(build)


class SpectralCallback(Callback):
    """Makes a trial of a fit.

    An objective with it::

        def objective(trial):
            tuning = SpectralCallback(trial, space=space)
            trainer = L.Trainer(max_epochs=5, callbacks=[tuning])
            trainer.fit(Net(), tuning.loader(train_loader))
            return tuning.value

    ``Net.configure_optimizers`` returns :func:`layerwise_optimizer`, alone or with a scheduler. Those who are about to
    join judge the model, it is looked at, reported and, where the pruner says so, ``TrialPruned`` is raised from the
    fit. Loss, score or weights that are not finite end a trial as pruned.

    On several ranks (``strategy="ddp"``) rank 0 has the trial and decides, the others take ``None`` in its place; all
    stop by ``trainer.should_stop``, and ``tuning.value`` raises on rank 0. A trial whose settings are fixed
    (``study.best_trial``, ``FixedTrial``; on all ranks) is trained with them, on all examples from the start.

    Args:
        trial: the running trial.
        space: what is searched, per layer. ``None``: nothing here.
        late: whether training examples join late and judge, by default three cohorts of 5 %; a mapping of options of
            :class:`ww_opt.LateExamples`; False: no late entry. With ``logits``, ``logits(module, batch)`` returning
            ``(logits, labels)``, they judge by classes; without, by the loss of ``training_step``, with nothing logged.
        looks: options of :class:`ww_opt.Run`: ``interval_steps``, ``score``, ``guard``, ``look_budget``, ...
        seed: of the order of the examples with late entry.

    Raises:
        TypeError, ValueError: as :class:`ww_opt.Run` and :class:`ww_opt.LateExamples`; or, when the fit begins: weights
            are sharded (FSDP, DeepSpeed), ranks are started from inside the fit (``ddp_spawn``), optimization is
            manual, the run goes on from a checkpoint, or a space or late entry was given and its way into the fit,
            :func:`layerwise_optimizer` or :meth:`loader`, was not taken.
    """

    def __init__(
        self,
        trial: BaseTrial | None,
        *,
        space: LayerwiseSpace | None = None,
        late: bool | Mapping[str, Any] = True,
        looks: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self._trial, self._seed = trial, seed
        self._asked = Asked(space, late, {} if looks is None else looks)
        self._trainer: Any = None
        self._source: DataLoader[Any] | None = None
        self._planned: Plan | None = None
        self._hosted: Hosted | None = None
        self._is_built = False
        self._ended: optuna.TrialPruned | None = None
        self._loss: Any = 0.0
        self._graph: torch.Tensor | None = None
        self._done = 0

    @property
    def value(self) -> float:
        """What the trial is worth, for the objective to return; NaN where this process does not judge.

        Raises:
            optuna.TrialPruned: it was pruned.
            ValueError: the fit did not come to its end.
        """
        if self._ended is not None and self._hosted is not None and self._hosted.run is not None:
            raise self._ended
        return math.nan if self._hosted is None else self._hosted.value

    def loader(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Return the loader of the trial: the same examples and batches, of which some join late.

        Args:
            loader: of training, with torch's own samplers; on several ranks as one rank has it, without a distributed
                sampler, whatever ``use_distributed_sampler`` says.

        Raises:
            TypeError, ValueError: as :meth:`ww_opt.LateExamples.from_loader`.
        """
        if self._asked.late is False or is_settled(self._trial):
            return loader
        LateExamples.from_loader(loader)  # says at once what is wrong
        self._source = loader
        return DataLoader(
            loader.dataset,
            batch_sampler=EntryBatches(self._plan, lambda: int(self._trainer.global_step), self._seed),
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Turn to the fit that begins."""
        if stage != "fit":
            return
        check_fit(trainer, pl_module)
        self._trainer, self._planned, self._hosted, self._ended = trainer, None, None, None
        self._is_built, self._loss, self._graph, self._done = False, 0.0, None, 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the trial, where the optimizer has not done so."""
        hosted = self._begin(pl_module)
        if self._asked.space is not None and not self._is_built:
            raise ValueError(
                "A space acts through the optimizer, but `configure_optimizers` did not build it on layers: return "
                "`layerwise_optimizer(self, functools.partial(torch.optim.AdamW, lr=1e-3))` there."
            )
        if not self._is_built:
            hosted.optimizer(lambda _: trainer.optimizers[0])  # looks switch its modes, and its name is on record

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Refuse a run that is not the one that was foreseen."""
        if self._hosted is None or self._hosted.run is None:
            return
        n_steps = self._hosted.plan.n_steps
        if trainer.global_step:
            raise ValueError(
                f"A trial begins at step 0, but `ckpt_path` lets it go on from step {trainer.global_step}: leave it "
                "out; a study goes on with the next trial."
            )
        if trainer.estimated_stepping_batches != n_steps:
            raise ValueError(
                f"A trial of {n_steps} steps was foreseen, but the Trainer makes {trainer.estimated_stepping_batches}: "
                "give the fit the loader that `loader` returned, and no other."
            )

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:  # noqa: ARG002
        """See the run's first loss with its graph."""
        if self._done == 0:
            self._graph = loss

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Count the step that the batch ended, and stop the run where it is pruned.

        Raises:
            optuna.TrialPruned: see :func:`ww_opt.report`; on several ranks :attr:`value` does.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._loss = self._loss + (0.0 if loss is None else loss.detach())
        if self._hosted is None or trainer.global_step <= self._done:
            return
        loss, self._loss = self._loss, 0.0
        graph, self._graph = self._graph, None
        self._done += 1
        self._ended = self._hosted.step(loss, graph)
        if self._ended is None:
            return
        if self._hosted.plan.team.n == 1:
            raise self._ended
        trainer.should_stop = True

    def _begin(self, module: Any, *, is_built: bool = False) -> Hosted:
        """Return the trial of this fit, which its first caller begins."""
        self._is_built = self._is_built or is_built
        if self._hosted is None:
            self._hosted = Hosted(self._trial, module, self._plan(), self._asked, training_loss)
        return self._hosted

    def _plan(self) -> Plan:
        trainer = self._trainer
        if trainer is None:
            raise ValueError(
                "A trial's loader belongs into a fit with its callback, but no fit has begun: give the Trainer "
                "`callbacks=[tuning]`, and `fit` the loader."
            )
        if self._planned is None:
            self._planned = plan_of(trainer, self._source, self._asked.late_options)
            if self._planned.late is None and self._asked.late is not False and not is_settled(self._trial):
                raise ValueError(
                    "Late entry needs the fit's loader, but it was not asked for: `trainer.fit(model, "
                    "tuning.loader(train_loader))`, or give `late=False`."
                )
        return self._planned
