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

from ww_opt.spectral.reading.containers import Found, state_dict_in

__all__ = ["open_checkpoint"]


def open_checkpoint(path: str) -> Found:
    """Open a file of torch or safetensors, or a folder of such shards; tensors are read when they are asked for.

    Returns:
        The state dict, and the keys under which the file holds it.

    Raises:
        FileNotFoundError: there is no such file, or no shard in the folder.
        ValueError: the file is damaged, no checkpoint, or holds more than weights, or several networks.
        ImportError: a safetensors file, and the package `safetensors` is not installed.
    """
    place = Path(path)
    if place.is_dir():
        for pattern in ("*.safetensors", "*.bin"):
            files = _shards(place, pattern)
            if files and pattern == "*.safetensors":
                return _SafeTensors(files), ""
            if files:
                return _torch_shards(files)
        inside = sorted(folder.name for folder in place.iterdir() if folder.is_dir() and _holds_weights(folder))
        raise FileNotFoundError(
            f"A folder must hold *.safetensors or pytorch_model*.bin, but {path} holds neither: "
            + (f"pass one of the folders in it that do: {', '.join(inside)}." if inside else "pass the file itself.")
        )
    if not place.exists():
        raise FileNotFoundError(f"A checkpoint must exist, but there is no file or folder {path}: check the path.")
    return (_SafeTensors([place]), "") if place.suffix == ".safetensors" else _torch_shards([place])


# a folder may hold the state of the training, adapters and copies in half precision beside the network
_NO_WEIGHTS = re.compile(r"optimizer|scheduler|training_args|scaler|rng_state|random_states|\.(fp16|bf16|non_ema)\.")
_ADAPTERS = re.compile(r"adapter|lora|embeds")


def _holds_weights(folder: Path) -> bool:
    return any(_shards(folder, pattern) for pattern in ("*.safetensors", "*.bin"))


def _shards(folder: Path, pattern: str) -> list[Path]:
    """The files that the folder's index names; without an index, all that match and hold the network itself.

    Adapters are read where there is nothing else, and so are copies in half precision.
    """
    for index in sorted(folder.glob(f"{pattern}.index.json")):
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"The index of a checkpoint must map weights to files, but {index} does not.") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"The shards that {index} names must exist, but these do not: {missing}.")
        return [folder / name for name in names]
    files = sorted(folder.glob(pattern))
    if pattern == "*.bin":
        files = [
            file for file in files if re.match(r"(diffusion_)?pytorch_(model|lora)|model|adapter_model", file.name)
        ]
    weights = [file for file in files if not _NO_WEIGHTS.search(file.name)] or [
        file for file in files if re.search(r"\.(fp16|bf16)\.", file.name)
    ]
    return [file for file in weights if not _ADAPTERS.search(file.name)] or weights


def _torch_shards(files: Sequence[Path]) -> Found:
    found = [state_dict_in(_torch_load(file), str(file)) for file in files]
    where = next((where for _, where in found if where), "")
    return found[0] if len(found) == 1 else ({k: v for state, _ in found for k, v in state.items()}, where)


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
    """Tensors of safetensors files, each read from disk anew whenever it is asked for, in the natural order of names.

    ``ties``: names that were left out of the files, since they are others for a tensor that is kept.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError(
                "Reading .safetensors needs the package `safetensors`, which is not installed: "
                "`pip install safetensors`."
            ) from error
        self._files: dict[str, Any] = {}
        dropped: dict[str, list[str]] = {}
        for file in files:
            try:
                opened: Any = safe_open(str(file), framework="pt", device="cpu")
            except SafetensorError as error:
                raise ValueError(
                    f"A .safetensors file must be one, but {file} is not, or is damaged ({error}): save it again."
                ) from error
            self._files.update(dict.fromkeys(opened.keys(), opened))
            for name, kept in (opened.metadata() or {}).items():  # as `safetensors.torch.save_model` writes it
                dropped.setdefault(kept, []).append(name)
        # the files are sorted by letters, where `layers.10` stands before `layers.2`
        self._files = dict(sorted(self._files.items(), key=lambda item: _natural(item[0])))
        self.ties = {kept: tuple(names) for kept, names in dropped.items() if kept in self._files}

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._files[key].get_tensor(key)
        return tensor

    def header(self, key: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor, from the file's header alone."""
        own = self._files[key].get_slice(key)
        dtype = str(own.get_dtype())
        return tuple(own.get_shape()), _DTYPES.get(dtype, dtype.lower())

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


# what safetensors calls torch's dtypes
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
