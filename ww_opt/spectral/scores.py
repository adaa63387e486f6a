"""Rows -> one number with a direction.

A score looks at the *judged* layers: hidden weight matrices at least 32 wide (a row's role says what it is). Output
layers and embeddings are left out, since their spectra follow the number of classes and the frequencies of tokens; so
is what no layer multiplies with, what is not used, what is frozen, and what is unsure. The default score also asks how
far the network as a whole passes its signal on; there output layers count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Unpack

import numpy as np

from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.findings import Role
from ww_opt.spectral.guards import Losses, guard, late_guard
from ww_opt.spectral.reading.weights import Source
from ww_opt.spectral.rows import Diagnosis, LayerDiagnostics, why_not_judged
from ww_opt.spectral.terms import (
    TARGETS,
    AlphaTerm,
    Rows,
    Target,
    band,
    dead,
    judged,
    mean_of,
    missing_spikes,
    trap,
)

Direction = Literal["minimize", "maximize"]

__all__ = [
    "FORMULA",
    "LATE_SHARE",
    "SCORES",
    "Rows",
    "Score",
    "guard",
    "judged",
    "named_score",
    "network_gain",
    "score",
]

FORMULA = 5
"""Number of the formulas below: values of another number are not ranked with these."""
_NAN = float("nan")


@dataclass(frozen=True)
class Score:
    """A number made of a diagnosis, and which way is better.

    NaN policy: layers whose weights are not finite make every score NaN; a layer without a fit is left out by the plain
    scores and counts as not having learnt in the default one and in ``alpha``. A score over no layer at all is NaN.
    """

    name: str
    direction: Direction
    function: Callable[[Rows], float]
    is_guarded: bool = False

    def __call__(
        self,
        diagnosis: Iterable[LayerDiagnostics],
        *,
        train_loss: float | None = None,
        first_loss: float | None = None,
        late_loss: float | None = None,
        in_nats: bool | None = None,
    ) -> float:
        """Return the score; a guarded one needs the training loss, and prefers the loss on examples that came late.

        Args:
            diagnosis: rows, as from :func:`ww_opt.spectral.diagnose`.
            train_loss: mean training loss, in the loss's own unit; only used by guarded scores.
            first_loss: the same before training, which is what chance gives; sets the guard's floor.
            late_loss: as from :func:`ww_opt.late_loss`; then the score counts for ``LATE_SHARE`` beside it.
            in_nats: whether the loss that guards (the late one where there is one) is a cross-entropy. Others are
                taken by :func:`ww_opt.spectral.guards.relative_loss`, so that their unit does not matter. ``None``: as
                what :func:`ww_opt.late_loss` returned knows of itself, else it is one.

        A guarded score of a network without a judged layer is what the guard says, alone.

        Raises:
            ValueError: the score is guarded and ``train_loss`` is missing, or ``first_loss`` is and the late loss is
                not in nats.
        """
        rows = tuple(diagnosis)
        is_broken = any(row.is_broken for row in rows)
        value = _NAN if is_broken else self.function(rows)
        if not self.is_guarded:
            return value
        if train_loss is None:
            raise ValueError(f"Score {self.name!r} needs the training loss, but got None: pass `train_loss=`.")
        sign = 1.0 if self.direction == "minimize" else -1.0
        if in_nats is None:
            in_nats = bool(getattr(late_loss, "in_nats", True))
        if math.isnan(value) and not is_broken and not judged(rows):
            value = 0.0  # too narrow for spectra, as every trial of this shape is
        if late_loss is None or not math.isfinite(train_loss):
            return value + sign * guard(train_loss, first_loss, in_nats=in_nats)
        return LATE_SHARE * value + sign * late_guard(late_loss, first_loss, in_nats=in_nats)

    def guarded(self) -> Score:
        """Return the same score with the training-loss guard of :func:`guard`."""
        return replace(self, is_guarded=True)

    def unguarded(self) -> Score:
        """Return the same score of the weights alone."""
        return replace(self, is_guarded=False)


LATE_SHARE = 0.05
"""What a unit of the score is worth beside the late loss, in nats. Chosen on the other tasks each time, the two
together rank better than the late loss alone on the tasks left out (mean Spearman .81 against .78)."""


def _over(of: Callable[[LayerDiagnostics], float]) -> Callable[[Rows], float]:
    """Mean over the judged layers for which ``of`` is known."""

    def mean(rows: Rows) -> float:
        values = [value for row in judged(rows) if not math.isnan(value := of(row))]
        return float(np.mean(values)) if values else _NAN

    return mean


UNLEARNT_GAIN = math.log(3**-0.5)
"""Gain of PyTorch's own initialisation of a linear layer, variance ``1 / (3 N)``, beside Xavier's."""


ALPHA_SHARE = 0.25
"""What alpha counts for beside the spikes in the default score. On tasks left out it costs nothing and earns nothing
(Spearman .49 with and without), so that the one number speaks of alpha as well."""
USUAL_ALPHA = AlphaTerm(low=TARGETS["vision"][0], high=TARGETS["language"][1])
"""The default score's: what is usual in some domain is no fault."""


def _default(rows: Rows) -> float:
    """Mean over layers of what is missing to enough spikes and a usual alpha, traps and dead directions; missing gain.

    Each of the four terms lies in [0, 1].
    """

    def learnt(row: LayerDiagnostics) -> float:
        return (1.0 - ALPHA_SHARE) * missing_spikes(row) + ALPHA_SHARE * USUAL_ALPHA(row)

    return mean_of(lambda row: learnt(row) + trap(row) + dead(row), rows) + _missing_gain(rows)


def _alpha(name: str, target: object) -> Score:
    """Mean over layers of what is missing to an alpha at the target that can be trusted, traps and dead directions."""
    low, high = band(target)
    term = AlphaTerm(low=low, high=high)
    return Score(name, "minimize", lambda rows: mean_of(lambda row: term(row) + trap(row) + dead(row), rows))


def _missing_gain(rows: Rows) -> float:
    """What is missing to a network that passes its signal on; more gain than Xavier's is no merit."""
    return min(max(-network_gain(rows), 0.0), 1.0)


def network_gain(rows: Rows) -> float:
    """Mean over layers, the output layer too, of the logarithm of how far each amplifies; 0 for Xavier's weights.

    The gain of a layer is its largest singular value over the one that Xavier's initialisation gives a matrix of its
    shape (Glorot and Bengio 2010): ``sqrt(2 / (N + M)) (sqrt N + sqrt M)``. The mean of the logarithms does not change
    when neighbours pass a factor to each other. A judged layer without spikes has learnt no gain, whatever its scale.
    Several output layers count as one, their mean. An embedding that is the output layer as well (there is no other)
    has an embedding's scale, so it counts as an output layer with PyTorch's own weights. NaN without layers.
    """
    read = [row for row in rows if row.is_analysed]
    hidden = [row for row in read if row.role is Role.HIDDEN]
    embeddings = [row for row in read if row.role is Role.EMBEDDING]
    gains = [_gain(row) for row in hidden]
    outputs = [_gain(row) for row in read if row.role is Role.HEAD]
    if outputs:
        gains.append(float(np.mean(outputs)))
    elif gains and embeddings and not any(row.role is Role.HEAD for row in rows):
        gains.append(_tied_gain(embeddings, hidden))
    return float(np.mean(gains)) if gains else _NAN


def _tied_gain(embeddings: Rows, hidden: Rows) -> float:
    """Gain of PyTorch's own linear layer of the largest embedding's shape, from the network's width to tokens.

    The largest singular value of a random matrix lies 1.2 Tracy-Widom scales under its edge (Johnstone 2001).
    """
    row = max(embeddings, key=lambda row: row.N * row.M)
    widths = {side for other in hidden for side in (other.N, other.M)}
    width = row.N if row.N in widths and row.M not in widths else row.M
    a, b = math.sqrt(row.N), math.sqrt(row.M)
    below = 1.0 - 1.2065 * (1 / a + 1 / b) ** (1 / 3) / (a + b)
    return 0.5 * math.log(below * (row.N + row.M) / (6 * width))


def _gain(row: LayerDiagnostics) -> float:
    expected = math.sqrt(2.0 / ((row.N + row.M) * row.n_matrices)) * (math.sqrt(row.N) + math.sqrt(row.M))
    gain = math.log(max(row.spectral_norm, 1e-9 * expected) / expected)
    return min(gain, UNLEARNT_GAIN) if row.is_judged and row.spikes == 0 else gain


SCORES = MappingProxyType(
    {
        item.name: item
        for item in (
            Score("default", "minimize", _default),
            _alpha("alpha", "vision"),
            _alpha("alpha:language", "language"),
            Score("mean_alpha", "minimize", _over(lambda row: row.alpha)),
            Score("alpha_distance", "minimize", _over(lambda row: abs(row.alpha - 2.0))),
            Score("ks_distance", "minimize", _over(lambda row: row.D)),
            Score("spike_share", "maximize", _over(lambda row: row.spikes / row.n_eigenvalues)),
        )
    }
)
"""All scores by name, each with its direction."""


def named_score(name: str | Score, target: Target | None = None) -> Score:
    """Look up a score by name. A target belongs to ``"alpha"``; ``"alpha:language"`` and ``"alpha:3.5"`` name it, too.

    Raises:
        ValueError: the name is unknown; the message lists all. Or the target is, or the score has none.
    """
    if isinstance(name, Score):
        return name if target is None else replace(named_score(name.name, target), is_guarded=name.is_guarded)
    if target is not None:
        if name != "alpha":
            raise ValueError(
                f"`target` is what the score 'alpha' aims at, but got target={target!r} with score {name!r}: leave it "
                "out, or take 'alpha'."
            )
        name = f"alpha:{target}"
    if name in SCORES:
        return SCORES[name]
    if not name.startswith("alpha:"):
        raise ValueError(f"`score` must be one of {sorted(SCORES)} or 'alpha:<number>', but got {name!r}.")
    return _alpha(name, name.removeprefix("alpha:"))


def score(
    model: Source | Diagnosis,
    name: str | Score = "default",
    *,
    target: Target | None = None,
    **losses: Unpack[Losses],
) -> float:
    """Score a model by its weights alone, or, with ``train_loss``, with a guard as well.

    Args:
        model: a module, a state dict, a checkpoint's path, or a diagnosis that was made already.
        name: a key of ``SCORES``; its ``direction`` says which way is better.
        target: what the score ``"alpha"`` aims at: ``"vision"`` (2, its default), ``"language"`` (3 to 4) or an alpha.
        losses: ``train_loss``, the mean training loss; given, the score is the guarded one. ``first_loss``, the same
            before training; see :func:`guard`. ``late_loss``, the loss on examples that came late; given with
            ``train_loss``, it takes the place of the guard, and judges networks too narrow for spectra as well.
            ``in_nats``: whether the loss that guards is a cross-entropy; see :class:`Score`.

    Returns:
        The score. NaN if a weight is not finite.

    Raises:
        ValueError: the name or the target is unknown, the model has no layer that can be judged (adapters alone, all of
            it narrow, nothing that is surely a layer), or ``late_loss`` stands alone.
    """
    chosen = named_score(name, target)
    diagnosis = model if isinstance(model, Diagnosis) else diagnose(model)
    late_loss, train_loss = losses.get("late_loss"), losses.get("train_loss")
    if late_loss is None and (fault := why_not_judged(diagnosis.rows)):
        raise ValueError(fault)
    if late_loss is not None and train_loss is None:
        raise ValueError("`late_loss` guards together with the training loss, but got no `train_loss`: pass both.")
    if train_loss is not None and not chosen.is_guarded:
        chosen = chosen.guarded()
    return chosen(diagnosis, **losses)
