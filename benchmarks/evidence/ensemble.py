"""Train many configurations of one task at once: the steps of ``ww_opt.training.run.train``, several times faster.

Small models spend most of a step on calls, not on arithmetic. Here one call serves all configurations: their weights
are stacked and the forward pass is mapped over the stack. The optimizers are torch's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from ww_opt.training.labels import Label, by_layer
from ww_opt.training.layerwise import LayerSettings, apply_dropout, parameter_groups
from ww_opt.training.task import Task

__all__ = ["Ensemble", "Look", "Settings", "head_norms"]

Settings = dict[str, LayerSettings]

_LOSS_BATCHES = 8  # as in `train`


class _Dropout(nn.Module):
    """Dropout whose rate is a buffer, so that each configuration of a stack has its own."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.register_buffer("p", torch.tensor(p), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.get_buffer("p")
        return x * (torch.rand_like(x) >= p) / (1.0 - p) if self.training else x


@dataclass(frozen=True)
class Look:
    """The state after ``step`` steps; losses as in ``training.run.Checkpoint``, one per configuration, ``[k]``."""

    step: int
    train_loss: torch.Tensor
    running_loss: torch.Tensor


class Ensemble:
    """Models of one architecture and one initial state, each with its own settings per layer, on the CPU.

    Args:
        task: what is trained.
        settings: of each of the ``k`` configurations, by label.
        label: which layers share their settings.
        seed: of the initial weights and of the order of the data, which all configurations share.
    """

    def __init__(self, task: Task, settings: Sequence[Settings], label: Label = by_layer, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.task = task
        self._skeleton = task.build_model()
        members = [copy.deepcopy(self._skeleton) for _ in settings]
        for member, own in zip(members, settings, strict=True):
            apply_dropout(member, own, label)
        groups = [parameter_groups(member, own, label) for member, own in zip(members, settings, strict=True)]
        for model in (self._skeleton, *members):
            _replace_dropout(model)
        self._parameters, self._buffers = stack_module_state(members)
        self._views: list[tuple[nn.Parameter, str, int]] = []
        self._optimizer = task.optimizer([self._group(k, group) for k, own in enumerate(groups) for group in own])
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]

    def _group(self, k: int, group: dict[str, Any]) -> dict[str, Any]:
        """Make a member's parameter group act on its slice of the stack."""
        names = [name for name, _ in group["params"]]
        views = [nn.Parameter(self._parameters[name].detach()[k]) for name in names]
        self._views += [(view, name, k) for view, name in zip(views, names, strict=True)]
        return {**group, "params": views}

    def train(self, n_steps: int, interval_steps: int) -> Iterator[Look]:
        """Train all members; yield every ``interval_steps`` steps, first at step 0. Looking changes nothing."""
        state = torch.get_rng_state()
        probe = list(islice(self.task.epoch(), _LOSS_BATCHES))
        yield Look(0, self._clean_loss(probe), torch.full((len(self),), torch.nan))
        torch.set_rng_state(state)
        batches = _endless(self.task)
        running = torch.zeros(len(self))
        for step in range(n_steps):
            factor = self.task.schedule(step / n_steps)
            for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
                group["lr"] = rate * factor
            running += self._step(next(batches))
            if (step + 1) % interval_steps == 0:
                state = torch.get_rng_state()
                yield Look(step + 1, self._clean_loss(probe), running / interval_steps)
                torch.set_rng_state(state)
                running = torch.zeros(len(self))

    def __len__(self) -> int:
        return int(next(iter(self._parameters.values())).shape[0])

    def _losses(self, batch: Any) -> torch.Tensor:
        losses: torch.Tensor = self._map(lambda model: self.task.loss(model, batch))
        return losses

    def _map(self, function: Callable[[Any], Any]) -> Any:
        """Call ``function(model)`` for all members at once; results gain a first dimension, of length ``k``."""

        def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> Any:
            return function(partial(functional_call, self._skeleton, {**parameters, **buffers}))

        return torch.vmap(one, randomness="different")(self._parameters, self._buffers)

    def _step(self, batch: Any) -> torch.Tensor:
        self._skeleton.train()
        losses = self._losses(batch)
        stacked = list(self._parameters.values())
        gradients = dict(zip(self._parameters, torch.autograd.grad(losses.sum(), stacked), strict=True))
        for view, name, k in self._views:
            view.grad = gradients[name][k].contiguous()
        self._optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def _clean_loss(self, probe: Sequence[Any]) -> torch.Tensor:
        self._skeleton.eval()
        return torch.stack([self._losses(batch) for batch in probe]).mean(0)

    @torch.no_grad()
    def logits(self, inputs: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return all members' outputs in eval mode, ``[k, n, ...]``, for inputs given in parts."""
        self._skeleton.eval()
        return torch.cat([self._map(partial(_called, x)) for x in inputs], dim=1)

    def state(self, k: int) -> dict[str, torch.Tensor]:
        """Return the state dict of member ``k``, a copy."""
        stacked = {**self._parameters, **self._buffers}
        return {name: stacked[name][k].detach().clone() for name in self._skeleton.state_dict()}


def head_norms(ensemble: Ensemble, batch: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, per member, the norms of the gradient of one weight on a batch, in eval mode, and of the weight."""
    ensemble._skeleton.eval()
    weight = ensemble._parameters[name]
    (gradient,) = torch.autograd.grad(ensemble._losses(batch).sum(), [weight])
    return gradient.flatten(1).norm(dim=1), weight.detach().flatten(1).norm(dim=1)


def _called(x: torch.Tensor, model: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return model(x)


def _replace_dropout(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, _Dropout(child.p))


def _endless(task: Task) -> Iterator[Any]:
    while True:
        yield from task.epoch()
