"""Next characters of English prose, a small causal transformer. About six seconds a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from optuna.distributions import FloatDistribution
from torch import nn
from torch.optim import AdamW, Optimizer

from objectives._classification import Examples, Regime, Source, check_at_least, classification_task
from ww_opt.layerwise import by_block
from ww_opt.space import LayerwiseSpace
from ww_opt.training import Task

N_STEPS = 240
INTERVAL_STEPS = 20
SPACE = LayerwiseSpace(
    lr=FloatDistribution(1e-4, 3e-2, log=True),
    weight_decay=FloatDistribution(1e-4, 1.0, log=True),
    dropout=FloatDistribution(0.0, 0.5),
    label=by_block(),
)

_LENGTH = 32
_N_BLOCKS = 2
_N_HEADS = 4
_TEST_SHARE = 0.1


def make_task(
    *,
    label_noise: float = 0.0,
    n_train: int | None = None,
    text: str | Path | None = None,
    width: int = 64,
    optimizer: Callable[..., Optimizer] = partial(AdamW, lr=1e-2),
    seed: int = 0,
) -> Task:
    """Build the task: 32-character stretches of a text; its last tenth is sealed.

    Args:
        label_noise: share of the characters to predict replaced by a wrong one, in [0, 1].
        n_train: training stretches to keep; ``None``: all.
        text: a UTF-8 file; ``None``: the prose of Python's own manual (it differs a little between Python versions).
        width: of the residual stream, a multiple of 4.
        optimizer: called with the parameter groups.
        seed: draws the kept stretches and the wrong characters.

    Raises:
        OSError: ``text`` cannot be read.
        ValueError: an option is out of range, or the text is too short to split.
    """
    check_at_least("width", width, _N_HEADS)
    if width % _N_HEADS:
        raise ValueError(f"`width` must be a multiple of {_N_HEADS}, the attention heads, but got width={width}.")
    regime = Regime(label_noise, n_train, batch_size=32, seed=seed)
    path = None if text is None else Path(text)
    n_characters = len(set(_read(path)))
    source = Source("characters", partial(_load, path), len(_load(path)[0]), n_characters)
    return classification_task(source, partial(_Transformer, n_characters, width), regime, optimizer)


@cache
def _read(path: Path | None) -> str:
    """Return the text; a paragraph that occurs again is left out, lest the sealed tail repeat what was trained on."""
    if path is None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    else:
        text = path.read_text(encoding="utf-8")
    return "\n\n".join(dict.fromkeys(paragraph.strip("\n") for paragraph in text.split("\n\n")))


@cache
def _load(path: Path | None) -> tuple[Examples, Examples]:
    text = _read(path)
    n_test = int(_TEST_SHARE * len(text))
    if n_test <= _LENGTH:
        least = math.ceil((_LENGTH + 1) / _TEST_SHARE)
        raise ValueError(f"`text` must have at least {least} characters, but {path} has {len(text)}.")
    number = {character: index for index, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([number[character] for character in text])
    return _stretches(numbers[:-n_test]), _stretches(numbers[-n_test:])


def _stretches(numbers: torch.Tensor) -> Examples:
    """Cut into stretches that do not overlap, x [n, 32], and the character that follows each position, y [n, 32]."""
    n = (len(numbers) - 1) // _LENGTH
    return Examples(numbers[: n * _LENGTH].view(n, _LENGTH), numbers[1 : n * _LENGTH + 1].view(n, _LENGTH))


class _Transformer(nn.Module):
    """Characters [n, length] -> logits [n, length, n_characters]; pre-norm, causal, learnt positions."""

    def __init__(self, n_characters: int, width: int) -> None:
        super().__init__()
        self.position = nn.Embedding(_LENGTH, width)
        self.embedding = nn.Embedding(n_characters, width)
        self.dropout = nn.Dropout(0.0)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(_N_BLOCKS)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, n_characters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream: torch.Tensor = self.dropout(self.embedding(x) + self.position.weight[: x.shape[1]])
        logits: torch.Tensor = self.output(self.norm(self.blocks(stream)))
        return logits


class _Block(nn.Module):
    """Causal self-attention and a perceptron, each behind a norm and beside the stream [n, length, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.dropout1 = nn.Dropout(0.0)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout2 = nn.Dropout(0.0)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self.dropout1(self.project(self._attend(self.norm1(stream))))
        hidden = nn.functional.gelu(self.expand(self.norm2(stream)))
        result: torch.Tensor = stream + self.dropout2(self.contract(hidden))
        return result

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (_N_HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return attended.transpose(1, 2).flatten(2)
