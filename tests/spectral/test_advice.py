"""What rows may come from: the right cause of planted weights, nothing of healthy ones, no two that contradict."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.spectral.test_findings import any_row
from ww_opt.spectral import Diagnosis, diagnose
from ww_opt.spectral.advice import Cause, nothing_learnt, suggestions
from ww_opt.spectral.findings import Finding, Role
from ww_opt.spectral.rules import with_findings

WIDTH = 64


def learnt(seed: int) -> Tensor:
    """PyTorch's own start, and a signal of twelve directions beyond its edge."""
    torch.manual_seed(seed)
    start = nn.Linear(WIDTH, WIDTH).weight.detach()
    u, v = (torch.linalg.qr(torch.randn(WIDTH, 12))[0] for _ in range(2))
    return start + (u * torch.linspace(3.0, 1.0, 12)) @ v.T


def net(change: Callable[[Tensor], Tensor] = lambda W: W, place: int = 1) -> nn.Sequential:
    """Three layers that have learnt and a head; one of them is changed."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, 10))
    with torch.no_grad():
        for layer in range(3):
            W = learnt(layer)
            model[layer].weight.copy_(change(W) if layer == place else W)
    return model


def start(W: Tensor) -> Tensor:
    torch.manual_seed(9)
    return nn.Linear(WIDTH, WIDTH).weight.detach()


def huge(W: Tensor, times: float = 40.0) -> Tensor:
    W = W.clone()
    W[3, 5] = times * W.std()
    return W


def collapsed(W: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(W)
    return u * torch.where(torch.arange(WIDTH) < 3, s * 4, s * 1e-9) @ v


def rounded(W: Tensor) -> Tensor:
    step = W.abs().amax(dim=1, keepdim=True) / 7
    return (W / step).round() * step


@pytest.mark.parametrize(
    ("change", "cause", "place"),
    [
        (lambda W: 10 * W, Cause.RATE_TOO_HIGH, 1),
        (collapsed, Cause.RATE_TOO_HIGH, 0),
        (lambda W: 0.1 * W, Cause.DECAY_TOO_HIGH, 2),
        (start, Cause.NOT_MOVED, 1),
        (huge, Cause.HUGE_ENTRY, 1),
        (lambda W: huge(W, 1000.0), Cause.HUGE_ENTRY, 1),
        (rounded, Cause.ROUNDED, 2),
        (lambda W: W * float("nan"), Cause.DIVERGED, 1),
    ],
)
def test_the_planted_cause_comes_first(change: Callable[[Tensor], Tensor], cause: Cause, place: int) -> None:
    found = suggestions(diagnose(net(change, place)))
    assert found[0].cause is cause
    assert found[0].layers == (str(place),)
    assert found[0].words.startswith(f"{place}: {cause.value} (")
    assert [item.likelihood for item in found] == sorted((item.likelihood for item in found), reverse=True)


def test_of_a_healthy_net_nothing_is_said() -> None:
    assert suggestions(diagnose(net())) == ()
    assert nothing_learnt(diagnose(net())) == ""
    assert suggestions(diagnose(net(huge), convention="weightwatcher")) == ()


def test_a_net_at_its_start_has_learnt_nothing() -> None:
    torch.manual_seed(0)
    rows = diagnose(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, 10)))
    assert nothing_learnt(rows).startswith("Nothing was learnt that a spectrum shows: all 3 judged")
    assert [item.cause for item in suggestions(rows)] == [Cause.TOO_LITTLE_TRAINING, Cause.NOT_MOVED]
    assert nothing_learnt(diagnose(net(start))) == ""


def test_a_frozen_layer_is_told_where_it_was_never_trained() -> None:
    for change, expected in ((start, [(Cause.NOT_MOVED, ("1",), "almost sure")]), (lambda W: W, [])):
        model = net(change)
        model[1].requires_grad_(False)
        found = suggestions(diagnose(model))
        assert [(item.cause, item.layers, item.sureness) for item in found] == expected


def test_an_output_layer_is_asked_for_huge_entries_alone() -> None:
    for change, expected in ((lambda W: 20 * W, set()), (start, set()), (huge, {Finding.TRAP})):
        model = nn.Sequential(*net()[:3], nn.Linear(WIDTH, WIDTH))
        with torch.no_grad():
            model[3].weight.copy_(change(learnt(3)))
        rows = diagnose(model)
        assert rows.rows[3].role is Role.HEAD
        assert set(rows.rows[3].findings) - {Finding.NO_FAULT} == expected
        assert [(item.cause, item.layers) for item in suggestions(rows)] == [
            (Cause.HUGE_ENTRY, ("3",)) for _ in expected
        ]


def test_a_net_without_wide_layers_is_passed_over() -> None:
    rows = diagnose(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)))
    assert suggestions(rows) == ()
    assert nothing_learnt(rows) == ""


def test_scale_alone_is_a_weak_sign_where_norms_are_not_known() -> None:
    class Block(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(WIDTH)

    (found,) = suggestions(diagnose(Block(*net(lambda W: 10 * W))))
    assert (found.cause, found.sureness) == (Cause.RATE_TOO_HIGH, "possible")
    assert found.words.endswith("(possible, and only if no norm follows)")
    with_norm = nn.Sequential(
        *itertools.chain.from_iterable((own, nn.LayerNorm(WIDTH)) for own in net(lambda W: 10 * W)[:3])
    )
    assert suggestions(diagnose(with_norm)) == ()


def test_suggestions_do_not_contradict_each_other() -> None:
    draw, seen = random.Random(1), set()
    for _ in range(1500):
        found = suggestions(Diagnosis(with_findings(any_row(draw, str(place)) for place in range(5))))
        by_cause = {item.cause: set(item.layers) for item in found}
        seen |= set(by_cause)
        assert len(by_cause) == len(found)
        idle = by_cause.get(Cause.NOT_MOVED, set())
        assert not idle & (by_cause.get(Cause.RATE_TOO_HIGH, set()) | by_cause.get(Cause.DECAY_TOO_HIGH, set()))
        if Cause.TOO_LITTLE_TRAINING in by_cause:  # raise the rates of all
            assert Cause.RATE_TOO_HIGH not in by_cause
    assert seen == set(Cause) - {Cause.DIVERGED}
