"""``ww-opt report`` as users and scripts meet it, and the page at the end of ``ww-opt run``."""

from __future__ import annotations

import json

import optuna
import pytest
from optuna.trial import create_trial

from tests.cli import test_commands
from tests.cli.test_commands import TINY, Runner
from tests.reporting.synthetic import searched
from ww_opt.reporting import page
from ww_opt.study.opened import recalled

ww = test_commands.ww


@pytest.fixture
def stored(ww: Runner) -> Runner:
    """A folder with a study named ``tiny`` in the place where ``ww-opt run`` looks for it."""
    (ww.folder / "runs").mkdir()
    searched(12, study_name="tiny", storage=f"sqlite:///{ww.folder / 'runs' / 'studies.db'}")
    return ww


def test_the_page_lies_in_the_folder_of_the_study(stored: Runner) -> None:
    answer = stored("report", TINY)
    assert (answer.code, answer.out) == (0, "Report: runs/tiny/report.html\n")
    text = (stored.folder / "runs" / "tiny" / "report.html").read_text()
    assert text.lstrip().startswith("<!DOCTYPE html>")
    assert [file.name for file in (stored.folder / "runs" / "tiny").iterdir()] == ["report.html"]
    assert "The score is the default score of the weights" in text


def test_json_and_markdown_are_printed_or_go_where_o_says(stored: Runner) -> None:
    found = json.loads(stored("report", TINY, "--json").out)
    assert found["study"] == "tiny"
    assert len(found["sections"]["trials"]["rows"]) == 12
    assert stored("report", TINY, "--markdown").out.startswith("# tiny\n\n## The pick: trial")
    answer = stored("report", TINY, "--json", "-o", "deep/own.json")
    assert answer.out == "Report: deep/own.json\n"
    assert json.loads((stored.folder / "deep" / "own.json").read_text()) == found
    assert not (stored.folder / "runs" / "tiny").exists()


def test_any_study_of_optuna_is_reported_without_a_file(stored: Runner) -> None:
    url = f"sqlite:///{stored.folder / 'other.db'}"
    study = optuna.create_study(study_name="../odd <name>", storage=url)
    study.add_trial(create_trial(value=1.0))
    assert stored("report", "--storage", url).out == "Report: runs/_odd _name_/report.html\n"
    assert stored("report").out == "Report: runs/tiny/report.html\n", "the only one in the usual place"
    assert stored("report", "--storage", url, "--study-name", "../odd <name>", "-o", "x.html").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TINY, "--json", "--markdown"), "Only one of --json and --markdown can be given."),
        ((TINY, "--study-name", "none"), "there is no 'none' in 'sqlite:///runs/studies.db': `ww-opt run` it first"),
        ((TINY, "--storage", "x.db"), "write sqlite:///x.db for an SQLite file"),
        ((TINY, "--storage", "no/such.journal"), "there is no 'tiny' in 'no/such.journal'"),
        (("missing.py",), "There must be a Python file at 'missing.py'"),
        (("--storage", "sqlite:///none.db"), "but got neither, and 'sqlite:///none.db' has none"),
        ((TINY, "-o", "runs"), "directory"),
    ],
)
def test_bad_input_is_one_line(stored: Runner, arguments: tuple[str, ...], message: str) -> None:
    answer = stored("report", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not list(stored.folder.glob("*.db"))


def test_several_studies_in_a_storage_are_named(stored: Runner) -> None:
    optuna.create_study(study_name="second", storage=f"sqlite:///{stored.folder / 'runs' / 'studies.db'}")
    answer = stored("report")
    assert answer.code == 2
    assert "has 'second', 'tiny'" in answer.err


def test_several_objectives_are_refused(ww: Runner) -> None:
    url = f"sqlite:///{ww.folder / 'two.db'}"
    optuna.create_study(study_name="two", storage=url, directions=["minimize", "maximize"])
    answer = ww("report", "--storage", url)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "A report needs a study with 1 objective, but 'two' has 2" in answer.err


def test_a_run_ends_with_a_page_that_knows_the_sealed_test_set(ww: Runner) -> None:
    answer = ww("run", TINY, "--no-mlflow")
    assert answer.code == 0
    assert "Report of the study: runs/tiny/report.html" in answer.out
    kept = recalled(ww.host(), ww.host().best_trial)
    assert kept is not None
    assert f"gives the pick accuracy {kept.pick:.1%}" in (ww.folder / "runs" / "tiny" / "report.html").read_text()
    assert "gives the pick accuracy" in ww("report", TINY, "--markdown").out


@pytest.mark.parametrize("error", [RuntimeError("no\nfont at postgresql://me:secret@host"), KeyboardInterrupt()])
def test_a_page_that_fails_costs_no_study(
    ww: Runner,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(page, "gather", fails)
    answer = ww("run", TINY, "--no-mlflow")
    assert answer.code == 0
    assert "Settings, score and versions of the pick" in answer.out
    assert "Report of the study" not in answer.out
    (line,) = [line for line in answer.err.splitlines() if "report could not be written" in line]
    assert type(error).__name__ in line
    assert "secret" not in line
    assert line.endswith("`ww-opt report` tries again.")
