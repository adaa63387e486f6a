"""What a diagnosis says: one row per layer, what of it is judged, and why where nothing is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from ww_opt.spectral.findings import NARROW, Finding, Role

if TYPE_CHECKING:
    import pandas as pd

Convention = Literal["default", "weightwatcher"]

__all__ = ["Convention", "Diagnosis", "LayerDiagnostics", "why_not_judged"]

_NAN = float("nan")


@dataclass(frozen=True)
class LayerDiagnostics:
    """One layer. Numbers are NaN (counts 0) where ``status`` or ``fit_status`` says why they could not be had.

    Attributes:
        name, kind, parameter: the layer, its type, and the parameter it was read from.
        N, M, Q: longer side, shorter side, aspect ratio ``N / M``.
        n_matrices: matrices that the layer is made of: positions of a kernel, groups.
        alpha, xmin, xmax, D, sigma, n_tail: power-law fit of the eigenvalues' density. In the ``default`` convention
            alpha and D of a rectangular layer are means over ``n_windows`` square windows (xmin, xmax and n_tail those
            of the median window), and sigma includes the search for xmin.
        fit_status: how the fit ended, in words.
        n_eigenvalues, spikes, traps: eigenvalues; those beyond the null's edge; huge entries. Counts.
        spectral_norm, frobenius_norm: largest singular value, root of the sum of squares; of all matrices together.
        stable_rank: sum over largest eigenvalue, of all matrices together.
        effective_rank: ``exp(entropy)`` of the eigenvalues, between 1 and M; mean over the matrices.
        null_effective_rank: the same for a random matrix of this shape.
        rank_loss: singular values that are zero to float32's precision. A count.
        excess: how much more concentrated the energy is than in the null: the sum of the squared eigenvalues over its
            expectation, less 1. 0 within ``5 / sqrt(n_matrices N M)`` for random weights.
        largest_entry: largest distance of an entry from the mean, in standard deviations.
        levels: distinct values in a row of a matrix that was rounded to few, as by 4 bits; 0 where it was not. A count.
        log_norm, log_spectral_norm, log_alpha_norm: log10 of the sum of the eigenvalues, of the largest, of
            the sum of ``eigenvalue^alpha``.
        alpha_hat: ``alpha * log10(largest eigenvalue)``.
        normed: whether a norm (batch, layer, group, instance, RMS) follows and takes the layer's scale back; ``None``
            where that is not known.
        role: what the weight is in its network: hidden layers alone are in the score.
        findings: what follows from all this.
        note: what a reader should know: tied, dequantised, merged.
        extra: further columns: those asked for, and WeightWatcher's own in its convention.
    """

    name: str
    kind: str
    parameter: str
    N: int = 0
    M: int = 0
    Q: float = _NAN
    n_matrices: int = 0
    alpha: float = _NAN
    xmin: float = _NAN
    xmax: float = _NAN
    D: float = _NAN
    sigma: float = _NAN
    n_tail: int = 0
    n_windows: int = 0
    fit_status: str = ""
    n_eigenvalues: int = 0
    spectral_norm: float = _NAN
    frobenius_norm: float = _NAN
    stable_rank: float = _NAN
    effective_rank: float = _NAN
    null_effective_rank: float = _NAN
    rank_loss: int = 0
    spikes: int = 0
    traps: int = 0
    excess: float = _NAN
    largest_entry: float = _NAN
    levels: int = 0
    log_norm: float = _NAN
    log_spectral_norm: float = _NAN
    log_alpha_norm: float = _NAN
    alpha_hat: float = _NAN
    normed: bool | None = None
    role: Role = Role.HIDDEN
    findings: tuple[Finding, ...] = ()
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finding(self) -> str:
        """The findings as a sentence."""
        named = [item.value if item is not Finding.NOT_FITTED else self.fit_status for item in self.findings]
        return "; ".join(named)

    @property
    def is_analysed(self) -> bool:
        """Whether the layer has a spectrum."""
        return self.n_eigenvalues > 0

    @property
    def is_judged(self) -> bool:
        """Whether the score looks at the layer."""
        return self.role is Role.HIDDEN and self.is_analysed and self.M >= NARROW

    @property
    def is_broken(self) -> bool:
        """Whether it holds NaN or infinity, put there by training; a mask may well hold them."""
        return self.M > 0 and not self.is_analysed and self.role not in (Role.TABLE, Role.UNSURE)

    @property
    def in_score(self) -> str:
        """``yes``, or ``no`` and the reason."""
        if self.role is not Role.HIDDEN:
            return f"no: {self.role.value}"
        if not self.is_analysed:
            return f"no: {self.fit_status}"
        return "yes" if self.is_judged else f"no: under {NARROW} wide"


@dataclass(frozen=True)
class Diagnosis:
    """The rows of a model, in its order; iterates over them.

    ``note`` says what concerns them all: where in a file they were read, and that the output layer cannot be told.
    """

    rows: tuple[LayerDiagnostics, ...]
    convention: Convention = "default"
    note: str = ""

    def __iter__(self) -> Iterator[LayerDiagnostics]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as plain dicts, one key per column; further columns at the end.

        ``role`` is given by its name, ``in_score`` and ``finding`` in words.
        Where a further column has the name of one of ours (``spectral_norm``, squared in WeightWatcher's tables), it
        stands instead.
        """
        names = [item.name for item in fields(LayerDiagnostics) if item.name not in ("role", "findings", "extra")]
        return [
            {
                **{name: getattr(row, name) for name in names},
                "role": row.role.name,
                "in_score": row.in_score,
                "finding": row.finding,
                **row.extra,
            }
            for row in self.rows
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a pandas frame, one column per key of :meth:`records`."""
        import pandas as pd

        return pd.DataFrame(self.records())


def why_not_judged(rows: Sequence[LayerDiagnostics]) -> str:
    """Why no score can be given, and the remedy; empty where one can."""
    adapters = [row for row in rows if row.role is Role.ADAPTER]
    others = [row.name for row in rows if row.role is not Role.ADAPTER]
    if adapters and not any(row.name.startswith(f"{name}.") for row in adapters for name in others):
        return (
            f"Adapters alone cannot be scored: {len(adapters)} of {len(rows)} weights are parts of adapters, and what "
            "they change is not there. Give the merged model (`merge_and_unload()`)."
        )
    if any(row.is_judged for row in rows) or any(row.is_broken for row in rows):
        return ""
    needed = f"A score needs a hidden weight matrix at least {NARROW} wide, but"
    hidden = [row for row in rows if row.role is Role.HIDDEN]
    read = [row for row in hidden if row.is_analysed]
    # what may be a layer first, then what is one, then what is surely none
    widest = max(rows, key=lambda row: (row.role is Role.UNSURE, row.M))
    if widest.M < NARROW or (widest.role is not Role.UNSURE and hidden):
        if read:
            return (
                f"{needed} the widest of {len(hidden)} hidden layers has {max(row.M for row in read)}: wider layers "
                "can be judged, these cannot."
            )
        if hidden:
            what = f"{hidden[0].name} is {hidden[0].fit_status}"
            return f"{needed} none of {len(hidden)} hidden layers could be read: {what}."
    why = "; ".join(text for text in (widest.role.value, widest.note) if text)
    remedy = {
        Role.UNSURE: "pass the model itself, adapters merged, with the matrix as the `weight` of a module of its own",
        Role.TABLE: "keep the matrix as the `weight` of a module of its own, such as `nn.Linear`",
    }.get(widest.role, "a network without hidden layers cannot be judged")
    return f"{needed} none of {len(rows)} weights is sure to be one; the widest, {widest.name}, is {why}: {remedy}."
