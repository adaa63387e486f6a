"""How logits and labels of a task lie, told from shapes and values, or refused where they can be read in two ways.

=====================  ==============================  =====================================================
kind of labels         logits                          labels
=====================  ==============================  =====================================================
``classes``            ``[..., C]`` or ``[n, C, ...]``  class numbers 0 to C - 1, without the class axis (or of size 1)
``shares``             ``[..., C]`` or ``[n, C, ...]``  in the same shape, summing to 1 over the class axis
``several``            any, or a class axis of size 1   0 and 1 (or shares of yes) in the same shape
=====================  ==============================  =====================================================

One logit ``z`` of a yes/no label stands for the two logits ``(-z / 2, z / 2)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

__all__ = ["IGNORED", "Answers", "Kind", "Layout", "answers", "layout_of"]

Kind = Literal["classes", "shares", "several"]

IGNORED = -100
"""Number that stands for "no label" in torch's cross entropy."""
_KINDS = ("classes", "shares", "several")
_FEWEST = 1024
_CLOSE = 1e-3
_SHAPES = (
    "class numbers need logits [..., n_classes] or [n, n_classes, ...] and labels of that shape without the classes; "
    "yes/no labels need as many logits as labels"
)


@dataclass(frozen=True)
class Layout:
    """What the labels are, and which axis of the logits goes over the classes; None where there is none."""

    kind: Kind
    class_dim: int | None = None
    ignore_index: int = IGNORED


@dataclass(frozen=True)
class Answers:
    """The labels of some examples, one a row, and what the model said; on the CPU.

    Attributes:
        kind: what the labels are.
        logits: float64 ``[n, n_classes]``; ``[n, 1]`` for yes/no labels.
        labels: class numbers, int64 ``[n]``; else float64 in the shape of the logits.
        example: number of the example that the label belongs to, ``[n]``.
        column: which of an example's yes/no labels it is, ``[n]``.
    """

    kind: Kind
    logits: torch.Tensor
    labels: torch.Tensor
    example: torch.Tensor
    column: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Put the answers of several batches together."""
        shift, examples = 0, []
        for part in parts:
            examples.append(part.example + shift)
            shift += int(part.example.max()) + 1 if len(part.example) else 0
        names = ("logits", "labels", "column")
        logits, labels, column = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        return cls(parts[0].kind, logits, labels, torch.cat(examples), column)


def layout_of(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    kind: Kind | None = None,
    class_dim: int | None = None,
    ignore_index: int = IGNORED,
) -> Layout:
    """Tell how a batch lies; ``kind`` and ``class_dim`` say what is known already.

    Raises:
        TypeError: they are no tensors, or the logits are whole numbers.
        ValueError: the shapes do not belong together, or can be read in two ways.
    """
    _check_types(logits, labels)
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"`kind` of the labels must be one of {_KINDS}, but got {kind!r}.")
    if class_dim is not None and not -logits.ndim <= class_dim < logits.ndim:
        raise ValueError(f"`class_dim` must be an axis of the logits, but got class_dim={class_dim}: {_got(logits)}.")
    same = logits.shape == labels.shape or logits.shape == _without_last(labels)
    if same and logits.ndim and kind != "classes":
        found = _of_same_shape(logits, labels.reshape(logits.shape), kind, class_dim, ignore_index)
    else:
        found = _of_numbers(logits, labels, kind, class_dim)
    return Layout(found.kind, found.class_dim, ignore_index)


def _check_types(logits: object, labels: object) -> None:
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"Judging needs tensors, but `{name}` is a {type(value).__name__}: give `.logits` of a model's output, "
                "and make labels by `torch.as_tensor`."
            )
    assert isinstance(logits, torch.Tensor)
    if not logits.is_floating_point():
        raise TypeError(
            f"Logits must be floating point, but got {logits.dtype}: give what goes into the loss, before `argmax`."
        )


def _got(logits: torch.Tensor, labels: torch.Tensor | None = None) -> str:
    said = f"logits {list(logits.shape)}"
    return said if labels is None else f"{said}, labels {list(labels.shape)}"


def _without_last(labels: torch.Tensor) -> torch.Size | None:
    return labels.shape[:-1] if labels.ndim and labels.shape[-1] == 1 else None


def _of_same_shape(
    logits: torch.Tensor, labels: torch.Tensor, kind: Kind | None, class_dim: int | None, ignore_index: int
) -> Layout:
    """Several yes/no labels, or shares of classes: those sum to 1."""
    if kind == "several":
        return Layout("several", class_dim)
    axes = sorted({1, logits.ndim - 1} if logits.ndim > 1 else ()) if class_dim is None else [class_dim % logits.ndim]
    values = labels.double()
    known = values != ignore_index
    axes = [axis for axis in axes if logits.shape[axis] > 1 and _sums_to_one(values, known, axis)]
    if kind == "shares" and not axes:
        raise ValueError(
            f"Shares of classes must sum to 1 over the class axis, but these do not ({_got(logits, labels)}): give "
            "`class_dim=`."
        )
    if not axes:
        return Layout("several", class_dim)
    is_hard = bool(((values == 0) | (values == 1))[known].all())
    if is_hard and kind is None and class_dim is None:
        raise ValueError(
            f"Every row of these labels has a single 1 ({_got(logits, labels)}): they may be one-hot classes or "
            "several yes/no labels. For classes give `labels.argmax(...)`; for several labels give `kind='several'`."
        )
    if len(axes) > 1:
        raise ValueError(
            f"These labels sum to 1 over axis 1 and over the last ({_got(logits, labels)}): give `class_dim=1` or "
            "`class_dim=-1`."
        )
    return Layout("shares", axes[0])


def _sums_to_one(values: torch.Tensor, known: torch.Tensor, axis: int) -> bool:
    rows = known.all(axis)
    sums = values.sum(axis)[rows]
    return len(sums) > 0 and bool(((sums - 1.0).abs() < _CLOSE).all()) and bool((values[known] >= 0).all())


def _of_numbers(logits: torch.Tensor, labels: torch.Tensor, kind: Kind | None, class_dim: int | None) -> Layout:
    """Class numbers, whose shape lacks the class axis or has size 1 there."""
    axes = {1, logits.ndim - 1} if logits.ndim > 1 else {0} if logits.ndim else set()
    if class_dim is not None:
        axes = {class_dim % logits.ndim}
    fitting = [axis for axis in sorted(axes) if labels.shape in _shapes_without(logits.shape, axis)]
    if not fitting or (labels.ndim and fitting == [0] and class_dim is None):
        where = "" if class_dim is None else f" with class_dim={class_dim}"
        raise ValueError(
            f"Logits and labels must belong together{where}: {_SHAPES}; but got {_got(logits, labels)}. Move the "
            "class axis last, give `class_dim=`, or leave `logits` out, to be judged by the loss."
        )
    sizes = {logits.shape[axis] for axis in fitting}
    if len(fitting) > 1 and sizes != {1}:
        raise ValueError(
            f"Axis 1 and the last may both go over the classes ({_got(logits, labels)}): give `class_dim=1` or "
            "`class_dim=-1`."
        )
    axis = fitting[0]
    if logits.shape[axis] == 1:
        return Layout("several", axis)
    if kind in ("shares", "several"):
        raise ValueError(f"Labels of kind {kind!r} have the shape of the logits, but got {_got(logits, labels)}.")
    return Layout("classes", axis)


def _shapes_without(shape: torch.Size, axis: int) -> list[torch.Size]:
    before, after = shape[:axis], shape[axis + 1 :]
    return [before + after, before + torch.Size([1]) + after]


def answers(logits: torch.Tensor, labels: torch.Tensor, layout: Layout, most: int) -> Answers:
    """Bring a batch into rows, leaving out what has no label; of more than ``most`` logits evenly spaced rows.

    Raises:
        TypeError: they are no tensors, or the logits are whole numbers.
        ValueError: the batch does not lie as ``layout`` says, or a label is out of range.
    """
    # the same checks for every batch, but nothing is guessed any more
    layout_of(logits, labels, kind=layout.kind, class_dim=layout.class_dim, ignore_index=layout.ignore_index)
    z, y = logits.detach(), labels.detach()
    if layout.kind == "several":
        y = y.reshape(z.shape)
        axis = layout.class_dim if layout.class_dim is not None else 1 if z.ndim > 3 else -1
        z, y = (own.unsqueeze(-1) if own.ndim == 1 else own.movedim(axis, -1) for own in (z, y))
        n_examples, n_columns = len(z), z.shape[-1]
        z, y = z.reshape(-1, 1), y.reshape(-1, 1)  # each label counts on its own
    else:
        assert layout.class_dim is not None
        z = z.movedim(layout.class_dim, -1)
        n_examples, n_columns = len(z) if z.ndim > 1 else 1, 1
        y = y.reshape(z.shape[:-1]).flatten() if layout.kind == "classes" else y.movedim(layout.class_dim, -1)
        z = z.reshape(-1, z.shape[-1])
        y = y if layout.kind == "classes" else y.reshape(z.shape)
    known = y != layout.ignore_index
    rows = (known if known.ndim == 1 else known.all(-1)).to("cpu").nonzero().flatten()
    rows = rows[:: max(-(-len(rows) // max(most // z.shape[-1], _FEWEST)), 1)]
    z, own_labels = z[rows.to(z.device)].to("cpu", torch.float64), y[rows.to(y.device)].to("cpu")
    if layout.kind != "several":
        _check_no_probabilities(z)
    return Answers(
        layout.kind,
        z,
        _class_numbers(own_labels, z.shape[-1]) if layout.kind == "classes" else _shares(own_labels, layout),
        example=rows // max(len(y) // max(n_examples, 1), 1),
        column=rows % n_columns,
    )


def _class_numbers(y: torch.Tensor, n_classes: int) -> torch.Tensor:
    whole = y.to(torch.int64)
    if y.is_floating_point() and not bool((whole == y).all()):
        raise ValueError(
            f"Class numbers must be whole, but got {_some(y[whole != y])}: for a target that is a number leave "
            "`logits` out, to be judged by the loss."
        )
    wrong = whole[(whole < 0) | (whole >= n_classes)]
    if len(wrong):
        raise ValueError(
            f"Labels must be class numbers from 0 to {n_classes - 1}, as many as the logits have classes, but "
            f"{len(wrong)} of {len(whole)} are {_some(wrong)}. Where that means no label, give `ignore_index=` or put "
            f"{IGNORED} there."
        )
    return whole


def _shares(y: torch.Tensor, layout: Layout) -> torch.Tensor:
    values = y.to(torch.float64)
    wrong = values[~((values >= 0) & (values <= 1))]
    if len(wrong):
        raise ValueError(
            f"Labels in the shape of the logits must lie in [0, 1], but {len(wrong)} of {values.numel()} are "
            f"{_some(wrong)}. Put 0 and 1 there; where that means no label, give `ignore_index=` (now "
            f"{layout.ignore_index}); for a target that is a number leave `logits` out, to be judged by the loss."
        )
    return values


def _check_no_probabilities(z: torch.Tensor) -> None:
    """Logits that are not negative and sum to 1 in every row have been through a softmax."""
    is_hard = bool(((z == 0) | (z == 1)).all())
    if len(z) > 1 and not is_hard and bool((z >= 0).all()) and bool(((z.sum(-1) - 1.0).abs() < 1e-4).all()):
        raise ValueError(
            "Logits must be what goes into the softmax, but these are probabilities, not negative and summing to 1: "
            "leave the softmax out, or give their logarithm."
        )


def _some(values: torch.Tensor) -> str:
    shown = [f"{float(value):g}" for value in values.unique()[:3]]  # type: ignore[no-untyped-call]
    return ", ".join(shown)
