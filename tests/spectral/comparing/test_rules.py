"""What is planted into one layer of a fine-tune is named with its rule, alone; healthy pairs break nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.spectral.comparing.pairs import net, state, tuned, with_change
from tests.spectral.test_advice import WIDTH, collapsed, huge, rounded, start
from ww_opt.spectral import compare
from ww_opt.spectral.comparing.shifts import Rule


def clipped(times: float) -> Callable[[Tensor], Tensor]:
    return lambda W: W.clamp(-times * float(W.std()), times * float(W.std()))


def by_layer(W: Tensor, bits: int = 4) -> Tensor:
    step = W.abs().max() / (2 ** (bits - 1) - 1)
    return (W / step).round() * step


def pruned(share: float) -> Callable[[Tensor], Tensor]:
    return lambda W: torch.where(W.abs() <= W.abs().flatten().quantile(share), torch.zeros_like(W), W)


def shuffled(W: Tensor) -> Tensor:
    torch.manual_seed(3)
    return W.flatten()[torch.randperm(W.numel())].view_as(W)


PLANTED = {
    "x10": (lambda W: 10 * W, Rule.RESCALED),
    "x0.1": (lambda W: 0.1 * W, Rule.RESCALED),
    "x10 and turned": (lambda W: 10 * tuned({"W": W}, 1.0)["W"], Rule.ODD_SCALE),
    "x0.1 and turned": (lambda W: 0.1 * tuned({"W": W}, 1.0)["W"], Rule.ODD_SCALE),
    "clipped at 2 sigma": (clipped(2.0), Rule.CLIPPED),
    "clipped at 0.5 sigma": (clipped(0.5), Rule.CLIPPED),
    "int4 by channel": (rounded, Rule.ROUNDED),
    "int4 by layer": (by_layer, Rule.ROUNDED),
    "pruned": (pruned(0.9), Rule.PRUNED),
    "zero": (torch.zeros_like, Rule.ZEROED),
    "huge entry": (huge, Rule.TRAP),
    "rank": (lambda W: torch.add(collapsed(W), W, alpha=0.01), Rule.RANK_LOST),
    "initialised": (start, Rule.REPLACED),
    "shuffled": (shuffled, Rule.REPLACED),
    "transposed": (lambda W: W.T.contiguous(), Rule.REPLACED),
    "NaN": (lambda W: torch.where(W.max() == W, torch.nan, W), Rule.NOT_FINITE),
    "infinity": (lambda W: torch.where(W.max() == W, torch.inf, W), Rule.NOT_FINITE),
}


@pytest.mark.parametrize(("change", "rule"), PLANTED.values(), ids=PLANTED.keys())
def test_what_is_planted_is_named(change: Callable[[Tensor], Tensor], rule: Rule) -> None:
    old = state(net())
    found = compare(old, with_change(tuned(old), change))
    (broken,) = found.broken
    assert broken.name == "2"
    assert rule in {item.rule for item in broken.breaks}
    assert found.verdict == "broken"
    # other way round, what was damaged is OLD, and mending it is no damage of that kind
    if rule not in (Rule.RESCALED, Rule.ODD_SCALE, Rule.REPLACED):
        assert not any(
            item.rule is rule for own in compare(with_change(old, change), tuned(old)).broken for item in own.breaks
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda old: tuned(old),
        lambda old: tuned(old, 0.5),
        lambda old: state(net(first=20)),
        lambda old: {name: 1.2 * tensor for name, tensor in old.items()},
        lambda old: {name: tensor.bfloat16() for name, tensor in old.items()},
        lambda old: {name: by_layer(tensor, 8) if tensor.ndim > 1 else tensor for name, tensor in old.items()},
        lambda old: {name: pruned(0.5)(tensor) if tensor.ndim > 1 else tensor for name, tensor in old.items()},
    ],
    ids=["fine-tune", "retrained", "another seed", "grown", "bfloat16", "int8", "half pruned"],
)
def test_a_healthy_pair_breaks_nothing(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    old = state(net())
    found = compare(old, change(old))
    assert found.broken == ()
    assert found.verdict == "changed"


def test_a_band_without_a_change_is_no_break() -> None:
    damaged = state(net())
    for place, change in enumerate((rounded, clipped(0.5), huge)):
        damaged[f"{2 * place}.weight"] = change(damaged[f"{2 * place}.weight"])
    found = compare(damaged, {name: 1.01 * tensor for name, tensor in damaged.items()})
    assert found.broken == ()


def test_rounding_that_was_trained_for_is_no_break() -> None:
    master = {name: rounded(tensor) if tensor.ndim > 1 else tensor for name, tensor in state(net()).items()}
    moved = {name: rounded(tensor) if tensor.ndim > 1 else tensor for name, tensor in tuned(master, 0.3).items()}
    assert compare(master, moved).broken == (), "few values before and after"
    assert compare(tuned(master, 0.02), master).broken == (), "few values, and hardly an error"
    assert len(compare(tuned(master, 0.3), master).broken) == 4


def test_a_net_that_was_reset_has_unlearnt_what_the_old_one_had() -> None:
    torch.manual_seed(5)
    fresh = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, 10))
    old = dict(zip(fresh.state_dict(), net().state_dict().values(), strict=True))
    found = compare(old, fresh)
    assert {item.name: item.breaks[0].rule for item in found.broken} == dict.fromkeys("012", Rule.UNLEARNT)


@pytest.mark.parametrize("name", ["2.weight", "6.weight"])
def test_outputs_in_another_order_are_told_from_a_new_layer(name: str) -> None:
    old = state(net())
    (broken,) = compare(old, with_change(tuned(old), lambda W: W.roll(1, 0), name)).broken
    assert "100% of its outputs are others of OLD's" in broken.breaks[0].seen
    (broken,) = compare(old, with_change(tuned(old), lambda W: torch.randn_like(W) * W.std(), name)).broken
    assert broken.breaks[0].rule is Rule.REPLACED
    assert ("right only if the output layer was trained anew" in broken.breaks[0].seen) == (name == "6.weight")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_on_both_sides_is_broken_and_said(bad: float) -> None:
    old = with_change(state(net()), lambda W: torch.where(W.max() == W, bad, W))
    (broken,) = compare(old, old).broken
    assert broken.breaks[0].rule is Rule.NOT_FINITE
    assert "as in OLD" in broken.breaks[0].seen
    mended = compare(old, state(net()))
    assert mended.broken == ()
    assert "OLD holds NaN" in mended.changed[-1].stands_out[0]


@pytest.mark.parametrize(("name", "was"), [("2.bias", "there"), ("4.weight", "missing"), ("6.weight", "smaller")])
def test_nan_outside_the_layers_in_common(name: str, was: str) -> None:
    old, new = state(net()), state(net())
    new[name] = new[name] * math.nan
    if was != "there":
        tensor = old.pop(name)
        old |= {name: tensor[:7]} if was == "smaller" else {}
    assert [item.name.partition(".")[0] for item in compare(old, new).broken] == [name.partition(".")[0]]


class TestNorms:
    """Of a layer before a batch norm the scale is harmless if its running statistics moved along."""

    @staticmethod
    def scaled(factor: float, *, along: bool) -> dict[str, Tensor]:
        new = state(net(norm=True))
        new["3.weight"] = factor * new["3.weight"]
        if along:
            new["4.running_var"] = factor**2 * new["4.running_var"]
            new["4.running_mean"] = factor * new["4.running_mean"]
        return new

    @pytest.mark.parametrize("factor", [10.0, 0.1])
    def test_statistics_that_stayed(self, factor: float) -> None:
        found = compare(state(net(norm=True)), self.scaled(factor, along=False))
        (broken,) = found.broken
        assert (broken.name, broken.breaks[0].rule) == ("3", Rule.RESCALED)
        assert "not taken back" in broken.breaks[0].seen

    @pytest.mark.parametrize("factor", [10.0, 0.1])
    def test_statistics_that_moved_along(self, factor: float) -> None:
        found = compare(state(net(norm=True)), self.scaled(factor, along=True))
        assert found.broken == ()
        (note,) = (row.note for row in found if row.note)
        assert "harmless: a norm behind it moved along" in note

    def test_a_norm_without_statistics_takes_any_scale_back(self) -> None:
        def model() -> nn.Sequential:
            own = net()
            return nn.Sequential(own[0], nn.LayerNorm(WIDTH), *own[1:])

        old, new = model(), model()
        with torch.no_grad():
            new[0].weight.mul_(10)
        found = compare(old, new)
        assert found.broken == ()
        assert next(row.note for row in found if row.note) == "norm x10, harmless: a norm follows"

    def test_the_norm_of_the_same_number_is_asked(self) -> None:
        def model(*, var: float) -> dict[str, Tensor]:
            torch.manual_seed(0)
            own = {f"block.conv{n}.weight": torch.randn(48, 48, 3, 3) for n in (1, 2)}
            for n in (1, 2):
                own[f"block.bn{n}.running_mean"] = torch.zeros(48)
                own[f"block.bn{n}.running_var"] = torch.ones(48) * (var if n == 2 else 1.0)
            return own

        new = model(var=100.0)
        new["block.conv2.weight"] = 10 * new["block.conv2.weight"]
        assert compare(model(var=1.0), new).broken == ()
        new["block.conv1.weight"] = 10 * new["block.conv1.weight"]
        assert [item.name for item in compare(model(var=1.0), new).broken] == ["block.conv1"]
