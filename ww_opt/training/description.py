"""A model's layers as a table: what belongs to which, and under which label."""

from __future__ import annotations

from torch import nn

from ww_opt.training.labels import Label, LayerName, by_layer
from ww_opt.training.layerwise import Layer, labelled

__all__ = ["description"]

_COLUMNS = ("label", "layer", "kind", "weights", "not decayed", "dropout")


def description(model: nn.Module, label: Label = by_layer) -> str:
    """Return the table, one line a layer, by label; names within a layer are given without the layer's own.

    Dropout belongs to the layer it follows in the order of registration; where a model registers its modules in another
    order than it uses them, this is the place to see it, and :func:`ww_opt.trace_dropout` mends it.

    Raises:
        ValueError: as :func:`ww_opt.training.layerwise.labelled`.
    """
    lines = [_COLUMNS, *(_line(own, layer) for own, members in labelled(model, label).items() for layer in members)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _line(label: str, layer: Layer) -> tuple[str, ...]:
    kind = layer.name.kind if isinstance(layer.name, LayerName) else ""
    return (str(label), str(layer.name), kind, *(_short(layer, own) for own in _fields(layer)))


def _fields(layer: Layer) -> tuple[tuple[str, ...], ...]:
    return layer.weights, layer.followers, layer.dropouts


def _short(layer: Layer, names: tuple[str, ...]) -> str:
    return ", ".join(name.removeprefix(f"{layer.name}.") for name in names) or "-"
