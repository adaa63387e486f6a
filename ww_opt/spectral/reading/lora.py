"""Adapters: how peft and loralib keep them in a module, which are in use, and what they and the base weight make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ww_opt.spectral.reading.matrices import numbers

__all__ = [
    "Adapter",
    "active_among",
    "adapters_of",
    "can_merge",
    "has_other_adapter",
    "is_base_used",
    "merged_weight",
    "saved_copies",
    "switches",
]

_SIDES = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter: ``a`` (r, in, ...), ``b`` (out, r, ...), their names below the layer, and what scales B A."""

    a: Tensor
    b: Tensor
    parameters: tuple[str, str]
    scaling: float | None

    @property
    def note(self) -> str:
        """What a reader of the product should know."""
        return "" if self.scaling is not None else "scaling unknown: taken as 1"

    def product(self) -> Tensor:
        """B A times its scaling, shape (out, in times kernel positions), in float64.

        Its rank is r at most; rounded to a narrower type, its other singular values would be noise.
        """
        scaling = 1.0 if self.scaling is None else self.scaling
        return scaling * (self.b.detach().double().flatten(1) @ self.a.detach().double().flatten(1))


def adapters_of(module: nn.Module) -> dict[str, Adapter]:
    """The adapters of a layer by name (``default`` where it has only one, without a name); empty: no LoRA."""
    found: dict[str, Adapter] = {}
    for a_key, b_key in _SIDES:
        if a_key not in module._modules and a_key not in module._parameters:
            continue
        a_side, b_side = _weights(getattr(module, a_key)), _weights(getattr(module, b_key, None))
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        scaling = getattr(module, "scaling", None)
        for name, a in a_side.items():
            b = b_side.get(name)
            if b is not None and id(a) in names and id(b) in names:
                factor = scaling.get(name) if isinstance(scaling, Mapping) else scaling
                found[name] = Adapter(a, b, (names[id(a)], names[id(b)]), factor)
    return found


def can_merge(module: nn.Module) -> bool:
    """Whether base + products is the weight in use: not under DoRA, nor with singular values between the sides."""
    magnitudes = getattr(module, "lora_magnitude_vector", None)
    return not (isinstance(magnitudes, nn.ModuleDict) and len(magnitudes)) and not hasattr(module, "lora_E")


def is_base_used(module: nn.Module) -> bool:
    """Whether the network multiplies with the base weight itself: adapters are merged into it, or switched off."""
    return bool(getattr(module, "merged", False)) or _is_off(module) or active_among(module, ("",)) == ()


def _is_off(module: nn.Module) -> bool:
    return getattr(module, "disable_adapters", False) is True


def active_among(module: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Those adapters that are in use; a layer that does not say so uses all, and the name ``""`` stands for any."""
    active = getattr(module, "active_adapters", getattr(module, "active_adapter", None))
    if isinstance(active, str):
        active = [active]
    if not isinstance(active, list | tuple):
        return tuple(names)
    return tuple(name for name in names if name in active or (name == "" and active))


def has_other_adapter(module: nn.Module) -> bool:
    """Whether a base layer is wrapped by an adapter that is no LoRA, as peft's other methods do."""
    inner = module._modules.get("base_layer")
    return inner is not None and (hasattr(module, "active_adapter") or hasattr(module, "adapter_layer_names"))


def saved_copies(module: nn.Module) -> dict[str, bool]:
    """Of a layer that peft trains as a whole: the children that hold its copies, and whether each is in use."""
    original, copies = module._modules.get("original_module"), module._modules.get("modules_to_save")
    if original is None or not isinstance(copies, nn.ModuleDict) or not len(copies):
        return {}
    active = () if _is_off(module) else active_among(module, tuple(copies))
    return {"original_module": not active, **{f"modules_to_save.{name}": name in active for name in copies}}


def switches(model: nn.Module) -> tuple[object, ...]:
    """What decides which weights are in use, beside the weights: it changes when an adapter is switched or scaled."""
    found: list[object] = []
    for path, module in model.named_modules():
        if {"base_layer", "modules_to_save"} & module._modules.keys() or hasattr(module, "lora_A"):
            scaling = getattr(module, "scaling", None)
            scales = tuple(sorted(scaling.items())) if isinstance(scaling, Mapping) else scaling
            active = getattr(module, "active_adapters", getattr(module, "active_adapter", None))
            found.append((path, repr(scales), repr(active), bool(getattr(module, "merged", False)), _is_off(module)))
    return tuple(found)


def merged_weight(module: nn.Module, read_base: Callable[[], Tensor], adapters: Sequence[Adapter]) -> Tensor:
    """The base weight plus all products, in the shape of the base weight, in float64."""
    base, _ = numbers(read_base())
    if not base.is_floating_point():
        return base  # packed integers of another library: there is nothing to add to
    merged = base.double()
    is_transposed = bool(getattr(module, "fan_in_fan_out", False))
    for adapter in adapters:
        product = adapter.product()
        # Hugging Face's Conv1D and embeddings store (in, out); a square weight has only the flag to tell
        if is_transposed or product.shape != merged.flatten(1).shape:
            product = product.T
        merged = merged + product.reshape(merged.shape)
    return merged


def _weights(side: Any) -> dict[str, Tensor]:
    parts = dict(side.items()) if isinstance(side, nn.ModuleDict | nn.ParameterDict) else {"default": side}
    weights = {name: getattr(part, "weight", part) for name, part in parts.items()}
    return {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
