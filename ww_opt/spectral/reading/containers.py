"""A checkpoint's mapping -> the one state dict in it, whatever its key, and where it stood."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ww_opt.spectral.reading.state_dicts import tensor_in

__all__ = ["Found", "state_dict_in"]

Found = tuple[Mapping[str, Any], str]
"""A state dict and the keys that led to it, joined by dots; empty: it was the mapping itself."""
_DEEPEST = 4
# what a training keeps beside the network; it may hold matrices under the network's own names
_BESIDE = re.compile(r"optim|sched|scaler|rng|random_state|(^|_)sampler", re.I)


def state_dict_in(mapping: Mapping[str, Any], what: str) -> Found:
    """Find the state dict in a checkpoint: the mapping itself, or the one value in it that is one, however deep.

    A state dict maps names to tensors, at least one of two or more dimensions. The state of an optimizer is none.

    Raises:
        ValueError: there are no tensors in it, or several state dicts; the message names them and how to choose.
    """
    if _is_named_as_layers_are(mapping):  # whatever else it holds
        return mapping, ""
    found = list(_inside(mapping, ()))
    found = [(path, inner) for path, inner in found if _is_named_as_layers_are(inner)] or found
    if len(found) > 1:
        paths = [path for path, _ in found]
        keys = "".join(f"[{key!r}]" for key in paths[0])
        names = ", ".join(".".join(path) for path in paths)
        raise ValueError(
            f"A checkpoint must hold one network, but {what} holds {len(found)} state dicts: {names}. Load it "
            f"(`checkpoint = torch.load(path)`) and pass the one that is meant, such as `checkpoint{keys}`."
        )
    if found:
        [(path, inner)] = found
        return inner, ".".join(path)
    if any(tensor_in(value) is not None for value in mapping.values()):
        return mapping, ""
    raise ValueError(
        f"A state dict must map names to tensors, alone or as a value of a checkpoint, but {what} holds only "
        f"{[str(key) for key in mapping][:8]}: pass `model.state_dict()`."
    )


def _inside(mapping: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for key, value in mapping.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or _is_of_training(key, value):
            continue
        if any(_matrices(value)):
            yield (*path, key), value
        elif len(path) < _DEEPEST:
            yield from _inside(value, (*path, key))


def _is_of_training(key: str, value: Mapping[str, Any]) -> bool:
    return {"state", "param_groups"} <= set(value) or bool(_BESIDE.search(key))


def _matrices(mapping: Mapping[str, Any]) -> Iterator[str]:
    for key, value in mapping.items():
        tensor = tensor_in(value) if isinstance(key, str) else None
        if tensor is not None and tensor.ndim >= 2:
            yield key


def _is_named_as_layers_are(mapping: Mapping[str, Any]) -> bool:
    return any("." in key or key == "weight" for key in _matrices(mapping))
