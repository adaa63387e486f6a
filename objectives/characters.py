"""Next characters of English prose, a small causal transformer. About six seconds a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from optuna.distributions import FloatDistribution
from torch import nn
from torch.optim import AdamW, Optimizer

from objectives._classification import Examples, Regime, Source, check_at_least, classification_task
from ww_opt.search.space import LayerwiseSpace
from ww_opt.training.labels import by_block
from ww_opt.training.task import Task

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
_MIN_CHARACTERS = 10_000


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
        ValueError: an option is out of range, or the text is too short.
    """
    check_at_least("width", width, _N_HEADS)
    if width % _N_HEADS:
        raise ValueError(f"`width` must be a multiple of {_N_HEADS}, the attention heads, but got width={width}.")
    regime = Regime(label_noise, n_train, batch_size=32, seed=seed)
    path = None if text is None else Path(text)
    head, tail = _parts(path)
    n_characters = len(set(head + tail))
    source = Source("characters", partial(_load, path), len(_stretches(head)), n_characters)
    return classification_task(source, partial(_Transformer, n_characters, width), regime, optimizer)


@cache
def _parts(path: Path | None) -> tuple[str, str]:
    if path is None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    else:
        text = path.read_text(encoding="utf-8")
    if len(text) < _MIN_CHARACTERS:
        raise ValueError(f"`text` must have at least {_MIN_CHARACTERS} characters, but {path} has {len(text)}.")
    n_test = int(_TEST_SHARE * len(text))
    return text[:-n_test], text[-n_test:]


@cache
def _load(path: Path | None) -> tuple[Examples, Examples]:
    head, tail = _parts(path)
    # manuals repeat themselves: what the training part says word for word is no test
    sealed = [stretch for stretch in _stretches(tail) if stretch[:-1] not in head]
    if not sealed:
        raise ValueError(f"The last tenth of `text` must say something new, but that of {path} repeats the rest.")
    numbers = {character: number for number, character in enumerate(sorted(set(head + tail)))}
    return _examples(_stretches(head), numbers), _examples(sealed, numbers)


def _stretches(text: str) -> list[str]:
    """Cut into stretches of 32 characters and the one behind them; the 32 differ from stretch to stretch."""
    found = (text[start : start + _LENGTH + 1] for start in range(0, len(text) - _LENGTH, _LENGTH))
    return list({stretch[:-1]: stretch for stretch in found}.values())


def _examples(stretches: list[str], numbers: dict[str, int]) -> Examples:
    """Return characters x [n, 32], and the character that follows each of them, y [n, 32]."""
    rows = torch.tensor([[numbers[character] for character in stretch] for stretch in stretches])
    return Examples(rows[:, :-1], rows[:, 1:])


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
