"""Settings per layer -> optimizer parameter groups and dropout.

A *layer* is what owns a weight of two or more dimensions: a leaf module (``encoder.0``) or, where a
container holds the weight itself, the parameter (``experts``). Everything else belongs to a layer, shares its learning
rate and gets no weight decay. Biases and norm parameters belong to the layer they follow in their container, in the
module's order, or, where none comes before in there, to the first layer after them in it: a block's first norm is the
block's own. Dropout belongs to the layer it follows, in whichever container; to the first layer where none comes
before. What a container holds beside its layers (class tokens, position tables, ``A_log``) belongs to the first layer
inside that container. So does a weight that the model exempts from decay
(:mod:`ww_opt.training.decay`) go on as one of its layer's undecayed parameters. Names are those of the model inside its
wrappers. A *label function* maps layer names to labels (:mod:`ww_opt.training.labels`); settings are a ``dict`` from
label to :class:`LayerSettings`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ww_opt.training.decay import exempt, is_bias_table, is_table, own_key
from ww_opt.training.dropout import check_probability, has_added_dropout, has_own_dropout, set_dropout
from ww_opt.training.labels import Label, LayerName, by_layer, parts
from ww_opt.training.modes import asleep
from ww_opt.training.tracing import followed
from ww_opt.training.wrappers import plain_names

_PARAMETRIZATIONS = "parametrizations"  # torch's name for the module that holds the original tensors
_FIELDS = ("weights", "followers", "dropouts", "exempt")

__all__ = ["Layer", "LayerSettings", "apply_dropout", "labelled", "layers", "parameter_groups"]


@dataclass(frozen=True)
class LayerSettings:
    """What one label's layers are trained with; ``None`` leaves the optimizer's or the model's own value."""

    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    dropout: float | None = None
    init_scale: float | None = None


@dataclass(frozen=True)
class Layer:
    """One layer: its matrices, the parameters beside them that are not decayed, and the dropout modules behind it.

    ``name`` of a layer that :func:`layers` found is a :class:`ww_opt.training.labels.LayerName`. ``weights`` is empty
    where the model exempts all of them from decay: ``exempt`` are those of its matrices that are among the followers.
    """

    name: str
    weights: tuple[str, ...]
    followers: tuple[str, ...] = ()
    dropouts: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()

    @property
    def matrices(self) -> tuple[str, ...]:
        """All its matrices, decayed or not."""
        return (*self.weights, *self.exempt)


def layers(model: nn.Module) -> tuple[Layer, ...]:
    """List the trainable layers of ``model`` in the order in which its modules are registered.

    Frozen parameters (``requires_grad=False``) belong to no layer, and so does dropout that stays in eval mode
    (:func:`ww_opt.training.modes.asleep`). Shared parameters count once, where they stand first. Dropout that
    ``add_dropout`` put behind a container belongs to the last layer inside; what
    :func:`ww_opt.trace_dropout` saw belongs to the layer that it follows. Where nothing but tables is trained
    (prompts), they are layers.

    Raises:
        ValueError: a lazy parameter has no shape yet.
    """
    walk = _Walk(model)
    walk.visit("", model)
    if not walk.found:
        walk = _Walk(model, tables_are_layers=True)
        walk.visit("", model)
    for first in list(walk.found.values())[:1]:
        first["dropouts"][:0] = walk.early["dropouts"]
    _move(walk.found, followed(model))
    return tuple(
        Layer(LayerName(name, walk.kinds[name], part), **{field: tuple(members[field]) for field in _FIELDS})
        for (name, members), part in zip(walk.found.items(), parts(list(walk.found)), strict=True)
    )


def _move(found: Mapping[str, defaultdict[str, list[str]]], to: Mapping[str, str]) -> None:
    """Give dropout to the layers that it follows, where that is known of both."""
    for members in found.values():
        moved = [name for name in members["dropouts"] if to.get(name) in found]
        members["dropouts"] = [name for name in members["dropouts"] if name not in moved]
        for name in moved:
            found[to[name]]["dropouts"].append(name)


class _Walk:
    """One pass over a model's modules: names by layer and field; ``early`` is what stands before the first layer.

    ``_waiting`` are parameters that no layer precedes in their container, ``_n_outside`` the layers found outside it.
    """

    def __init__(self, model: nn.Module, *, tables_are_layers: bool = False) -> None:
        self.found: dict[str, defaultdict[str, list[str]]] = {}
        self.early: defaultdict[str, list[str]] = defaultdict(list)
        self.kinds: dict[str, str] = {}
        self._tables_are_layers = tables_are_layers
        self._plain = plain_names(model)
        self._exempt = exempt(model, self._plain)
        self._asleep = set(asleep(model))
        self._current = self.early
        self._waiting: list[str] = []
        self._n_outside = 0
        self._seen: set[int] = set()

    def visit(self, name: str, module: nn.Module, is_attention: bool = False) -> None:
        if not self._is_new(module):
            return
        is_attention = is_attention or (self._plain(name) != "" and _is_attention(name, module))
        direct = [(key, tensor) for key, tensor in _own_parameters(name, module) if self._is_new(tensor)]
        weights = [(key, tensor) for key, tensor in direct if self._is_weight(module, key, tensor)]
        beside = [self._plain(key) for key, _ in direct if key not in dict(weights)]
        n_outside = self._n_outside
        if _children(module):
            self._n_outside = len(self.found)
        # matrices first: a bias registered before its weight still follows it
        for key, tensor in weights:
            owner = _owner(self._plain(name), module, self._plain(key))
            self._current = self.found.setdefault(owner, defaultdict(list))
            self.kinds.setdefault(owner, _kind(module, tensor, is_attention))
            self._current["followers"] += self._waiting
            self._waiting.clear()
            for field in ("followers", "exempt") if key in self._exempt else ("weights",):
                self._current[field].append(self._plain(key))
        self._place(beside)
        is_awake = module not in self._asleep
        if has_own_dropout(module) and not has_added_dropout(module) and is_awake:
            self._current["dropouts"].append(self._plain(name))
        for key, child in _children(module):
            self.visit(_join(name, key), child, is_attention)
        self._n_outside, waiting, self._waiting = n_outside, self._waiting, []
        self._place(waiting)
        if has_added_dropout(module) and is_awake:
            self._current["dropouts"].append(self._plain(name))  # the hook acts behind everything inside

    def _place(self, names: list[str]) -> None:
        found_inside = len(self.found) > self._n_outside
        (self._current["followers"] if found_inside else self._waiting).extend(names)

    def _is_weight(self, module: nn.Module, key: str, parameter: nn.Parameter) -> bool:
        if parameter.ndim < 2 or isinstance(module, nn.LayerNorm | nn.RMSNorm):  # norms may be of any shape
            return False
        is_beside = (
            is_table(key, parameter)
            or is_bias_table(key, module)
            or (key in self._exempt and "weight" not in own_key(key))
        )
        return self._tables_are_layers or not is_beside

    def _is_new(self, item: nn.Module | nn.Parameter) -> bool:
        new = id(item) not in self._seen
        self._seen.add(id(item))
        return new


def _own_parameters(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters of the module itself; parametrised ones keep their long names."""
    sources = [(name, module.named_parameters(recurse=False))]
    if is_parametrized(module):
        sources.append((_join(name, _PARAMETRIZATIONS), module.get_submodule(_PARAMETRIZATIONS).named_parameters()))
    for prefix, pairs in sources:
        for key, tensor in pairs:
            if is_lazy(tensor):
                raise ValueError(f"Lazy parameters have no shape: send a batch through {_join(prefix, key)!r} first.")
            if tensor.requires_grad:
                yield _join(prefix, key), tensor


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(key, child) for key, child in module.named_children() if key != _PARAMETRIZATIONS]


def _owner(name: str, module: nn.Module, parameter_name: str) -> str:
    return name if name and not _children(module) else own_key(parameter_name)


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _is_attention(name: str, module: nn.Module) -> bool:
    own = name.rpartition(".")[2].lower()
    return "attention" in type(module).__name__.lower() or "attention" in own or "attn" in own


def _kind(module: nn.Module, weight: nn.Parameter, is_attention: bool) -> str:
    """Tell the kind of a layer by its module; names of classes stand for those that torch does not have."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    if is_attention:
        return "attention"
    if isinstance(module, _ConvNd):
        return "conv"
    return "linear" if weight.ndim == 2 and not _children(module) else "other"


def labelled(model: nn.Module, label: Label = by_layer) -> dict[str, tuple[Layer, ...]]:
    """Group the layers of ``model`` by label, in order of first appearance.

    Raises:
        ValueError: the model has no trainable weight of two or more dimensions.
    """
    groups: dict[str, list[Layer]] = {}
    for layer in layers(model):
        groups.setdefault(label(layer.name), []).append(layer)
    if not groups:
        raise ValueError(
            "A model needs at least one trainable weight of 2 or more dimensions, but "
            f"{type(model).__name__} has none: build the layers in `build_model`, and leave some unfrozen."
        )
    return {name: tuple(members) for name, members in groups.items()}


def parameter_groups(
    model: nn.Module, settings: Mapping[str, LayerSettings], label: Label = by_layer
) -> list[dict[str, Any]]:
    """Build optimizer parameter groups from per-label settings.

    Each label gives a group named after it and, where it has biases, norm parameters or others that are not decayed, a
    second one, ``<label>:no_decay``. ``params`` holds (name, tensor) pairs, so torch keeps ``param_names`` in its
    state; the names are those of the model inside its wrappers.

    Raises:
        ValueError: labels of the model and keys of ``settings`` differ; the message shows both.
    """
    groups = labelled(model, label)
    if set(groups) != set(settings):
        raise ValueError(
            "Every label needs settings and every setting a label, but got "
            f"labels of the model: {sorted(groups)}; settings for: {sorted(settings)}."
        )
    plain = plain_names(model)
    tensors = {plain(name): tensor for name, tensor in model.named_parameters(remove_duplicate=False)}
    result: list[dict[str, Any]] = []
    for name, members in groups.items():
        own = settings[name]
        shared = {key: value for key in ("lr", "momentum") if (value := getattr(own, key)) is not None}
        decay = {} if own.weight_decay is None else {"weight_decay": own.weight_decay}
        weights = [(key, tensors[key]) for layer in members for key in layer.weights]
        followers = [(key, tensors[key]) for layer in members for key in layer.followers]
        if weights:
            result.append({"name": name, "params": weights, **shared, **decay})
        if followers:
            result.append({"name": f"{name}:no_decay", "params": followers, **shared, "weight_decay": 0.0})
    return result


def apply_dropout(model: nn.Module, settings: Mapping[str, LayerSettings], label: Label = by_layer) -> None:
    """Set every dropout of ``model`` to its label's rate, in place; ``None`` leaves it as it is.

    Raises:
        ValueError: a rate lies outside [0, 1], or is set for a label that the model lacks or that has no dropout.
    """
    groups = labelled(model, label)
    plain = plain_names(model)
    modules = {plain(name): module for name, module in model.named_modules()}
    for name, own in settings.items():
        if name not in groups:
            raise ValueError(f"Settings need a label of the model, but got {name!r}; labels: {sorted(groups)}.")
        p = own.dropout
        if p is None:
            continue
        check_probability(p)
        places = [place for layer in groups[name] for place in layer.dropouts]
        if not places:
            raise ValueError(
                f"Dropout needs a dropout module, but label {name!r} has none: add one to the model, or call "
                "`add_dropout(model, names)` in `build_model`."
            )
        for place in places:
            set_dropout(modules[place], p)
