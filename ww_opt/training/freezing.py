"""Freeze the input side of a model once its layers stand still: backward then ends where the frozen part begins.

A layer stands still while neither its spectrum nor its singular vectors move from look to look. The spectrum alone is
no sign: it moves as a wave, and is flat where that turns (arXiv 2604.22778); the vectors of the largest singular values
settle when a layer has (arXiv 2408.11804). Only a prefix is frozen, in the order of a forward pass: a frozen layer with
a trained one before it saves next to nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from ww_opt.training.forward_order import Unit, forward_order

__all__ = ["Freeze", "FreezeSchedule", "LayerSpectrum", "leading_vectors", "shared"]

_LOG = logging.getLogger(__name__)
_MOST_EVENTS = 4  # a compiled model gives up after eight recompilations, and thawing costs as many
_MOST_VECTORS = 8
_MARK = "_ww_opt_trained"  # the instrument reads it: this layer is frozen, and yet was trained in this run


class LayerSpectrum(Protocol):
    """What is asked of a diagnosis' rows."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def spectral_norm(self) -> float: ...  # noqa: D102
    @property
    def frobenius_norm(self) -> float: ...  # noqa: D102
    @property
    def spikes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Freeze:
    """One event: which layers were frozen when, and why.

    Attributes:
        step: optimizer steps done, as :meth:`FreezeSchedule.update` was told.
        layers: names, from the input on.
        overlap: least overlap of their singular subspaces with those of the last look, in [0, 1].
        change: largest relative change of their spectral and Frobenius norms since.
    """

    step: int
    layers: tuple[str, ...]
    overlap: float
    change: float


@dataclass(frozen=True)
class _Seen:
    """A unit at one look: its norms by row, and its leading singular vectors by matrix."""

    norms: dict[str, tuple[float, float]]
    vectors: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    overlap: float = 0.0
    change: float = float("inf")
    n_still: int = 0


class FreezeSchedule:
    """Freeze a growing prefix of layers as they settle, at most four times a run.

    In a loop of your own, after each look::

        schedule = FreezeSchedule(model, lambda model: model(x))
        ...
            schedule.update(ww_opt.spectral.diagnose(model), step)

    What is frozen has ``requires_grad=False`` and no gradient (an optimizer moves a weight whose gradient is zero, by
    momentum and weight decay), and its batch norms stay in eval mode whatever ``model.train()`` says. Only layers that
    are used before all others are frozen, never the last one; one whose weights are used again further on (tied
    embeddings) ends the prefix. What the model had frozen itself is left alone. Diagnoses go on to count frozen layers
    as trained ones. Under DistributedDataParallel, which forbids such flips, nothing is ever frozen, and a warning says
    so.

    Args:
        model: frozen in place.
        forward: ``lambda model: model(x)`` with some inputs: shows the order in which layers are used. Modes and random
            streams are put back.
        overlap: least share of the leading left and right singular subspaces that must be the last look's, in (0, 1].
            As many vectors are compared as there are spikes, 1 to 8.
        change: largest relative change of a layer's spectral and Frobenius norm since the last look. With 0.01,
            and looks every twelfth of a run, tasks lost 0.03 points of accuracy in the mean at most, single runs 0.2
            (``python -m benchmarks.freezing``); with 0.02 runs lost up to 0.4, with 0.05 up to 0.5.
        n_looks: consecutive looks at which both must hold, at least 1.

    Attributes:
        events: what was frozen so far, in order.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[nn.Module], Any],
        *,
        overlap: float = 0.98,
        change: float = 0.01,
        n_looks: int = 2,
    ) -> None:
        if not 0.0 < overlap <= 1.0:
            raise ValueError(f"`0 < overlap <= 1` must hold, but got overlap={overlap}: it is a share.")
        if not change >= 0.0:
            raise ValueError(f"`change >= 0` must hold, but got change={change}.")
        if n_looks < 1:
            raise ValueError(f"`n_looks >= 1` must hold, but got n_looks={n_looks}.")
        self.events: tuple[Freeze, ...] = ()
        self._model, self._overlap, self._change, self._n_looks = model, overlap, change, n_looks
        self._units: Sequence[Unit] = () if _is_parallel(model) else forward_order(model, forward)
        self._seen: dict[str, _Seen] = {}
        self._stopped: list[tuple[Unit, tuple[nn.Parameter, ...], tuple[nn.Module, ...]]] = []

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the layers that are frozen now, from the input on."""
        return tuple(unit.name for unit, _, _ in self._stopped)

    def update(self, diagnosis: Iterable[LayerSpectrum], step: int = 0) -> tuple[str, ...]:
        """Compare with the last look, and freeze what has settled.

        Args:
            diagnosis: of the model as it is now.
            step: optimizer steps done; only recorded.

        Returns:
            Names of the layers that were frozen just now.
        """
        rows = list(diagnosis)
        waiting = self._units[len(self._stopped) :]
        for unit in waiting[:-1]:
            own = [row for row in rows if row.name == unit.name or row.name.startswith(f"{unit.name}.")]
            self._seen[unit.name] = _look(unit, own, self._seen.get(unit.name), (self._overlap, self._change))
        chosen: list[Unit] = []
        for unit, following in pairwise(waiting):
            if unit.last > following.first or self._seen[unit.name].n_still < self._n_looks:
                break
            chosen.append(unit)
        if not chosen or len(self.events) >= _MOST_EVENTS:
            return ()
        for unit in chosen:
            self._stop(unit)
        names = tuple(unit.name for unit in chosen)
        seen = [self._seen[name] for name in names]
        event = Freeze(step, names, min(own.overlap for own in seen), max(own.change for own in seen))
        self.events += (event,)
        return names

    def thaw(self) -> None:
        """Train again all that was frozen here; looks begin anew, and the events so far still count."""
        for unit, parameters, norms in self._stopped:
            for parameter in parameters:
                parameter.requires_grad_(True)
            for norm in norms:
                del norm.__dict__["train"]
                norm.train(self._model.training)
            for module in unit.modules:
                module.__dict__.pop(_MARK, None)
        self._stopped.clear()
        self._seen.clear()

    def _stop(self, unit: Unit) -> None:
        parameters = tuple(own for own in unit.parameters if own.requires_grad)
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        norms = tuple(own for own in unit.modules if isinstance(own, _NormBase) and own.training)
        for norm in norms:
            norm.eval()
            setattr(norm, "train", _stays_in_eval_mode)
        for module in unit.modules:
            setattr(module, _MARK, True)
        self._stopped.append((unit, parameters, norms))


def _stays_in_eval_mode(mode: bool = True) -> None:
    """Stand in for ``nn.Module.train`` of a frozen batch norm."""


def _is_parallel(model: nn.Module) -> bool:
    kinds = [type(own).__name__ for own in model.modules() if isinstance(own, DistributedDataParallel)]
    kinds += [type(own).__name__ for own in model.modules() if "FullyShardedDataParallel" in type(own).__name__]
    if kinds:
        _LOG.warning(
            "Nothing is frozen early under %s, which forbids it once training has begun: leave freezing out, or train "
            "on one device.",
            kinds[0],
        )
    return bool(kinds)


def _look(unit: Unit, rows: Sequence[LayerSpectrum], before: _Seen | None, limits: tuple[float, float]) -> _Seen:
    norms = {row.name: (row.spectral_norm, row.frobenius_norm) for row in rows}
    k = min(max(sum(row.spikes for row in rows), 1), _MOST_VECTORS)
    vectors = tuple(leading_vectors(own, k) for own in unit.matrices)
    if before is None or not norms or norms.keys() != before.norms.keys():
        return _Seen(norms, vectors)
    change = max(
        abs(new - old) / old if old > 0 else float("inf")
        for name, pair in norms.items()
        for new, old in zip(pair, before.norms[name], strict=True)
    )
    overlap = min(
        shared(new, old) for pair in zip(vectors, before.vectors, strict=True) for new, old in zip(*pair, strict=True)
    )
    is_still = overlap >= limits[0] and change <= limits[1]  # False where one of them is NaN
    return _Seen(norms, vectors, overlap, change, before.n_still + 1 if is_still else 0)


@torch.no_grad()
def leading_vectors(weight: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left and right singular vectors of the ``k`` largest singular values, as columns; at most half of all.

    Args:
        weight: two or more dimensions; a kernel is read as ``(out, in * positions)``.
        k: how many.

    Returns:
        Shapes ``(rows, k)`` and ``(columns, k)``, float64; NaN where the weight is not finite.
    """
    W = weight.detach().flatten(1).double()
    k = max(min(k, min(W.shape) // 2), 1)
    if not W.isfinite().all():
        return W.new_full((W.shape[0], k), torch.nan), W.new_full((W.shape[1], k), torch.nan)
    is_wide = W.shape[0] < W.shape[1]
    tall = W.T if is_wide else W
    right = torch.linalg.eigh(tall.T @ tall).eigenvectors[:, -k:].flip(1)
    left = nn.functional.normalize(tall @ right, dim=0)
    return (right, left) if is_wide else (left, right)


def shared(new: torch.Tensor, old: torch.Tensor) -> float:
    """Overlap of two subspaces given by orthonormal columns, in [0, 1]: the mean squared cosine of their angles."""
    k = min(new.shape[1], old.shape[1])
    return float((old[:, :k].T @ new[:, :k]).square().sum() / k)
