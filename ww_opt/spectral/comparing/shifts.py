"""What a comparison says: one row per layer on both sides, what broke, and what stands on one side only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from ww_opt.spectral.comparing.distances import Pair
from ww_opt.spectral.comparing.matching import Difference
from ww_opt.spectral.findings import Role
from ww_opt.spectral.rows import LayerDiagnostics

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LEVELS", "Break", "Broken", "Comparison", "LayerShift", "Level", "Mark", "Rule", "Verdict"]

Verdict = Literal["broken", "missing", "changed", "unchanged"]
Level = Literal["broken", "missing", "changed"]
LEVELS: tuple[Level, ...] = ("broken", "missing", "changed")
"""What a gate may fail on, gravest first; each holds all before it."""


class Rule(Enum):
    """Why a layer counts as broken. The value is a label and what to try; ``docs/compare.md`` has the measurements."""

    NOT_FINITE = "not finite: go back to the last checkpoint without NaN, lower the learning rate or clip gradients"
    ZEROED = "zeroed: look at the pruning mask, or whether the layer was loaded at all"
    REPLACED = "replaced: look whether it was loaded under the right name, transposed, reordered or initialised anew"
    UNLEARNT = "unlearnt: look whether it was loaded, initialised anew or shuffled"
    RESCALED = (
        "rescaled: look for a factor applied twice or left out (a norm folded in, a quantiser's scale, LoRA's alpha)"
    )
    ODD_SCALE = "odd scale: look for a missing factor; if it was trained so, lower its learning rate or weight decay"
    CLIPPED = "clipped: widen the range, or choose it per output channel"
    ROUNDED = "rounded: use more bits, or a step per output channel or group; measure on data what it costs"
    PRUNED = "pruned: prune less here, or train on after pruning"
    TRAP = "trap: look for a damaged file or one step without clipped gradients"
    RANK_LOST = "rank lost: keep more directions here; if it was trained so, lower its learning rate or weight decay"

    @property
    def label(self) -> str:
        """The word or two by which text and JSON call it."""
        return self.value.partition(":")[0]

    @property
    def remedy(self) -> str:
        """What to try."""
        return self.value.partition(": ")[2]


@dataclass(frozen=True)
class Mark:
    """A quantity beside the limit that it passed; NaN where the rule needs no number."""

    what: str
    value: float
    limit: float


@dataclass(frozen=True)
class Break:
    """One rule that a layer broke: its absolute band was left, and by a change that healthy pairs do not show.

    ``seen`` says both in words.
    """

    rule: Rule
    band: Mark
    change: Mark
    seen: str


@dataclass(frozen=True)
class Broken:
    """A broken layer, or a vector (bias, norm, running statistic), and why."""

    name: str
    breaks: tuple[Break, ...]


@dataclass(frozen=True)
class LayerShift:
    """One layer that both sides have, in one shape.

    Attributes:
        name: of the layer, prefixes left out.
        old, new: its rows, as from :func:`ww_opt.spectral.diagnose`.
        pair: how far its weights moved and what was done to their entries.
        norm_ratio: factor by which the running deviation of the norm behind it moved (median over channels): a norm
            that moved along takes a change of scale back. NaN where no norm with running statistics is known.
        breaks: rules that say it broke; none for a healthy one.
        stands_out: what of it changed more than in a light fine-tune, or than from seed to seed, in words.
        note: what a reader should know.
    """

    name: str
    old: LayerDiagnostics
    new: LayerDiagnostics
    pair: Pair
    norm_ratio: float = math.nan
    breaks: tuple[Break, ...] = ()
    stands_out: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_unchanged(self) -> bool:
        """Whether both sides hold the same numbers."""
        return self.pair.is_identical

    @property
    def role(self) -> Role:
        """What the layer is in its network, as NEW has it."""
        return self.new.role

    def record(self) -> dict[str, Any]:
        """The row as a plain dict: NaN where a number could not be had."""
        both = {
            f"{name}_{side}": getattr(row, name)
            for name in _SHOWN
            for side, row in (("old", self.old), ("new", self.new))
        }
        entries = {
            f"{item.name}_{side}": getattr(own, item.name)
            for item in fields(self.pair.old)
            if item.name != "largest"
            for side, own in (("old", self.pair.old), ("new", self.pair.new))
        }
        return {
            "name": self.name,
            "kind": self.new.kind,
            "role": self.role.name,
            "N": self.new.N,
            "M": self.new.M,
            "n_matrices": self.new.n_matrices,
            "normed": self.new.normed,
            "is_unchanged": self.is_unchanged,
            "distance": self.pair.distance,
            "cosine": self.pair.cosine,
            "ratio": self.pair.ratio,
            "norm_ratio": self.norm_ratio,
            **both,
            **entries,
            "broken": "; ".join(item.rule.label for item in self.breaks),
            "stands_out": "; ".join(self.stands_out),
            "note": self.note,
        }


_SHOWN = (
    "alpha", "D", "sigma", "spikes", "traps", "largest_entry", "stable_rank", "effective_rank", "rank_loss",
    "spectral_norm", "frobenius_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What changed from OLD to NEW; iterates over the layers that both have, in NEW's order.

    Attributes:
        rows: layers on both sides, in one shape, with numbers on both.
        differences: tensors on one side only, and those whose shape changed.
        unread: names of layers that could not be compared, with the reason.
        others_broken: vectors of NEW, and layers that it alone has, with NaN or infinity.
        n_vectors, n_changed_vectors: vectors on both sides, and how many of them differ.
        kinds: what kind of change it is, in words, where that is sure.
        notes: what concerns all: prefixes left out, where in a file the weights stood.
    """

    rows: tuple[LayerShift, ...]
    differences: tuple[Difference, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    others_broken: tuple[Broken, ...] = ()
    n_vectors: int = 0
    n_changed_vectors: int = 0
    kinds: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerShift]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def broken(self) -> tuple[Broken, ...]:
        """What broke: layers on both sides in NEW's order, then all else."""
        return (*(Broken(row.name, row.breaks) for row in self.rows if row.breaks), *self.others_broken)

    @property
    def unchanged(self) -> tuple[LayerShift, ...]:
        """Layers that hold the same numbers, and are not broken on both sides."""
        return tuple(row for row in self.rows if row.is_unchanged and not row.breaks)

    @property
    def changed(self) -> tuple[LayerShift, ...]:
        """Layers that changed and did not break, those that moved farthest first; NaN last."""
        rows = (row for row in self.rows if not row.is_unchanged and not row.breaks)
        return tuple(sorted(rows, key=lambda row: math.inf if math.isnan(row.pair.distance) else -row.pair.distance))

    @property
    def verdict(self) -> Verdict:
        """The gravest of what was found: broken layers, missing or reshaped tensors, changed numbers, nothing."""
        if self.broken:
            return "broken"
        if self.differences:
            return "missing"
        return "changed" if self.changed or self.n_changed_vectors else "unchanged"

    def fails(self, level: Level) -> bool:
        """Whether a gate that fails on ``level`` should: on that, or on something graver."""
        return self.verdict in LEVELS[: LEVELS.index(level) + 1]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as plain dicts, one key per column."""
        return [row.record() for row in self.rows]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a pandas frame, one column per key of :meth:`records`."""
        import pandas as pd

        return pd.DataFrame(self.records())
