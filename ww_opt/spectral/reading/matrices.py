"""One weight tensor -> the matrices it is made of: views wherever strides allow, cut as its kind of layer asks."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdRef

from ww_opt.spectral.findings import Role, Status
from ww_opt.spectral.reading.roles import Facts

__all__ = [
    "ATTENTION",
    "LayerWeight",
    "checksum",
    "layer_name",
    "memory_of",
    "numbers",
    "rows",
    "unwrapped",
    "version_of",
    "wrapper_prefix",
]

_GATES = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}
# weights of nn.MultiheadAttention -> what they add to its name; the stacked one is cut into q, k and v
ATTENTION = {"in_proj_weight": "", "q_proj_weight": "q", "k_proj_weight": "k", "v_proj_weight": "v"}
_CONVOLUTION = re.compile(r"(depthwise_|grouped_)?conv(_transpose)?[123]d")
# torch.compile, FSDP and activation checkpointing put these anywhere in a name; nobody's layer is called so
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """The matrices of one layer, or the reason why there are none.

    Args:
        name: full dotted name of the layer, wrappers such as ``module.`` and ``_orig_mod.`` left out; parts of a
            stacked weight carry their own: ``attn.q``, ``lstm.weight_ih_l0.i``, ``fc.lora.default``.
        kind: ``linear``, ``conv1d`` .. ``conv_transpose3d`` (also ``depthwise_`` and ``grouped_``), ``bilinear``,
            ``embedding``, ``attention``, ``lstm``, ``gru``, ``rnn``, ``conv1d_hf``, ``lora`` or ``parameter``.
        parameter: name in ``named_parameters()`` or the state dict; several joined by ``+``.
        index: place of the module in ``model.modules()`` (the root is 0), or of the key in the state dict.
        matrices: shape (slices, rows, columns), detached, on the weight's device, in its dtype; ``None`` where
            ``status`` is not a success. NaN and infinity are passed on.
        status: ``SUCCESS``, or why it cannot be analysed.
        role: what it is as far as it tells itself; which hidden layers are output layers, or frozen beside others, all
            weights together tell (:func:`ww_opt.spectral.reading.roles.settle`).
        facts: what that is told from.
        note: what a reader should know: ties, dequantisation, parametrisation.
        version: hashable key that changes with the weights, valid for this ``name`` only; ``None``: never cache.
        normed: whether a norm follows and takes the layer's scale back; ``None``: not known.
    """

    name: str
    kind: str
    parameter: str
    index: int
    matrices: Tensor | None
    status: Status
    role: Role
    facts: Facts
    note: str = ""
    version: tuple[object, ...] | None = None
    normed: bool | None = None


class _Part(NamedTuple):
    suffix: str
    matrices: Tensor
    note: str = ""


def rows(template: LayerWeight, tensor: Tensor, key: str, groups: int = 1) -> Iterator[LayerWeight]:
    """Cut one weight into its matrices.

    Args:
        template: the row that every part starts from; its kind decides how the weight is cut.
        tensor: the weight, 2 or more dimensions.
        key: the parameter's own name in its module, such as ``weight`` or ``weight_ih_l0``.
        groups: groups of a convolution.
    """
    plain, how = numbers(tensor.detach())
    for part in _cut(plain, template.kind, key, groups):
        status = _status(part.matrices)
        yield replace(
            template,
            name=f"{template.name}.{part.suffix}" if part.suffix else template.name,
            matrices=part.matrices if status is Status.SUCCESS else None,
            status=status,
            note="; ".join(text for text in (how, template.note, part.note) if text),
        )


def layer_name(owner: str, key: str, kind: str) -> str:
    """Name of the layer that parameter ``key`` of module ``owner`` makes; ``weight`` adds nothing to it."""
    own = (ATTENTION if kind == "attention" else {"weight": ""}).get(key, key)
    return ".".join(part for part in (owner, own) if part) or key


def numbers(tensor: Tensor) -> tuple[Tensor, str]:
    """The weight as a plain tensor, dequantised or made dense, and a note that says so; a view where it is plain."""
    if tensor.is_quantized:
        return tensor.dequantize(), f"dequantised from {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.layout != torch.strided:
        return tensor.to_dense(), f"made dense from {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return tensor.float(), f"read as float32 from {str(tensor.dtype).removeprefix('torch.')}"
    return tensor, ""


def memory_of(tensor: Tensor) -> Hashable:
    """A key that two tensors share when they are the same numbers in the same memory, transposed or not."""
    if is_lazy(tensor):
        return id(tensor)
    try:
        start = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        start = 0  # sparse and other tensors without plain storage
    if start == 0:  # meta and empty tensors: nothing but the object itself tells them apart
        return id(tensor)
    layout = sorted(zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.device, start, tensor.storage_offset(), tensor.dtype, *layout)


def checksum(tensor: Tensor) -> Tensor:
    """Sum of the entries' bits as integers, modulo 2^64: any single change shows, NaN or not. A scalar tensor."""
    bits = tensor.detach().reshape(-1)
    if bits.numel() * bits.element_size() % 8 == 0:
        return bits.view(torch.int64).sum()  # at the speed of memory, where a float64 sum takes 25 times as long
    return bits.view({1: torch.int8, 2: torch.int16}.get(bits.element_size(), torch.int32)).sum(dtype=torch.int64)


def version_of(tensor: Tensor) -> tuple[object, ...] | None:
    """A hashable key that changes when the numbers do; ``None`` where torch cannot tell.

    It holds the tensor by weak reference, for an ``id`` is given again to the next model's parameter. torch counts
    neither writes through ``.data`` nor those of ``fused=True`` optimizers: the sum of the entries sees these.
    """
    if is_lazy(tensor) or tensor.is_meta or tensor.is_inference():
        return None
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        return None
    return (WeakIdRef(tensor), tensor._version, int(checksum(tensor)), tuple(tensor.shape), tensor.device, tensor.dtype)


def wrapper_prefix(names: Iterable[str]) -> str:
    """The run of ``module.`` and ``_orig_mod.`` with which every name begins; empty where one does not."""
    rest = list(names)
    prefix = ""
    while found := next((w for w in ("module.", *_WRAPPERS) if rest and all(name.startswith(w) for name in rest)), ""):
        prefix += found
        rest = [name.removeprefix(found) for name in rest]
    return prefix


def unwrapped(name: str, prefix: str) -> str:
    """A module's or parameter's name without ``prefix``, as from ``wrapper_prefix``, and inner wrappers."""
    result = f"{name}.".removeprefix(prefix)
    for wrapper in _WRAPPERS:
        result = result.replace(wrapper, "")
    return result.removesuffix(".")


def _cut(tensor: Tensor, kind: str, key: str, groups: int) -> list[_Part]:
    names: tuple[str, ...] = ()
    if kind == "attention" and key == "in_proj_weight":
        names = ("q", "k", "v")
    elif key.startswith(("weight_ih", "weight_hh")):
        names = _GATES.get(kind, ())
    if names and tensor.shape[0] % len(names) == 0:
        return [
            _Part(name, part.unsqueeze(0)) for name, part in zip(names, tensor.tensor_split(len(names)), strict=True)
        ]
    if _CONVOLUTION.fullmatch(kind):
        return [_kernel(tensor, groups)]
    # of a bare parameter the last two dimensions are the matrix: expert weights, position embeddings
    return [_Part("", tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.flatten(0, -3))]


def _kernel(weight: Tensor, groups: int) -> _Part:
    """(first, second, *kernel) -> one slice per group and kernel position, shape (slices, first / groups, second).

    With one channel per group on one side the slices would be vectors: there the kernel positions are the columns.
    """
    if groups == 1 and min(weight.shape[:2]) > 1:
        return _Part("", weight.flatten(2).permute(2, 0, 1))
    first, second, positions = weight.shape[0] // groups, weight.shape[1], weight.shape[2:].numel()
    blocks = weight.reshape(groups, first, second, positions)
    if second == 1:
        return _Part("", blocks.reshape(1, groups * first, positions), "one channel: read as channels x positions")
    if first == 1:
        return _Part("", blocks.squeeze(1), "one channel: read as channels x positions")
    return _Part("", blocks.permute(0, 3, 1, 2).flatten(0, 1))


def _status(matrices: Tensor) -> Status:
    if matrices.is_meta:
        return Status.META
    if matrices.numel() == 0:
        return Status.EMPTY
    if not matrices.is_floating_point():
        return Status.NOT_NUMERIC
    return Status.VECTOR if min(matrices.shape[-2:]) == 1 else Status.SUCCESS
