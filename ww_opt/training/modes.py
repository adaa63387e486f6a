"""Train and eval modes of a model: what its builder chose, and how they come back after a look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ww_opt.training.wrappers import innermost

__all__ = ["Modes", "asleep", "evaluating", "set_optimizer_mode"]


def asleep(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules of ``model`` that stay in eval mode while it is trained.

    What is in eval mode while the rest is not was put there: a frozen batch norm keeps its statistics, a frozen part
    its dropout off. A model that is in eval mode as a whole, as ``from_pretrained`` returns it, was not: there only
    parts whose parameters are all frozen stay in eval mode.
    """
    root = innermost(model)
    leaves = [module for module in root.modules() if not any(True for _ in module.children())]
    if root.training and any(leaf.training for leaf in leaves):
        return tuple(module for module in model.modules() if not module.training)
    found: dict[nn.Module, None] = {}

    def visit(module: nn.Module, is_frozen: bool) -> None:
        parameters = list(module.parameters())
        if parameters:
            is_frozen = not any(parameter.requires_grad for parameter in parameters)
        if is_frozen and not module.training:
            found[module] = None
        for child in module.children():
            visit(child, is_frozen)

    visit(root, False)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Modes:
    """The modes that a model is trained in; see :func:`asleep`."""

    model: nn.Module
    asleep: tuple[nn.Module, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Modes:
        """Remember the modes that ``model`` is in now."""
        return cls(model, asleep(model))

    def train(self, optimizer: Any = None) -> None:
        """Put model and optimizer into train mode, and what sleeps back into eval mode."""
        self.model.train()
        for module in self.asleep:
            module.training = False
        set_optimizer_mode(optimizer, True)


@contextmanager
def evaluating(model: nn.Module, optimizer: Any = None) -> Iterator[None]:
    """Put model and optimizer into eval mode inside, and each module back into its own mode afterwards."""
    before = [(module, module.training) for module in model.modules()]
    was_training = any(group.get("train_mode", True) for group in getattr(optimizer, "param_groups", ()))
    model.eval()
    set_optimizer_mode(optimizer, False)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
        set_optimizer_mode(optimizer, was_training)


def set_optimizer_mode(optimizer: Any, is_training: bool) -> None:
    """Switch an optimizer that has modes of its own, as schedule-free ones do: their eval weights are averages."""
    switch = getattr(optimizer, "train" if is_training else "eval", None)
    if callable(switch):
        switch()
