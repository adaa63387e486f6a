"""One name for a layer, whatever the model is wrapped in: torch.compile, DataParallel, FSDP, activation checkpointing.

The instrument keeps the same rule for its own rows (``spectral/reading/matrices.py``); the two folders do not know
each other, so it is written twice, and a test holds them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["innermost", "load_plain_state", "plain_names", "plain_state"]

# nobody's own layer is called so, wherever it stands in a name
_INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_PARALLEL = "module."
_PARALLEL_TYPES = (nn.DataParallel, DistributedDataParallel)


def plain_names(model: nn.Module) -> Callable[[str], str]:
    """Return a function from names of parameters and modules of ``model`` to those without wrappers."""
    prefix = _shared_prefix(name for name, _ in model.named_parameters(remove_duplicate=False))
    return lambda name: _without(name, prefix)


def plain_state(model: nn.Module) -> dict[str, Any]:
    """Return the state dict of ``model`` as the model inside its wrappers would name it, so that it loads there too."""
    prefix = _parallel_prefix(model)
    return {_without(name, prefix): value for name, value in model.state_dict().items()}


def load_plain_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load what :func:`plain_state` returned into ``model``, wrapped or not, whichever it was when it was saved.

    Raises:
        RuntimeError: as ``load_state_dict``, where names or shapes differ.
    """
    prefix = _parallel_prefix(model)
    own = {_without(name, prefix): name for name in model.state_dict()}
    model.load_state_dict({own.get(name, name): value for name, value in state.items()})


def innermost(model: nn.Module) -> nn.Module:
    """Return the model inside its outer wrappers."""
    while True:
        children = dict(model.named_children())
        names = [name.removesuffix(".") for name in _INNER]
        names += ["module"] if isinstance(model, _PARALLEL_TYPES) else []
        inner = next((children[name] for name in names if name in children), None)
        if inner is None:
            return model
        model = inner


def _parallel_prefix(model: nn.Module) -> str:
    """What wrappers put before every name; a child that the user himself calls ``module`` is none."""
    prefix = ""
    while True:
        if isinstance(model, _PARALLEL_TYPES):
            model, prefix = model.module, prefix + _PARALLEL
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model, prefix = inner, prefix + _INNER[0]
        else:
            return prefix


def _shared_prefix(names: Iterable[str]) -> str:
    rest = list(names)
    prefix = ""
    while found := next((w for w in (_PARALLEL, *_INNER) if rest and all(name.startswith(w) for name in rest)), ""):
        prefix += found
        rest = [name.removeprefix(found) for name in rest]
    return prefix


def _without(name: str, prefix: str) -> str:
    result = f"{name}.".removeprefix(prefix)
    for wrapper in _INNER:
        result = result.replace(wrapper, "")
    return result.removesuffix(".")
