"""What only the characters have: a text of the user's own."""

import random
from pathlib import Path

import pytest
import torch

from objectives import characters
from ww_opt.training.task import Task


def sealed_accuracy(task: Task) -> float:
    assert task.evaluate is not None
    torch.manual_seed(0)
    return task.evaluate(task.build_model())


def test_a_text_of_ones_own_is_read(tmp_path: Path) -> None:
    text = "".join(random.Random(0).choices("abc ", k=12_000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    task = characters.make_task(text=tmp_path / "text.txt")
    batch = next(task.epoch())
    assert batch.x.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(batch.x[:, 1:], batch.y[:, :-1])
    assert 0.1 < sealed_accuracy(task) < 0.4


def test_the_model_sees_no_later_character() -> None:
    model = characters.make_task().build_model().eval()
    x = torch.zeros(1, 32, dtype=torch.int64)
    changed = x.clone()
    changed[0, 20] = 1
    with torch.no_grad():
        differs = (model(x) != model(changed)).any(-1)[0]
    assert not differs[:20].any()
    assert differs[20:].all()


def test_a_short_text_is_refused_with_its_length(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("too short", encoding="utf-8")
    with pytest.raises(ValueError, match=r"at least 10000 characters, but .*text\.txt has 9"):
        characters.make_task(text=tmp_path / "text.txt")


def test_a_text_that_only_repeats_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("over and over " * 1000, encoding="utf-8")
    task = characters.make_task(text=str(tmp_path / "text.txt"))
    with pytest.raises(ValueError, match="must say something new"):
        sealed_accuracy(task)


def test_the_width_must_divide_among_the_heads() -> None:
    with pytest.raises(ValueError, match="width=66"):
        characters.make_task(width=66)
