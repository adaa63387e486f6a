"""The comparison as users get it: any source, frames, kinds of change in words, and one error for what cannot be."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ww_opt
from tests.spectral.comparing.pairs import State, net, state, tuned, with_change
from tests.spectral.comparing.test_rules import by_layer, pruned
from ww_opt.spectral import Comparison, compare, diagnose


def layerwise(old: State, change) -> State:
    return {name: change(tensor) if tensor.ndim > 1 else tensor for name, tensor in old.items()}


def test_it_stands_in_both_windows() -> None:
    assert ww_opt.compare is compare


def test_every_source_gives_the_same(tmp_path: Path) -> None:
    old, new = net(), net()
    new.load_state_dict(with_change(tuned(state(old)), lambda W: 10 * W))
    torch.save(new.state_dict(), tmp_path / "new.pt")
    save_file(new.state_dict(), tmp_path / "new.safetensors")
    torch.save({"epoch": 3, "model": new.state_dict()}, tmp_path / "training.pt")
    found = [
        compare(old, source)
        for source in (
            new,
            new.state_dict(),
            tmp_path / "new.pt",
            tmp_path / "new.safetensors",
            tmp_path / "training.pt",
        )
    ]
    for other in found[1:]:
        assert [row.pair for row in other] == [row.pair for row in found[0]]
        assert other.broken == found[0].broken
    assert found[-1].notes == ("NEW was read from the checkpoint's model",)


def test_rows_are_those_of_the_diagnoses() -> None:
    old, new = net(), net(first=20)
    found = compare(old, new)
    assert [row.old for row in found] == list(diagnose(old))
    assert [row.new for row in found] == list(diagnose(new))
    frame = found.to_frame()
    assert list(frame["name"]) == [row.name for row in found]
    assert list(frame["alpha_new"]) == [row.new.alpha for row in found]
    assert frame["ratio"].between(0.8, 1.2).all()
    assert len(found) == len(found.records()) == 4
    with pytest.raises(FrozenInstanceError):
        found.rows = ()  # type: ignore[misc]


def test_nothing_of_either_side_is_changed() -> None:
    old, new = net(norm=True), net(norm=True, first=20)
    before = [state(model) for model in (old, new)]
    compare(old, new)
    for model, own in zip((old, new), before, strict=True):
        assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_the_farthest_come_first_and_the_unchanged_are_counted_alone() -> None:
    old = state(net())
    new = {**old, "0.weight": tuned(old, 0.02)["0.weight"], "4.weight": tuned(old, 0.3)["4.weight"]}
    found = compare(old, new)
    assert [row.name for row in found.changed] == ["4", "0"]
    assert [row.name for row in found.unchanged] == ["2", "6"]
    assert found.changed[0].stands_out[0] == "moved by 30%"
    assert found.changed[1].stands_out == ()
    assert (found.n_vectors, found.n_changed_vectors) == (4, 0)


KINDS = {
    "nothing changed: every number is the same": lambda old: old,
    "no weight matrix changed; 4 vectors": lambda old: {
        name: tensor + 1 if tensor.ndim == 1 else tensor for name, tensor in old.items()
    },
    "two trainings from different starts": lambda old: state(net(first=20)),
    "cast to bfloat16": lambda old: {name: tensor.bfloat16() for name, tensor in old.items()},
    "quantised: 4 of 4 changed layers": lambda old: layerwise(old, by_layer),
    "pruned: 4 of 4 changed layers, 70% zeros": lambda old: layerwise(old, pruned(0.7)),
    "only the output layer changed (6)": lambda old: with_change(old, lambda W: W + 0.1, "6.weight"),
}


@pytest.mark.parametrize(("words", "change"), KINDS.items(), ids=KINDS.keys())
def test_kinds_of_change(words: str, change) -> None:
    old = state(net())
    (kind,) = compare(old, change(old)).kinds
    assert kind.startswith(words)


@pytest.mark.parametrize("change", [tuned, lambda old: with_change(old, by_layer)], ids=["fine-tune", "one of many"])
def test_no_kind_where_none_is_sure(change) -> None:
    old = state(net())
    new = change(old)
    if change is not tuned:
        new = {**tuned(old), "2.weight": new["2.weight"]}
    assert compare(old, new).kinds == ()


def test_a_layer_with_one_output_is_compared_as_a_vector() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1))
    old, new = state(model), state(model)
    new["2.weight"] = new["2.weight"] + 1
    found = compare(old, new)
    assert (found.n_vectors, found.n_changed_vectors, found.unread) == (3, 1, ())
    assert compare(old, with_change(old, lambda W: W * math.nan)).broken[0].name == "2.weight"


def test_groups_that_a_file_does_not_tell_are_said_not_guessed() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3, groups=2), nn.Conv2d(64, 64, 3))
    found = compare(model, model.state_dict())
    assert [row.name for row in found] == ["1"]
    assert found.unread[0][0] == "0"
    assert "both as modules or both as files" in found.unread[0][1]


def test_a_layer_that_is_on_the_meta_device_is_not_compared() -> None:
    old, new = net(), net()
    new[2] = nn.Linear(64, 64, device="meta")
    found = compare(old, new)
    assert [row.name for row in found] == ["0", "4", "6"]
    assert found.unread[0][0] == "2"
    assert "meta device" in found.unread[0][1]


def test_masks_of_a_file_may_hold_infinity() -> None:
    mask = torch.full((64, 64), -torch.inf).triu(1)
    old = {**state(net()), "causal_mask": mask}
    assert compare(old, {**tuned(old), "causal_mask": mask}).broken == ()


class TestBadInput:
    def test_no_layer_in_common(self) -> None:
        with pytest.raises(ValueError, match=r"a layer in common.*OLD has 0.weight 64x64.*NEW has fc.weight 30x40"):
            compare(net(), {"fc.weight": torch.ones(30, 40)})

    def test_no_matrix(self) -> None:
        with pytest.raises(ValueError, match="OLD has none; NEW has none"):
            compare(nn.BatchNorm1d(3), nn.BatchNorm1d(3))

    def test_all_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            empty = net()
        with pytest.raises(ValueError, match=r"must hold numbers on both sides.*meta device"):
            compare(net(), empty)

    def test_no_source(self) -> None:
        with pytest.raises(TypeError, match="but got int"):
            compare(net(), 3)  # type: ignore[arg-type]

    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_a_truncated_file(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"model.{suffix}"
        save_file(net().state_dict(), path) if suffix == "safetensors" else torch.save(net().state_dict(), path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match="damaged"):
            compare(net(), path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.pt"):
            compare(tmp_path / "none.pt", net())


def test_an_empty_comparison_says_nothing_changed() -> None:
    assert Comparison(()).verdict == "unchanged"
