"""The README's Python runs as it stands there, in the order in which it stands."""

import re
from pathlib import Path

import optuna
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_python_in_the_readme_runs_in_full() -> None:
    _run(lambda source: source)


def test_python_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    # the same text with fewer trials
    namespace = _run(lambda source: re.sub(r"n_trials=\d+", "n_trials=2", source))
    assert len(namespace["study"].trials) == 2
    assert "alpha" in capsys.readouterr().out


def _run(change) -> dict:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    namespace: dict = {}
    for block in blocks:
        exec(compile(change(block), str(README), "exec"), namespace)
    return namespace
