"""What waits for MLflow survives kills, cuts and full disks, and holds no password."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ww_opt.tracking import spool as module
from ww_opt.tracking.secrets import scrubbed
from ww_opt.tracking.spool import Spool, decoded, encoded, files, header_of

ROOT = Path(__file__).resolve().parents[2]
HEADER = {"kind": "header", "version": 1, "uri": "http://host:5000", "experiment": "mine"}
RECORDS = [{"kind": "trial", "trial": number, "text": "größe\n層" * 5} for number in range(3)]


def left_behind(folder: Path, *records: dict[str, object]) -> Path:
    """A file as a process that ended leaves it."""
    spool = Spool(folder, HEADER)
    for record in records:
        spool.append(record)
    path = spool.path
    spool.close(remove=False)
    return path


def read(path: Path) -> tuple[list[dict[str, object]], int]:
    """The records of a file, and how many are damaged."""
    spool = Spool.adopted(path)
    assert spool is not None
    found = [value for _, value in spool.records()]
    spool.close(remove=False)
    return [value for value in found if value is not None], found.count(None)


def test_records_come_back_in_their_order(tmp_path: Path) -> None:
    path = left_behind(tmp_path, *RECORDS)
    assert read(path) == (RECORDS, 0)
    assert header_of(path) == (HEADER, len(encoded(HEADER)))
    assert all(line.isascii() for line in path.read_bytes().splitlines())


def test_a_cut_at_every_byte_of_the_last_record_costs_that_one_alone(tmp_path: Path) -> None:
    whole = left_behind(tmp_path, *RECORDS).read_bytes()
    last = len(encoded(RECORDS[-1]))
    for cut in range(1, last):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:-cut])
        n = 3 if cut == 1 else 2  # without the newline it is whole
        assert read(path) == (RECORDS[:n], int(1 < cut < last)), cut
    path.write_bytes(whole[:-last])
    assert read(path) == (RECORDS[:2], 0)


def test_damage_in_the_middle_costs_one_line(tmp_path: Path) -> None:
    path = left_behind(tmp_path, *RECORDS)
    content = bytearray(path.read_bytes())
    content[len(encoded(HEADER)) + len(encoded(RECORDS[0])) + 20] ^= 1
    path.write_bytes(content)
    assert read(path) == ([RECORDS[0], RECORDS[2]], 1)


def test_a_damaged_header_is_none(tmp_path: Path) -> None:
    path = left_behind(tmp_path, *RECORDS)
    path.write_bytes(path.read_bytes()[5:])
    assert header_of(path) == ({}, 0)
    assert read(path) == (RECORDS, 1)


def test_what_was_sent_is_cut_off_and_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", HEADER)
    assert files(tmp_path / "spool") == [], "made at the first record"
    spool.append(RECORDS[0])
    spool.clear()
    assert spool.path.stat().st_size == len(encoded(HEADER))
    place = spool.append(RECORDS[1])
    assert spool.read(place) == RECORDS[1]
    spool.close(remove=True)
    assert list(tmp_path.iterdir()) == []
    spool.append(RECORDS[2])
    assert len(files(tmp_path / "spool")) == 1


def test_one_process_holds_a_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, HEADER)
    spool.append(RECORDS[0])
    assert Spool.adopted(spool.path) is None
    path = spool.path
    del spool
    assert read(path) == (RECORDS[:1], 0)
    path.unlink()
    assert Spool.adopted(path) is None


@pytest.mark.parametrize("taken", range(0, 60, 7))
def test_a_full_disk_leaves_nothing_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    spool = Spool(tmp_path, HEADER)
    spool.append(RECORDS[0])

    class Full(io.FileIO):
        room = taken

        def write(self, data: object) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            n = super().write(bytes(data)[: self.room])  # type: ignore[call-overload]
            self.room -= n
            return n

        def truncate(self, size: int | None = None) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    assert spool._file is not None
    with monkeypatch.context() as patch:
        patch.setattr(spool, "_file", Full(os.dup(spool._file.fileno()), "r+"))
        with pytest.raises(OSError, match="No space left"):
            spool.append(RECORDS[1])
        vars(spool)["_file"].close()
    spool.append(RECORDS[2])
    path = spool.path
    del spool
    assert read(path)[0] == [RECORDS[0], RECORDS[2]]


def test_a_small_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount")
    except FileNotFoundError:
        pytest.skip("there is no mount")
    try:
        spool, n = Spool(disk / "spool", HEADER), 0
        with contextlib.suppress(OSError):
            while n < 1000:
                spool.append({"trial": n, "text": "x" * 1000})
                n += 1
        assert 10 < n < 65
        with pytest.raises(OSError, match="No space left"):
            spool.append({"trial": n, "text": "x" * 1000})
        path = spool.path
        del spool
        found, n_damaged = read(path)
        assert [record["trial"] for record in found] == list(range(n))
        assert n_damaged == 0
        path.unlink()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_it_does_not_grow_without_end(tmp_path: Path) -> None:
    left_behind(tmp_path, *RECORDS)
    limit = 2 * files(tmp_path)[0].stat().st_size
    spool = Spool(tmp_path, HEADER, max_bytes=limit)
    for record in RECORDS:
        spool.append(record)
    with pytest.raises(OSError, match="wait in it already"):
        spool.append(RECORDS[0])
    assert sum(path.stat().st_size for path in files(tmp_path)) == limit
    spool.clear()
    spool.append(RECORDS[0])


def test_a_kill_takes_nothing_with_it(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from ww_opt.tracking.spool import Spool
spool = Spool(Path({str(tmp_path)!r}), {HEADER!r})
for record in {RECORDS!r}:
    spool.append(record)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read(files(tmp_path)[0]) == (RECORDS, 0)


def test_a_number_that_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encoded({"value": math.nan})


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://me:secret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg://me:se@cret@host/db?password=secret&sslmode=off", "postgresql+psycopg://***@host/db?password=***&sslmode=off"),
        ("https://secret@host", "https://***@host"),
        ("failed: host=db user=me password=secret dbname=x", "failed: host=db user=me password=*** dbname=x"),
        ("https://host/?token=secret", "https://host/?token=***"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("sqlite:///a@b.db", "sqlite:///a@b.db"),
        ("mail me@host, max_token=5", "mail me@host, max_token=5"),
    ],
)  # fmt: skip
def test_passwords_are_taken_out(text: str, clean: str) -> None:
    assert scrubbed(text) == clean
    assert "secret" not in scrubbed(text)
    line = encoded({text: [text, {"quoted": f'"{text}"'}]})
    assert decoded(line) == json.loads(json.dumps({clean: [clean, {"quoted": f'"{clean}"'}]}))
    assert module.decoded(line[:-3]) is None
