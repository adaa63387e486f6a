"""A journal is read up to what was half written, which is cut off and told; what follows can be read again."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ww_opt.study import journals
from ww_opt.study.journals import Journal, JournalLock, NoJournal
from ww_opt.study.storages import StorageError, open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_in(file: Path) -> optuna.Study:
    return optuna.create_study(study_name="a", storage=JournalStorage(Journal(file)), load_if_exists=True)


def stock(file: Path) -> optuna.Study:
    return optuna.load_study(study_name="a", storage=JournalStorage(JournalFileBackend(str(file))))


def values(study: optuna.Study) -> list[float | None]:
    return [trial.value for trial in study.trials]


class TestTorn:
    def test_cut_at_every_byte_of_its_last_record(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand of them take their time
        file = tmp_path / "a.journal"
        study = study_in(file)
        study.add_trials([optuna.trial.create_trial(value=float(n)) for n in range(3)])
        whole = file.read_bytes()
        before = whole.rstrip(b"\n").rindex(b"\n") + 1
        for end in range(before, len(whole)):
            file.write_bytes(whole[:end])
            caplog.clear()
            again = study_in(file)
            assert values(again) == [0.0, 1.0]
            told = [record.getMessage() for record in caplog.records]
            assert bool(told) == (end > before)
            assert all(f"({end - before} bytes)" in text and "half a record" in text for text in told)
            again.add_trial(optuna.trial.create_trial(value=9.0))
            assert values(stock(file)) == [0.0, 1.0, 9.0], "another process reads it all"

    def test_stock_optuna_would_lose_it_for_ever(self, tmp_path: Path) -> None:
        """Should this fail, Optuna has mended it, and the half of this file can go."""
        file = tmp_path / "a.journal"
        study_in(file)
        with file.open("ab") as journal:
            journal.write(b'{"op_code":4,"wo')
        for _ in range(2):
            with contextlib.suppress(Exception):
                stock(file).add_trial(optuna.trial.create_trial(value=0.0))
        with pytest.raises(ValueError, match=r"Expecting|delimiter"):
            stock(file)

    def test_torn_while_it_is_open(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = tmp_path / "a.journal"
        study = study_in(file)
        with file.open("ab") as journal:
            journal.write(b'{"op_code":4,"wo')
        assert values(study) == []
        study.add_trial(optuna.trial.create_trial(value=1.0))
        assert values(stock(file)) == [1.0]
        assert "half a record" in caplog.text

    @pytest.mark.parametrize("lone", [b"{", b'{"op_code":0,"worker_id":"3', b"\0" * 40])
    def test_a_lone_torn_line_is_told_and_begun_anew(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, lone: bytes
    ) -> None:
        file = tmp_path / "a.journal"
        file.write_bytes(lone)
        study_in(file).add_trial(optuna.trial.create_trial(value=1.0))
        assert f"({len(lone)} bytes)" in caplog.text
        assert values(stock(file)) == [1.0]

    @pytest.mark.parametrize("text", ["2030-01-01 a log of something else", "a\nb", "x"])
    def test_a_text_of_somebody_else_is_left_alone(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "notes.log"
        file.write_text(text)
        with pytest.raises(NoJournal):
            Journal(file)
        with pytest.raises(StorageError, match=r"--storage must be a journal, but .*notes\.log is no journal"):
            open_storage(str(file))
        assert file.read_text() == text

    def test_long_records_are_found_back_to_their_beginning(self, tmp_path: Path) -> None:
        file = tmp_path / "a.journal"
        study = study_in(file)
        study.set_user_attr("long", "x" * 300_000)
        study.set_user_attr("longer", "y" * 300_000)
        with file.open("r+b") as journal:
            journal.truncate(file.stat().st_size - 1)
        assert set(study_in(file).user_attrs) == {"long"}


def test_a_full_disk_leaves_no_half_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.journal"
    study = study_in(file)
    before = file.read_bytes()

    def full(descriptor: int, text: bytes) -> None:
        os.write(descriptor, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journals, "_write_all", full)
        with pytest.raises(OSError, match="No space left"):
            study.set_user_attr("a", 1)
    assert file.read_bytes() == before
    study.set_user_attr("a", 2)
    assert stock(file).user_attrs == {"a": 2}


def _hold(file: Path) -> None:
    JournalLock(file).acquire()
    time.sleep(60)


def _append(file: Path, number: int) -> None:
    journal = Journal(file)
    for _ in range(50):
        journal.append_logs([{"op_code": 2, "study_id": 0, "user_attr": {str(number): "x" * 200}, "worker_id": "w"}])


class TestLock:
    @pytest.mark.parametrize("has_kernels", [True, False])
    def test_a_killed_owner_is_not_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_kernels: bool
    ) -> None:
        if not has_kernels:
            monkeypatch.setattr(journals, "_KERNELS", None)
            monkeypatch.setattr(journals, "_GRACE_SECONDS", 0.5)
        file = tmp_path / "a.journal"
        process = multiprocessing.get_context("fork").Process(target=_hold, args=(file,))
        process.start()
        while not (tmp_path / "a.journal.lock").exists():
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        started = time.monotonic()
        study_in(file)
        assert time.monotonic() - started < 15.0, "half of the grace period"
        assert [own.name for own in tmp_path.iterdir()] == ["a.journal"]

    def test_stock_optuna_and_other_machines_are_waited_for(self, tmp_path: Path) -> None:
        file = tmp_path / "a.journal"
        study_in(file)
        (tmp_path / "a.journal.lock").symlink_to(file)
        process = multiprocessing.get_context("fork").Process(target=_append, args=(file, 1))
        process.start()
        process.join(0.5)
        assert process.is_alive()
        (tmp_path / "a.journal.lock").unlink()
        process.join()
        assert process.exitcode == 0

    def test_a_lock_that_does_not_move_is_broken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(journals, "_GRACE_SECONDS", 0.2)
        file = tmp_path / "a.journal"
        study_in(file)
        (tmp_path / "a.journal.lock").touch()
        study_in(file)
        assert "is broken" in caplog.text
        assert [own.name for own in tmp_path.iterdir()] == ["a.journal"]

    def test_what_an_interrupted_call_held_is_let_go(self, tmp_path: Path) -> None:
        lock = JournalLock(tmp_path / "a.journal")
        lock.acquire()
        lock.acquire()
        lock.release()
        assert [own.name for own in tmp_path.iterdir()] == ["a.journal"]

    def test_many_processes_write_whole_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "a.journal"
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_append, args=(file, number)) for number in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert sorted(key for line in lines for key in line["user_attr"]) == sorted("0123" * 50)

    def test_without_links_and_kernel_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "not permitted")

        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.setattr(journals._KERNELS, "flock", refuse)
        file = tmp_path / "a.journal"
        study_in(file).add_trial(optuna.trial.create_trial(value=1.0))
        assert values(stock(file)) == [1.0]
        assert [own.name for own in tmp_path.iterdir()] == ["a.journal"]
