"""Label functions: which layers share their settings.

A label function maps a layer's name to a label. The name is a string that knows more (:class:`LayerName`): what kind of
layer it is and which part of the model it stands in, so that a function of your own may go by these as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Label = Callable[[str], str]

__all__ = ["KINDS", "Label", "LayerName", "by_block", "by_depth", "by_kind", "by_layer", "by_prefix", "parts", "tied"]

KINDS = ("embedding", "attention", "conv", "recurrent", "linear", "other")
"""What :func:`by_kind` tells apart."""
STEM, HEAD, REST = "stem", "head", "rest"


class LayerName(str):
    """A layer's dotted name; ``kind`` is one of ``KINDS``, ``part`` is what :func:`by_depth` returns."""

    kind: str
    part: str

    def __new__(cls, name: str, kind: str = "other", part: str = "") -> LayerName:
        """Make the name; ``part`` is the name itself where none is given."""
        own = super().__new__(cls, name)
        own.kind, own.part = kind, part or str(name)
        return own


def by_layer(name: str) -> str:
    """Every layer on its own."""
    return str(name)


def tied(name: str) -> str:  # noqa: ARG001
    """One label, ``all``, for the whole model."""
    return "all"


def by_block(depth: int = 1) -> Label:
    """Layers whose dotted names agree in all but the last ``depth`` parts share a label.

    ``by_block()`` puts ``blocks.0.attn`` and ``blocks.0.mlp`` into ``blocks.0``; a name with too few
    parts keeps itself as its label. Where names differ in length, as Hugging Face's do, see :func:`by_depth`.
    """
    if depth < 1:
        raise ValueError(f"`depth >= 1` must hold, but got depth={depth}: use `by_layer` for no grouping.")

    def label(name: str) -> str:
        steps = name.split(".")
        return ".".join(steps[:-depth]) if len(steps) > depth else str(name)

    return label


def by_prefix(*prefixes: str | int) -> Label:
    """Layers whose dotted names begin alike share a label.

    ``by_prefix("encoder", "encoder.layer.0", "head")`` labels each layer with the longest of these that its name begins
    with, whole parts only, and all others ``rest``. ``by_prefix(2)`` takes the first two parts of each name.

    Raises:
        TypeError: neither one number nor strings.
        ValueError: no prefix, an empty one, or a number under 1.
    """
    if len(prefixes) == 1 and isinstance(prefixes[0], int) and not isinstance(prefixes[0], bool):
        depth = prefixes[0]
        if depth < 1:
            raise ValueError(f"`depth >= 1` must hold, but got depth={depth}: use `tied` for one label.")
        return lambda name: ".".join(name.split(".")[:depth])
    known = sorted((own for own in prefixes if isinstance(own, str)), key=len, reverse=True)
    if len(known) != len(prefixes):
        raise TypeError(f"`by_prefix` takes one number or strings, but got {prefixes!r}.")
    if not known or not all(known):
        raise ValueError(f"`by_prefix` needs prefixes that are not empty, but got {prefixes!r}.")
    return lambda name: next((own for own in known if f"{name}.".startswith(f"{own}.")), REST)


def by_kind(name: str) -> str:
    """Layers of one kind share a label: ``embedding``, ``attention``, ``conv``, ``recurrent``, ``linear``, ``other``.

    A layer inside a module that is called attention, by its class or its name, is ``attention``, its output too.

    Raises:
        TypeError: a plain string, which does not know what kind of layer it names.
    """
    if not isinstance(name, LayerName):
        raise TypeError(f"`by_kind` goes by the layers of a model, but got the string {name!r}: pass it as `label=`.")
    return name.kind


def by_depth(name: str) -> str:
    """One label for each repeated block, one for what comes before the first of them, and one for what comes after.

    A block is the name up to its first number. A BERT of two layers gives ``stem`` (the embeddings),
    ``bert.encoder.layer.0``, ``bert.encoder.layer.1`` and ``head`` (pooler and classifier); a layer between blocks
    keeps its name, and so do all layers of a model without numbers. Before and after go by the order of registration.

    Raises:
        TypeError: a plain string, which does not know where in the model its layer stands.
    """
    if not isinstance(name, LayerName):
        raise TypeError(f"`by_depth` goes by the layers of a model, but got the string {name!r}: pass it as `label=`.")
    return name.part


def parts(names: Sequence[str]) -> list[str]:
    """Return what :func:`by_depth` says of each layer, by all names in order."""
    blocks = [_block(name) for name in names]
    numbered = [place for place, block in enumerate(blocks) if block]
    if not numbered:
        return [str(name) for name in names]

    def part(place: int) -> str:
        if place < numbered[0]:
            return STEM
        return HEAD if place > numbered[-1] else blocks[place] or str(names[place])

    return [part(place) for place in range(len(names))]


def _block(name: str) -> str:
    """Return the name up to its first number; empty where it has none."""
    steps = name.split(".")
    first = next((place for place, step in enumerate(steps) if step.isdigit()), None)
    return "" if first is None else ".".join(steps[: first + 1])
