"""The README's Python runs as it stands there, in the order in which it stands."""

import re
from pathlib import Path

import optuna
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_python_in_the_readme_runs_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _run(lambda source: source)


def test_python_in_the_readme_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # the same text with fewer trials
    namespace = _run(lambda source: re.sub(r"n_trials=\d+", "n_trials=2", source))
    assert len(namespace["study"].trials) == 2
    assert "alpha" in capsys.readouterr().out
    assert Path("model.pt").is_file()


def test_a_loop_of_ones_own_takes_twenty_lines() -> None:
    text = README.read_text(encoding="utf-8")
    block = text[text.index("late = ww_opt.LateExamples") :].partition("```")[0]
    lines = [line for line in block.splitlines() if line.strip()]
    assert lines[-2].startswith("study.optimize(")
    assert len(lines) <= 20


def _run(change) -> dict:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    namespace: dict = {}
    for block in blocks:
        exec(compile(change(block), str(README), "exec"), namespace)
    return namespace
