"""Checkpoint files -> state dicts whose tensors are read one at a time. Runs no code that a file brings along."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ww_opt.spectral.reading.state_dicts import state_dict_in

__all__ = ["open_checkpoint"]


def open_checkpoint(path: str) -> Mapping[str, Any]:
    """Open a file of torch or safetensors, or a folder of such shards; tensors are read when they are asked for.

    Raises:
        FileNotFoundError: there is no such file, or no shard in the folder.
        ValueError: the file is damaged, no checkpoint, or holds more than weights.
        ImportError: a safetensors file, and the package `safetensors` is not installed.
    """
    place = Path(path)
    if place.is_dir():
        for pattern, read in (("*.safetensors", _SafeTensors), ("pytorch_model*.bin", _torch_shards)):
            files = _shards(place, pattern)
            if files:
                return read(files)
        raise FileNotFoundError(
            f"A folder must hold *.safetensors or pytorch_model*.bin, but {path} holds neither: "
            "pass the checkpoint file itself."
        )
    if not place.exists():
        raise FileNotFoundError(f"A checkpoint must exist, but there is no file or folder {path}: check the path.")
    return _SafeTensors([place]) if place.suffix == ".safetensors" else _torch_shards([place])


def _shards(folder: Path, pattern: str) -> list[Path]:
    """The files that the folder's index names; without an index, all that match."""
    for index in sorted(folder.glob(f"{pattern}.index.json")):
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"The index of a checkpoint must map weights to files, but {index} does not.") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"The shards that {index} names must exist, but these do not: {missing}.")
        return [folder / name for name in names]
    return sorted(folder.glob(pattern))


def _torch_shards(files: Sequence[Path]) -> dict[str, Any]:
    return {key: value for file in files for key, value in state_dict_in(_torch_load(file), str(file)).items()}


def _torch_load(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was written, which its reader cannot change
            # files from before torch 1.6 are no zip archives and cannot be mapped into memory
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise
    except Exception as error:  # a damaged file raises anything: KeyError, EOFError, RuntimeError, OSError ...
        foreign = re.search(r"Unsupported (?:global|class)[^\n]*?([\w.]+\.\w+)", str(error))
        if foreign:
            raise ValueError(
                f"A checkpoint must hold weights alone, but {path} holds more than weights ({foreign[1]}), which only "
                "running its code could load: save `model.state_dict()` instead."
            ) from error
        raise ValueError(
            f"A checkpoint must be a file from `torch.save(model.state_dict(), path)` or safetensors, but {path} is "
            f"not, or is damaged ({type(error).__name__}): save it again."
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"A checkpoint must hold a state dict, but {path} holds a {type(loaded).__name__}: "
            "save `model.state_dict()` instead."
        )
    return loaded


class _SafeTensors(Mapping[str, Tensor]):
    """Tensors of safetensors files, each read from disk anew whenever it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError(
                "Reading .safetensors needs the package `safetensors`, which is not installed: "
                "`pip install safetensors`."
            ) from error
        self._files: dict[str, Any] = {}
        for file in files:
            try:
                opened: Any = safe_open(str(file), framework="pt", device="cpu")
            except SafetensorError as error:
                raise ValueError(
                    f"A .safetensors file must be one, but {file} is not, or is damaged ({error}): save it again."
                ) from error
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._files[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
