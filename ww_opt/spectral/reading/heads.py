"""Which weights are output layers: told from names, shapes and ties of all weights together, never from their order.

Order is a property of the container (registration, file, shard), not of the network.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ww_opt.spectral.reading.names import is_inner, named_output, plain_parts

__all__ = ["Heads", "Layer", "find_heads"]

_FUSED = (2, 3, 4, 6)
"""How many matrices are kept as one: gate and up, q and k and v, the gates of a recurrent layer."""


@dataclass(frozen=True)
class Layer:
    """What can be told of a weight without reading it.

    Args:
        path: dotted path of the module that holds it.
        kind: as in a row.
        shape: as it is stored; (out, in, ...) for most layers.
        is_hidden: it is a layer, so it may be an output layer.
        is_layer: it is one, or may be: what it takes in, another layer gives.
        is_ambiguous: a matrix without a bias that an embedding would look like.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    is_hidden: bool
    is_layer: bool
    is_ambiguous: bool = False


@dataclass(frozen=True)
class Heads:
    """Places of the output layers; of ``doubtful`` ones, which may be embeddings; of those that may be one unfound."""

    places: frozenset[int]
    doubtful: frozenset[int]
    candidates: frozenset[int]

    @property
    def is_found(self) -> bool:
        """Whether there is one."""
        return bool(self.places or self.doubtful)


@dataclass(frozen=True)
class _Item:
    place: int
    layer: Layer
    parts: tuple[str, ...]
    in_block: bool

    @property
    def out(self) -> int:
        return self.layer.shape[0]

    @property
    def is_matrix(self) -> bool:
        return len(self.layer.shape) == 2 and self.layer.kind in ("linear", "conv1d_hf", "parameter")


def find_heads(layers: Sequence[Layer], is_tied: bool) -> Heads:
    """Find the output layers of a network.

    In this order: by name (``head``, ``classifier``, ``lm_head``, and what holds such a layer), then, where no name
    tells, by weaker names (``out``, ``fc``); besides, matrices outside the blocks whose output size no layer takes in.
    Where all this finds nothing, the last of a numbered sequence in which each layer takes in what the one before
    gives. A layer is no output layer where nothing else would be left.

    Args:
        layers: all weights of the network, in any order.
        is_tied: an embedding is the output layer as well, so that none need be found.
    """
    items = _items(layers)
    outside = [item for item in items if item.layer.is_hidden and not item.in_block]
    candidates = [item for item in outside if item.is_matrix and not is_inner(item.parts)]
    ends = {item.place for item in _ends(candidates, items)}
    places = _by_name(outside, True)
    if not places and not is_tied:
        places = _weakly_named(outside, items, ends)
    doubtful = {item.place for item in candidates if item.place in ends - places and item.layer.is_ambiguous}
    doubtful -= _by_number(candidates, items)  # the last of a sequence is no embedding
    places |= ends - doubtful
    if not places and not doubtful and not is_tied:
        places = _by_number(candidates, items) or _odd_block(items)
    hidden = {item.place for item in items if item.layer.is_layer}
    if not hidden - places - doubtful:
        places, doubtful = set(), set()
    found = bool(places or doubtful or is_tied or len(hidden) < 2)
    unsure = frozenset() if found else frozenset(item.place for item in candidates)
    return Heads(frozenset(places), frozenset(doubtful), unsure)


def _items(layers: Sequence[Layer]) -> list[_Item]:
    """Each layer with its path as it matters: without wrappers and what all paths begin with."""
    paths = [plain_parts(layer.path) for layer in layers]
    shared = 0
    while len({tuple(path[: shared + 1]) for path in paths}) == 1 and all(len(path) > shared + 1 for path in paths):
        shared += 1
    own = [tuple(path[shared:]) for path in paths]
    siblings: Mapping[str, set[tuple[str, ...]]] = defaultdict(set)
    for path in own:
        siblings[_pattern(path[:-1])].add(path[:-1])
    return [
        _Item(place, layer, path, _in_block(path, len(siblings[_pattern(path[:-1])]) > 1))
        for place, (layer, path) in enumerate(zip(layers, own, strict=True))
    ]


def _pattern(parts: Iterable[str]) -> str:
    return re.sub(r"\d+", "#", ".".join(parts))


def _in_block(parts: tuple[str, ...], is_repeated: bool) -> bool:
    """Whether the layer is inside something that networks have many of; a list of output layers is no such thing."""
    named = named_output(parts)
    first = next((place for place, part in enumerate(parts) if re.search(r"\d", part)), len(parts))
    if named is not None and named[1] and named[0] - 1 <= first:
        return False
    for place, part in enumerate(parts[:-1]):
        if part.isdigit() and place > 0 and not all(other.isdigit() for other in parts[place + 1 :]):
            return True
    # `layers.0.0`, `layers.1.0` are a sequence of sequences
    return is_repeated and "#" in _pattern(parts[:-1]) and not parts[-1].isdigit()


def _by_name(items: Sequence[_Item], is_strong: bool) -> set[int]:
    groups: dict[tuple[str, ...], list[_Item]] = defaultdict(list)
    for item in items:
        named = named_output(item.parts)
        if named is not None and named[1] is is_strong:
            groups[item.parts[: named[0]]].append(item)
    return {place for container, group in groups.items() for place in _outputs_of(container, group)}


def _outputs_of(container: tuple[str, ...], group: Sequence[_Item]) -> set[int]:
    """Of the layers in an output module those at its end; a head of two layers has a hidden one."""
    direct = {item.place for item in group if item.parts == container}
    if direct:
        return direct
    named = [replace(item, parts=item.parts[len(container) :]) for item in group]
    inside = _by_name(named, True)  # such as `decode_head.classifier`
    if inside:
        return inside
    # an output module may call its last layer as attentions call theirs
    usual = [item for item in group if item.parts[-1] == "out_proj" or not is_inner(item.parts[len(container) :])]
    if len(usual) == 1:
        [item] = usual
        # what is before a decoder that is tied with the embedding
        return set() if item.parts[-1] in ("dense", "transform", "hidden") else {item.place}
    taken = {item.layer.shape[1] for item in group if len(item.layer.shape) > 1}
    ends = {item.place for item in usual if item.layer.shape and item.out not in taken}
    last = {item.place for item in usual if item.parts[-1] in ("out_proj", "out", "output", "final", "fc")}
    return ends or _by_number(usual, group) or last


def _weakly_named(outside: Sequence[_Item], items: Sequence[_Item], ends: set[int]) -> set[int]:
    """Those that nothing contradicts: a matrix of such a name goes on where another is an end; two, where none is."""
    places = _by_name(outside, False)
    kernels = {item.place for item in outside if not item.is_matrix}
    if ends:
        return places & (ends | kernels)
    if len(places) < 2:
        return places
    taken = _taken_in(items)
    return {item.place for item in items if item.place in places and item.layer.shape and item.out not in taken}


def _taken_in(items: Iterable[_Item]) -> Counter[int]:
    """Sizes that layers take in, and how many layers each."""
    return Counter(size for item in items if item.layer.is_layer for size in _inputs(item.layer))


def _inputs(layer: Layer) -> set[int]:
    """Sizes that a layer takes in: of a convolution both sides, since files do not tell its direction."""
    if len(layer.shape) < 3:
        return set(layer.shape[1:])
    return set(layer.shape[:2] if "conv" in layer.kind else layer.shape)


def _ends(candidates: Sequence[_Item], items: Sequence[_Item]) -> list[_Item]:
    """Those whose output no layer takes in: not as it is, not split, and not as the channels of a picture."""
    taken = _taken_in(items)
    by_matrices = _taken_in(item for item in items if len(item.layer.shape) == 2)
    channels = [size for size in _taken_in(item for item in items if len(item.layer.shape) > 2) if size >= 16]

    def goes_on(item: _Item) -> bool:
        own = item.layer.shape[1]
        by_others = (size for size, n in by_matrices.items() if size >= 8 and n > (size == own))
        return (
            item.out in taken
            or any(item.out == n * size for size in by_others for n in _FUSED)
            or any(item.out % size == 0 and _is_square(item.out // size) for size in channels)
        )

    return [item for item in candidates if not goes_on(item)]


def _is_square(n: int) -> bool:
    return n > 1 and round(n**0.5) ** 2 == n


def _numbered(path: Sequence[str]) -> tuple[str, tuple[int, ...]] | None:
    """``net.4`` -> ``net``, 4; ``fc3`` -> ``fc``, 3; ``layers.2.0`` -> ``layers``, (2, 0)."""
    parts = list(path)
    numbers: list[int] = []
    while parts and parts[-1].isdigit():
        numbers.insert(0, int(parts.pop()))
    if not numbers:
        found = re.fullmatch(r"(\D+)(\d+)", parts[-1]) if parts else None
        if not found:
            return None
        parts[-1], numbers = found[1], [int(found[2])]
    return ".".join(parts), tuple(numbers)


def _by_number(candidates: Sequence[_Item], items: Sequence[_Item]) -> set[int]:
    """The last of a plain sequence, where each layer takes in what the one before gives, flattened or not.

    What else is numbered in the same row (blocks, convolutions) stands before it; one layer alone is no sequence.
    """
    groups: dict[str, list[tuple[tuple[int, ...], _Item]]] = defaultdict(list)
    loose = 0
    for item in candidates:
        numbered = _numbered(item.parts)
        if numbered is None:
            loose += 1
        else:
            groups[numbered[0]].append((numbered[1], item))
    decoders = {stem: group for stem, group in groups.items() if re.search(r"(^|[._])dec(oder)?([._]|$)", stem)}
    if len(groups) > 1 and len(decoders) == 1:
        groups, loose = decoders, 0
    if len(groups) != 1 or loose:
        return set()
    [(stem, group)] = groups.items()
    group.sort(key=lambda pair: pair[0])
    last_number, last = group[-1]
    numbers = [number for item in items if (number := _number_in(item, stem))]
    chained = all(
        after.layer.shape[1] % max(before.layer.shape[0], 1) == 0 for (_, before), (_, after) in pairwise(group)
    )
    is_last = len(numbers) > 1 and max(numbers)[: len(last_number)] == last_number
    return {last.place} if chained and is_last else set()


def _number_in(item: _Item, stem: str) -> tuple[int, ...]:
    """The number of a layer, or of the block that it is in, in the row called ``stem``; empty: it is in another."""
    for end in range(1, len(item.parts) + 1):
        numbered = _numbered(item.parts[:end])
        if numbered is not None and numbered[0] == stem:
            rest = item.parts[end:]
            return (*numbered[1], *(map(int, rest) if all(part.isdigit() for part in rest) else ()))
    return ()


def _odd_block(items: Sequence[_Item]) -> set[int]:
    """A layer of the last block whose output no layer takes in, where the same layer of all other blocks goes on."""
    patterns: dict[str, list[_Item]] = defaultdict(list)
    for item in items:
        if item.in_block and item.layer.is_hidden and item.is_matrix:
            patterns[_pattern(item.parts)].append(item)
    ends = _ends([item for group in patterns.values() for item in group], items)
    found = set()
    for pattern, group in patterns.items():
        last = max(group, key=lambda item: [int(number) for number in re.findall(r"\d+", ".".join(item.parts))])
        if len(group) > 1 and [item for item in ends if _pattern(item.parts) == pattern] == [last]:
            found.add(last.place)
    return found
