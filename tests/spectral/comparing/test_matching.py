"""Names and shapes come first, from headers alone; prefixes are found and told; one side's own tensors are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.spectral.comparing.pairs import net, state
from ww_opt.spectral import compare
from ww_opt.spectral.comparing.matching import Difference, Matching, match
from ww_opt.spectral.reading import checkpoints
from ww_opt.spectral.reading.headers import Header, headers


def matched(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Matching:
    return match(headers(old), headers(new))


def with_prefix(prefix: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in own.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model.", "a.b."])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_prefix_on_one_side_is_matched_and_told(prefix: str, is_new: bool) -> None:
    plain = state(net())
    sides = (plain, with_prefix(prefix, plain)) if is_new else (with_prefix(prefix, plain), plain)
    found = compare(*sides)
    assert found.verdict == "unchanged"
    assert [row.name for row in found] == ["0", "2", "4", "6"]
    assert found.notes == (f"the names of {'NEW' if is_new else 'OLD'} begin with `{prefix}`, which is left out here",)


def test_a_prefix_beside_a_new_head() -> None:
    plain = state(net())
    new = {**with_prefix("bert.", plain), "classifier.weight": torch.randn(3, 64), "classifier.bias": torch.zeros(3)}
    found = compare(plain, new)
    assert len(found.unchanged) == 4
    assert [item.name for item in found.differences] == ["classifier.weight", "classifier.bias"]
    assert found.verdict == "missing"


def test_the_usual_prefixes_of_both_sides() -> None:
    plain = state(net())
    found = compare(with_prefix("model.", plain), with_prefix("backbone.", plain))
    assert found.verdict == "unchanged"
    assert [note.split("`")[1] for note in found.notes] == ["model.", "backbone."]


def test_equal_names_need_no_word() -> None:
    plain = with_prefix("module.", state(net()))
    assert compare(plain, plain).notes == ()


def test_a_prefix_that_only_some_names_share_is_none() -> None:
    old = {"encoder.fc.weight": torch.randn(40, 40), "decoder.fc.weight": torch.randn(40, 40)}
    new = {**old, "teacher.encoder.fc.weight": torch.randn(40, 40)}
    assert matched(old, new).prefixes == ("", "")
    assert [item.name for item in matched(old, new).differences] == ["teacher.encoder.fc.weight"]


def test_what_stands_on_one_side_and_what_changed_its_shape() -> None:
    old, new = state(net()), state(net())
    del new["2.bias"]
    new["6.weight"], new["6.bias"] = torch.randn(12, 64), torch.zeros(12)
    new["8.weight"] = torch.randn(40, 12)
    found = compare(old, new)
    assert found.differences == (
        Difference("2.bias", (64,), None),
        Difference("6.weight", (10, 64), (12, 64)),
        Difference("6.bias", (10,), (12,)),
        Difference("8.weight", None, (40, 12)),
    )
    assert [row.name for row in found] == ["0", "2", "4"]
    assert (found.verdict, found.fails("broken"), found.fails("missing")) == ("missing", False, True)


def test_a_shape_that_changed_is_named_however_many_entries_it_has() -> None:
    old = {"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 32), "c.weight": torch.randn(64, 64)}
    new = {**old, "b.weight": old["b.weight"].T.contiguous(), "c.weight": old["c.weight"].view(64, 64, 1, 1)}
    found = compare(old, new)
    assert found.differences == (
        Difference("b.weight", (64, 32), (32, 64)),
        Difference("c.weight", (64, 64), (64, 64, 1, 1)),
    )
    assert found.unread == ()


def test_a_parametrised_weight_is_the_same_layer() -> None:
    old, new = net(), net()
    torch.nn.utils.parametrizations.weight_norm(new[2])
    found = compare(old, new)
    assert found.differences == ()
    assert [row.name for row in found] == ["0", "2", "4", "6"]
    assert found.rows[1].pair.distance < 1e-6


def test_a_tied_name_that_a_file_leaves_out_is_no_difference(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 40)
            self.output = nn.Linear(40, 50, bias=False)
            self.output.weight = self.embedding.weight

    model = Tied()
    save_file({"embedding.weight": model.embedding.weight.detach()}, tmp_path / "m.safetensors")
    assert compare(model, tmp_path / "m.safetensors").verdict == "unchanged"


class TestHeaders:
    def test_of_safetensors_nothing_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_file({"a.weight": torch.ones(40, 32, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
        save_file({"b.weight": torch.ones(40, 32)}, tmp_path / "b.safetensors")

        def refuse(self: object, key: str) -> Tensor:
            raise AssertionError("a tensor was read")

        monkeypatch.setattr(checkpoints._SafeTensors, "__getitem__", refuse)
        assert headers(tmp_path / "a.safetensors").entries == {"a.weight": Header("a.weight", (40, 32), "bfloat16")}
        with pytest.raises(ValueError, match=r"layer in common.*OLD has a.weight 40x32; NEW has b.weight 40x32"):
            compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_of_a_sharded_folder(self, tmp_path: Path, suffix: str) -> None:
        plain = state(net())
        names, stem = sorted(plain), "model" if suffix == "safetensors" else "pytorch_model"
        files = {f"{stem}-0000{n}-of-00002.{suffix}": names[n - 1 :: 2] for n in (1, 2)}
        for file, own in files.items():
            part = {name: plain[name] for name in own}
            save_file(part, tmp_path / file) if suffix == "safetensors" else torch.save(part, tmp_path / file)
        index = {"weight_map": {name: file for file, own in files.items() for name in own}}
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
        assert {name: own.shape for name, own in headers(tmp_path).entries.items()} == {
            name: tuple(tensor.shape) for name, tensor in plain.items() if tensor.ndim
        }
        assert compare(tmp_path, plain).verdict == "unchanged"
