"""Low-rank adapters (LoRA): how peft and loralib keep them in a module, their product, and their sum with the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ww_opt.spectral.reading.matrices import numbers

__all__ = ["Adapter", "adapters_of", "can_merge", "merged_weight"]

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
    """Whether base + products is the weight in use: not where they are merged already, nor under DoRA."""
    magnitudes = getattr(module, "lora_magnitude_vector", None)
    return not getattr(module, "merged", False) and not (isinstance(magnitudes, nn.ModuleDict) and len(magnitudes))


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
