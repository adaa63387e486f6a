"""Which parameters are decayed: matrices of layers, less what the model exempts and what is a table beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

__all__ = ["exempt", "is_bias_table", "is_table", "own_key"]

_ORIGINAL = re.compile(r"\bparametrizations\.(\w+)\..+$")  # torch keeps what a parametrised weight is made of there
_WORDS = re.compile("pos|positions?|positional|tokens?|cls|pe|emb|embed|embeddings?|bias|prompts?")


def own_key(name: str) -> str:
    """Name of the parameter that a parametrisation's original tensor stands for; other names stay."""
    return _ORIGINAL.sub(r"\1", name)


def exempt(model: nn.Module, plain: Callable[[str], str]) -> frozenset[str]:
    """Names of the parameters that the model keeps from decay, as ``named_parameters`` of ``model`` has them.

    Asked are ``no_weight_decay()`` (names, or patterns with ``*``) and ``no_weight_decay_keywords()`` (parts of names)
    of the model and of every module in it, relative to that module, as timm defines them; and the marks
    ``parameter._no_weight_decay = True`` (Mamba) and ``parameter._optim = {"weight_decay": 0}`` (S4).
    """
    found = {name for name, parameter in model.named_parameters(remove_duplicate=False) if _is_marked(parameter)}
    for path, module in model.named_modules():
        patterns, words = _listed(module, "no_weight_decay"), _listed(module, "no_weight_decay_keywords")
        if not patterns and not words:
            continue
        for name, _ in module.named_parameters(remove_duplicate=False):
            key = own_key(plain(name))
            if any(fnmatchcase(key, pattern) for pattern in patterns) or any(word in key for word in words):
                found.add(f"{path}.{name}" if path else name)
    return frozenset(found)


def _is_marked(parameter: nn.Parameter) -> bool:
    options = getattr(parameter, "_optim", None)
    is_free = isinstance(options, Mapping) and options.get("weight_decay", 1.0) == 0
    return is_free or bool(getattr(parameter, "_no_weight_decay", False))


def _listed(module: nn.Module, name: str) -> tuple[str, ...]:
    value = getattr(module, name, ())
    if callable(value) and not isinstance(value, nn.Module):
        value = value()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Iterable) and not isinstance(value, torch.Tensor | nn.Module):
        return tuple(item for item in value if isinstance(item, str))
    return ()


def is_bias_table(name: str, module: nn.Module) -> bool:
    """Whether a parameter is a table of biases that is kept as an embedding, as T5's ``relative_attention_bias`` is."""
    own = own_key(name).rpartition(".")[0].rpartition(".")[2]
    return isinstance(module, nn.Embedding) and "bias" in own.lower().split("_")


def is_table(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter of two or more dimensions is no matrix of a layer, by its name and shape.

    So are class tokens and layer scales (one side longer than 1), position tables and registers (1 x n x d), and what
    its name calls a position, a token, an embedding or a bias. A parameter called a weight is one.
    """
    key = own_key(name).rpartition(".")[2]
    if "weight" in key:
        return False
    if sum(side > 1 for side in parameter.shape) < 2 or (parameter.ndim > 2 and parameter.shape[0] == 1):
        return True
    words = re.split(r"_|(?<=[a-z])(?=[A-Z])", key)
    return key == "A_log" or any(_WORDS.fullmatch(word.lower()) for word in words)
