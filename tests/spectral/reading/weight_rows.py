"""What the tests of weights share: rows by name, and layers as other libraries build them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ww_opt.spectral.findings import Status
from ww_opt.spectral.reading.weights import LayerWeight, named_weights


def by_name(source: Any) -> dict[str, LayerWeight]:
    rows = list(named_weights(source))
    found = {row.name: row for row in rows}
    assert len(found) == len(rows), "names must be unique"
    return found


def matrices(row: LayerWeight) -> Tensor:
    assert row.status is Status.SUCCESS, row
    assert row.matrices is not None
    return row.matrices


class Conv1D(nn.Module):
    """As in transformers: weight (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


class Lora(nn.Module):
    """As in peft: a base layer, and two small layers per adapter."""

    def __init__(self, base: nn.Module, out_in: tuple[int, int], adapters: tuple[str, ...] = ("default",)) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({name: nn.Linear(out_in[1], 2, bias=False) for name in adapters})
        self.lora_B = nn.ModuleDict({name: nn.Linear(2, out_in[0], bias=False) for name in adapters})
        self.scaling = {name: 0.5 + index for index, name in enumerate(adapters)}
        self.merged = False


class OldLora(nn.Linear):
    """As in loralib: the two sides are parameters of the layer itself."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.lora_A = nn.Parameter(torch.randn(2, 6))
        self.lora_B = nn.Parameter(torch.randn(5, 2))
        self.scaling = 2.0


class Tokens(nn.Module):
    """Parameters of the module itself, of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 7, 8))
        self.experts = nn.Parameter(torch.randn(3, 8, 4))
        self.mask = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
        self.flags = nn.Parameter(torch.ones(4, 4, dtype=torch.bool), requires_grad=False)
        self.phases = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.register_buffer("table", torch.randn(5, 5))


class Net(nn.Module):
    """A layer of every kind that a state dict can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.embed = nn.Embedding(10, 8)
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv3d(2, 3, 2)
        self.attn = nn.MultiheadAttention(8, 2)
        self.lstm = nn.LSTM(3, 5, proj_size=2, bidirectional=True)
        self.gru = nn.GRU(3, 5)
        self.rnn = nn.RNN(3, 5)
        self.head = nn.Linear(8, 4)


def assert_same(found: Mapping[str, LayerWeight], expected: Mapping[str, LayerWeight]) -> None:
    assert set(found) == set(expected)
    for name, row in found.items():
        assert (row.kind, row.parameter) == (expected[name].kind, expected[name].parameter)
        assert torch.equal(matrices(row), matrices(expected[name]))
