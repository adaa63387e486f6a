"""Checkpoint files -> the weights of the model they were saved from, and one clear line for every file that is none."""

from __future__ import annotations

import builtins
import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.spectral.reading.weight_rows import Net, assert_same, by_name, matrices
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.findings import Status
from ww_opt.spectral.reading import checkpoints
from ww_opt.spectral.reading.weights import named_weights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def save_zip(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save({"best": 0.9, "state_dict": state}, path, _use_new_zipfile_serialization=False)


def save_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(dict(state), path)


@pytest.mark.parametrize(
    ("save", "name"),
    [(save_zip, "model.pt"), (save_legacy, "model.th"), (save_safetensors, "model.safetensors")],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_files_read_as_the_model_does(
    save: Callable[[Mapping[str, Tensor], Path], None], name: str, as_text: bool, tmp_path: Path
) -> None:
    model = Net()
    path = tmp_path / name
    save(model.state_dict(), path)
    assert_same(by_name(str(path) if as_text else path), by_name(model))


@pytest.mark.parametrize(
    ("save", "pattern"),
    [(save_safetensors, "model-{}.safetensors"), (save_zip, "pytorch_model-{}.bin")],
)
@pytest.mark.parametrize("has_index", [True, False])
def test_folders_of_shards(
    save: Callable[[Mapping[str, Tensor], Path], None], pattern: str, has_index: bool, tmp_path: Path
) -> None:
    model = Net()
    items = list(model.state_dict().items())
    save(dict(items[:5]), tmp_path / pattern.format(1))
    save(dict(items[5:]), tmp_path / pattern.format(2))
    if has_index:
        stem, _, suffix = pattern.partition("-{}")
        places = {key: pattern.format(1 + (index >= 5)) for index, (key, _) in enumerate(items)}
        (tmp_path / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
        save({"stray.weight": torch.randn(3, 3)}, tmp_path / pattern.format(3))
    else:
        (tmp_path / "config.json").write_text("{}")
    assert_same(by_name(tmp_path), by_name(model))


def test_safetensors_are_read_one_tensor_at_a_time(tmp_path: Path) -> None:
    save_safetensors({f"{name}.weight": torch.randn(4, 4) for name in "abc"}, tmp_path / "m.safetensors")
    state, _ = checkpoints.open_checkpoint(str(tmp_path / "m.safetensors"))
    assert state["a.weight"] is not state["a.weight"]
    rows = named_weights(tmp_path / "m.safetensors")
    first = next(rows)
    assert matrices(first).untyped_storage().nbytes() == 4 * 16


def test_shard_that_the_index_names_but_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        named_weights(tmp_path)


def test_damaged_index(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"index of a checkpoint"):
        named_weights(tmp_path)


def truncated(path: Path) -> None:
    torch.save({"a": torch.randn(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "no weights")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("hello world\nthis is a text file"),
        lambda path: path.write_text("import torch\n"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(range(256)) * 8),
        truncated,
        archive,
    ],
)
def test_files_that_are_no_checkpoint(write: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path)
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    with pytest.raises(ValueError, match=r"is not, or is damaged .*: save it again\.$") as caught:
        named_weights(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "state_dict": {}}])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_pickled_module_is_refused(wrap: Callable[[nn.Module], Any], is_legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(wrap(nn.Linear(3, 3)), path, _use_new_zipfile_serialization=not is_legacy)
    with pytest.raises(ValueError, match=r"holds more than weights \(torch\.nn\.modules\.linear\.Linear\)") as caught:
        named_weights(path)
    assert "save `model.state_dict()` instead" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_of_something_else(tmp_path: Path) -> None:
    torch.save(torch.randn(3, 3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match=r"must hold a state dict, but .* holds a Tensor"):
        named_weights(tmp_path / "tensor.pt")
    torch.save({"epoch": 3, "model": {}}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"holds only \['epoch', 'model'\]"):
        named_weights(tmp_path / "none.pt")


def test_no_such_file_or_shard(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        named_weights(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="holds neither"):
        named_weights(tmp_path)


@pytest.mark.parametrize("save", [save_zip, save_safetensors])
def test_checkpoint_without_matrices(save: Callable[[Mapping[str, Tensor], Path], None], tmp_path: Path) -> None:
    path = tmp_path / ("m.safetensors" if save is save_safetensors else "m.pt")
    save({"bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="at least one weight of 2 or more dimensions, but the checkpoint"):
        list(named_weights(path))


def test_missing_safetensors_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"")
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("safetensors")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install safetensors"):
        named_weights(tmp_path / "m.safetensors")


def test_statuses_of_files(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.full((3, 3), torch.inf), "b.weight": torch.randn(1, 3)}, tmp_path / "m.pt")
    assert [row.status for row in named_weights(tmp_path / "m.pt")] == [Status.SUCCESS, Status.VECTOR]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_warnings_about_how_a_file_was_written_stay_inside(tmp_path: Path) -> None:
    weight = torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)
    torch.save({"fc.weight": weight}, tmp_path / "m.pt")  # torch.load warns of its own use of TypedStorage
    row = by_name(tmp_path / "m.pt")["fc"]
    assert torch.equal(matrices(row)[0], weight.dequantize())


STATE = {"fc1.weight": torch.ones(4, 4), "fc2.weight": torch.ones(4, 4)}
MOMENTS = {"state": {0: {"exp_avg": torch.ones(4, 4)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("checkpoint", "where"),
    [
        ({"step": 3, "model_state": STATE}, "model_state"),
        ({"epoch": 1, "state": STATE, "optimizer": MOMENTS, "rng_state": torch.zeros(4, 4)}, "state"),
        (
            {"state_dict": STATE, "optimizer_states": [MOMENTS], "loops": {"fit": {}}, "confusion": torch.ones(4, 4)},
            "state_dict",
        ),
        (
            {"checkpoint": {"weights": STATE, "epoch": 3}, "optimizer_state_dict": {"exp_avg": STATE}},
            "checkpoint.weights",
        ),
        ({"network": STATE, "metrics": {"confusion": torch.ones(4, 4)}}, "network"),
        ({**STATE, "fc1._extra_state": {"history": torch.ones(4, 4)}}, ""),
    ],
)
def test_the_one_state_dict_in_a_file_is_read_whatever_its_key(checkpoint: Any, where: str, tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "m.pt")
    for source in (checkpoint, tmp_path / "m.pt"):
        assert list(by_name(source)) == ["fc1", "fc2"]
        note = diagnose(source).note
        assert (f"read from the checkpoint's {where}" in note) if where else "read from" not in note


@pytest.mark.parametrize("keys", [("model", "ema"), ("state_dict", "state_dict_ema"), ("generator", "discriminator")])
def test_of_several_state_dicts_one_has_to_be_chosen(keys: tuple[str, str], tmp_path: Path) -> None:
    checkpoint = {"epoch": 3, keys[0]: STATE, keys[1]: STATE, "optimizer": MOMENTS}
    torch.save(checkpoint, tmp_path / "m.pt")
    for source in (checkpoint, tmp_path / "m.pt"):
        with pytest.raises(ValueError, match=rf"2 state dicts: {keys[0]}, {keys[1]}\..*checkpoint\['{keys[0]}'\]"):
            named_weights(source)
    assert list(by_name(torch.load(tmp_path / "m.pt")[keys[1]])) == ["fc1", "fc2"]  # the remedy


def test_an_optimizer_is_no_network() -> None:
    with pytest.raises(ValueError, match=r"holds only \['state', 'param_groups'\]"):
        named_weights(MOMENTS)


def test_layers_of_a_sorted_file_come_in_the_order_of_numbers(tmp_path: Path) -> None:
    save_safetensors({f"net.{n}.weight": torch.randn(4, 4) for n in range(12)}, tmp_path / "m.safetensors")
    assert list(by_name(tmp_path / "m.safetensors")) == [f"net.{n}" for n in range(12)]


def test_a_folder_of_folders_names_those_that_hold_weights(tmp_path: Path) -> None:
    for name in ("unet", "vae", "scheduler"):
        (tmp_path / name).mkdir()
    for name in ("unet", "vae"):
        save_safetensors(STATE | {}, tmp_path / name / "diffusion_pytorch_model.safetensors")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="pass one of the folders in it that do: unet, vae"):
        named_weights(tmp_path)
    assert list(by_name(tmp_path / "unet")) == ["fc1", "fc2"]
