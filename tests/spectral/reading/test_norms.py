"""Whether a norm follows a layer is told where it is known, and only there."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from ww_opt.spectral import Finding, diagnose
from ww_opt.spectral.reading.weights import named_weights


class Named(nn.Module):
    """A module whose ``forward`` nobody reads."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class RootMeanSquareNorm(nn.Module):
    """A norm of somebody's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


def conv(inputs: int = 8, outputs: int = 8) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3)


def fc() -> nn.Module:
    return nn.Linear(8, 8)


def told(source: nn.Module | dict[str, torch.Tensor] | str) -> list[bool | None]:
    return [row.normed for row in named_weights(source)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(fc(), nn.ReLU(), fc()), [False, False]),
        (nn.Sequential(fc(), nn.LayerNorm(8), fc()), [True, False]),
        (nn.Sequential(fc(), nn.Dropout(0.1), nn.ReLU(), RootMeanSquareNorm(8), fc()), [True, False]),
        (nn.Sequential(conv(), nn.GroupNorm(2, 8), conv(), nn.InstanceNorm2d(8), conv()), [True, True, False]),
        (nn.Sequential(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(8)), [True]),
        (nn.Sequential(fc(), nn.GELU(), nn.LayerNorm(8)), [None]),
        (nn.Sequential(nn.LayerNorm(8), fc(), nn.GELU(), fc()), [False, False]),
        (nn.Sequential(nn.Sequential(fc()), nn.Sequential(nn.Identity(), nn.LayerNorm(8)), fc()), [True, False]),
        (nn.Sequential(fc(), Named(fc=fc(), norm=nn.LayerNorm(8))), [None, None]),
        (nn.Sequential(OrderedDict(norm=nn.LayerNorm(8), fc=fc(), last=fc())), [False, False]),
    ],
)  # fmt: skip
def test_a_sequence_is_known(model: nn.Module, expected: list[bool | None]) -> None:
    assert told(model) == expected


def test_blocks_are_known_where_batch_norms_follow_their_convolutions() -> None:
    block = Named(conv1=conv(), bn1=nn.BatchNorm2d(8), conv2=conv(), bn2=nn.BatchNorm2d(8))
    apart = Named(conv1=conv(), conv2=conv(), bn1=nn.BatchNorm2d(8), bn2=nn.BatchNorm2d(8))
    before = Named(bn1=nn.BatchNorm2d(8), conv1=conv(8, 16), bn2=nn.BatchNorm2d(16), conv2=conv(16, 8))
    assert told(block) == told(apart) == told(block.state_dict()) == told(apart.state_dict()) == [True, True]
    assert told(before) == [True, None]  # behind the last one a residual may be added


def test_transformers_are_not() -> None:
    before = Named(norm1=nn.LayerNorm(8), query=fc(), project=fc(), norm2=nn.LayerNorm(8), expand=fc(), contract=fc())
    behind = Named(dense=fc(), LayerNorm=nn.LayerNorm(8), dropout=nn.Dropout(0.1))
    for model in (before, behind, nn.TransformerEncoderLayer(8, 2, 8)):
        assert set(told(model)) == set(told(model.state_dict())) == {None}


def test_files_tell_what_names_tell(tmp_path: Path) -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.ReLU(), nn.GroupNorm(2, 8), conv())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert told(str(tmp_path / "model.pt")) == told(model.state_dict()) == [True, None, False]
    assert told(model) == [True, True, False]
    plain = nn.Sequential(OrderedDict(hidden=fc(), relu=nn.ReLU(), output=fc()))
    assert told(plain.state_dict()) == [False, False]


@pytest.mark.parametrize("factor", [50.0, 0.02])
def test_scale_is_nothing_where_a_norm_takes_it_back(factor: float) -> None:
    def found(*norms: nn.Module, wrapped: bool = False) -> set[Finding]:
        torch.manual_seed(0)
        layers = [nn.Linear(48, 48) for _ in range(4)]
        with torch.no_grad():
            layers[1].weight.mul_(factor)
        inner = [layers[1], *norms]
        middle = (
            Named(**{f"part{place}": part for place, part in enumerate(inner)}) if wrapped else nn.Sequential(*inner)
        )
        rows = diagnose(nn.Sequential(layers[0], middle, *layers[2:]))
        return set(rows.rows[1].findings) & {Finding.OVERGROWN, Finding.SHRUNK, Finding.ODD_SCALE}

    assert found() == {Finding.OVERGROWN if factor > 1 else Finding.SHRUNK}
    assert found(nn.LayerNorm(48)) == found(nn.ReLU(), nn.BatchNorm1d(48)) == set()
    assert found(nn.LayerNorm(48), wrapped=True) == {Finding.ODD_SCALE}
