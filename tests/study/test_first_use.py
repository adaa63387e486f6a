"""Files that several processes share are whole from the first moment."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ww_opt.study.first_use import database_file, place_whole


def test_it_is_made_once_and_nothing_is_left_aside(tmp_path: Path) -> None:
    target = tmp_path / "a.db"
    assert place_whole(target, lambda aside: aside.write_text("whole"))
    assert not place_whole(target, lambda aside: aside.write_text("again"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.db"]
    assert target.read_text() == "whole"


def test_an_empty_file_counts_as_none(tmp_path: Path) -> None:
    target = tmp_path / "a.db"
    target.touch()
    assert place_whole(target, lambda aside: aside.write_text("whole"))
    assert target.read_text() == "whole"


def test_what_fails_or_is_killed_leaves_no_half(tmp_path: Path) -> None:
    target = tmp_path / "a.db"

    def half(aside: Path) -> None:
        aside.write_text("half")
        assert not target.exists(), "it is made under another name"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place_whole(target, half)
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_come_at_once_one_wins(tmp_path: Path) -> None:
    target, ready, made = tmp_path / "a.db", threading.Barrier(4), []

    def make(aside: Path) -> None:
        aside.write_text(threading.current_thread().name)
        ready.wait(10)  # all are past the first look at the target

    def come() -> None:
        made.append(place_whole(target, make))

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, False, False, True]
    assert [file.name for file in tmp_path.iterdir()] == ["a.db"]


def test_what_a_killed_process_left_is_tidied_once_it_is_old(tmp_path: Path) -> None:
    for name, age in (("old", 3600.0), ("new", 0.0)):
        folder = tmp_path / f".being-made-{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    place_whole(tmp_path / "a.db", lambda aside: aside.write_text("whole"))
    assert sorted(file.name for file in tmp_path.iterdir()) == [".being-made-new", "a.db"]


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///a/b.db", Path("a/b.db")),
        ("sqlite:////a/b.db?timeout=3", Path("/a/b.db")),
        ("sqlite+pysqlite:///b.db", Path("b.db")),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:b.db?uri=true", None),
        ("postgresql://me@host/b", None),
        ("http://host:5000", None),
        ("nonsense", None),
    ],
)
def test_which_file_an_address_means(url: str, file: Path | None) -> None:
    assert database_file(url) == file
