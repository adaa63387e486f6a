"""A module's class -> the kind of its layer: the only file that knows layer types."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["is_torchs_own", "kind_of", "shape_of"]

# by class name along the method resolution order: torch's own, torch's quantised twins, Hugging Face's, subclasses
_KINDS = {
    "Linear": "linear",
    "Bilinear": "bilinear",
    "Embedding": "embedding",
    "EmbeddingBag": "embedding",
    "MultiheadAttention": "attention",
    "LSTM": "lstm",
    "LSTMCell": "lstm",
    "GRU": "gru",
    "GRUCell": "gru",
    "RNN": "rnn",
    "RNNCell": "rnn",
    "Conv1D": "conv1d_hf",
    **{f"Conv{transposed}{n}d": "conv" for n in (1, 2, 3) for transposed in ("", "Transpose")},
}
_N_DIMS = {"linear": (2,), "bilinear": (3,), "embedding": (2,), "conv1d_hf": (2,), "conv": (3, 4, 5)}


def kind_of(module: nn.Module, key: str, weight: Tensor) -> str:
    """The kind of the layer that parameter ``key`` of a module makes; ``parameter`` where no class tells."""
    name = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in _KINDS), "")
    if isinstance(module, torch.jit.ScriptModule):
        name = str(getattr(module, "original_name", ""))
    kind = _KINDS.get(name, "parameter")
    if kind in _N_DIMS and (key != "weight" or weight.ndim not in _N_DIMS[kind]):
        return "parameter"
    if kind != "conv":
        return kind
    groups = getattr(module, "groups", 1)
    grouping = "" if groups == 1 else "depthwise_" if weight.shape[1] == 1 else "grouped_"
    return f"{grouping}conv{'_transpose' if 'Transpose' in name else ''}{weight.ndim - 2}d"


def is_torchs_own(module: nn.Module) -> bool:
    """Whether torch made its class, as that of a norm, so that its weight is no layer's unless its kind is known."""
    return type(module).__module__.startswith("torch.nn.modules") and type(module) is not nn.Module


def shape_of(value: object) -> tuple[int, ...] | None:
    """Shape of a tensor; empty of an uninitialised one, and of a quantised module's bias, which is a method."""
    if isinstance(value, Tensor):
        return () if is_lazy(value) else tuple(value.shape)
    return () if callable(value) else None
