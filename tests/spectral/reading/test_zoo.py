"""One network, five containers, one score: what is judged is a matter of the network, not of how it was saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from tests.spectral.reading.zoo import ZOO, with_adapters
from ww_opt.spectral import SCORES, diagnose, score
from ww_opt.spectral.scores import judged, network_gain


def dropped_ties(model: nn.Module) -> dict[str, torch.Tensor]:
    """As transformers saves: a tied output layer is not in the file."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            kept[name] = tensor.contiguous()
        seen.add(tensor.data_ptr())
    return kept


def as_pt(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def as_checkpoint(model: nn.Module, folder: Path) -> Path:
    """As a training saves it, by names that one trainer or another gives."""
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {place: {"exp_avg": torch.randn(64, 64)} for place in range(3)}
    checkpoint = {
        "epoch": 3, "model_state": state, "optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]},
        "rng": torch.get_rng_state(), "scaler": {"scale": 2.0},
    }  # fmt: skip
    torch.save(checkpoint, folder / "last.ckpt")
    return folder / "last.ckpt"


def as_safetensors(model: nn.Module, folder: Path) -> Path:
    save_model(model, str(folder / "model.safetensors"))
    return folder / "model.safetensors"


def as_folder(model: nn.Module, folder: Path) -> Path:
    """Shards as transformers writes them, beside what else lies in such a folder."""
    items = sorted(dropped_ties(model).items())
    half = len(items) // 2
    save_file(dict(items[:half]), folder / "model-00001-of-00002.safetensors")
    save_file(dict(items[half:]), folder / "model-00002-of-00002.safetensors")
    torch.save({"state": {}}, folder / "optimizer.bin")
    (folder / "config.json").write_text("{}")
    return folder


CONTAINERS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "state dict": lambda model, folder: model.state_dict(),
    ".pt": as_pt,
    "checkpoint": as_checkpoint,
    ".safetensors": as_safetensors,
    "folder": as_folder,
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = ZOO[name]()
    with torch.no_grad():  # something learnt, so that each layer counts for something of its own
        for number, (_, parameter) in enumerate(model.named_parameters()):
            if parameter.ndim == 2 and min(parameter.shape) >= 32:
                parameter += (
                    (1 + number % 3) * 0.3 * torch.outer(torch.randn(len(parameter)), torch.randn(parameter.shape[1]))
                )
    return model


LEFT_OUT = {
    "distilled_vit": {"head", "head_dist"},
    "vgg": {"classifier.4"},
    "unet": {"outc.conv"},
    "bert_of_one_layer": {"classifier.out_proj"},
    "masked_bert": {"bert.embeddings.word_embeddings"},
    "bert": {"classifier"},
    "swin": {"head.fc"},
    "resnet": {"fc"},
    "convnet": {"classifier"},
    "lstm": {"decoder"},
    "gru_with_weight_norm": {"out"},
    "torch_transformer": {"generator"},
    "plain_sequence": {"12"},
    "one_output": {"net.4"},
    "autoencoder": {"decoder.2"},
    "tied_llama": {"model.embed_tokens"},
    "untied_llama": {"lm_head"},
}


@pytest.mark.parametrize("name", ZOO)
def test_one_score_from_every_container(name: str, tmp_path: Path) -> None:
    model = built(name)
    expected = diagnose(model)
    names = {row.name for row in judged(expected)}
    assert names
    for container, save in CONTAINERS.items():
        (tmp_path / container).mkdir()
        found = diagnose(save(model, tmp_path / container))
        assert {row.name for row in judged(found)} == names, container
        for item in SCORES.values():
            assert item(found) == pytest.approx(item(expected), rel=1e-9, abs=1e-12), (container, item.name)
        assert all(row.in_score == "yes" or row.in_score.startswith("no: ") for row in found)


@pytest.mark.parametrize("name", ZOO)
def test_what_is_no_hidden_layer_is_a_row_and_not_in_the_score(name: str) -> None:
    """By construction: parameters that are called tables, tokens or the like, embeddings, and the output layers."""
    model = built(name)
    rows = {row.name: row for row in diagnose(model)}
    outside = {row.name for row in rows.values() if not row.is_judged and row.M >= 32}
    embeddings = {path for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    tables = {path for path, parameter in model.named_parameters() if parameter.ndim > 1 and "weight" not in path}
    tables = {path for path in tables if not path.endswith(("_proj", "weight"))}
    heads = LEFT_OUT.get(name) or {path for path in rows if "head" in path and "conv_head" not in path}
    assert {path for path in outside if path not in embeddings | tables | heads} == set()
    assert not {row.name for row in rows.values() if row.is_judged} & (embeddings | tables | heads)


def test_a_tie_is_read_from_the_file_that_dropped_a_name(tmp_path: Path) -> None:
    """The gain, which the score cuts at Xavier's, tells whether the row left is known to be an embedding as well."""
    model = built("tied_gpt_whose_head_sorts_first")
    rows = diagnose(as_safetensors(model, tmp_path)).rows
    assert network_gain(rows) == pytest.approx(network_gain(diagnose(model).rows), rel=1e-9)
    assert {row.name: row.role.name for row in rows}["a_head"] == "EMBEDDING"


def test_adapters_count_as_what_they_merge_to() -> None:
    torch.manual_seed(0)
    apart = with_adapters(False)
    torch.manual_seed(0)
    merged = with_adapters(True)
    merged.head.load_state_dict(apart.base_model.model.head.state_dict())  # type: ignore[union-attr,operator]
    assert score(apart) == pytest.approx(score(merged), abs=1e-6)
    roles = {row.name.rpartition(".")[2]: row.role.name for row in diagnose(apart) if ".q" in row.name}
    assert roles == {"q": "BASE", "default": "ADAPTER", "merged": "HIDDEN"}
