"""The examples of docs/frameworks.md run as they stand there, each by itself."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.frameworks import framework

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
NEEDS = {
    "Trainer": "transformers",
    "Lightning": "lightning",
    "A loop of your own": "",
    "In somebody else's study": "optunahub",
}
BLOCKS = {
    part.partition("\n")[0]: "\n".join(re.findall(r"^```python\n(.*?)^```", part, re.MULTILINE | re.DOTALL))
    for part in TEXT.split("\n## ")[1:]
}


def test_each_part_has_an_example() -> None:
    assert list(BLOCKS) == list(NEEDS)
    assert all(BLOCKS.values())


@pytest.mark.filterwarnings("ignore")  # the frameworks have their own
@pytest.mark.parametrize("name", NEEDS)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if NEEDS[name]:
        framework(NEEDS[name], *(["load_local_module"] if NEEDS[name] == "optunahub" else []))
    (tmp_path / "optunahub").symlink_to(ROOT / "optunahub")
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    said: dict = {"__name__": "example"}
    shorter = BLOCKS[name].replace("n_trials=6", "n_trials=2").replace("max_steps=60", "max_steps=20")
    exec(compile(shorter, "docs/frameworks.md", "exec"), said)
    if "study" in said:
        assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in said["study"].trials)
        assert len(said["study"].trials) == 2
    if name == "Trainer":
        assert (tmp_path / "runs" / "bert" / "pick" / "config.json").is_file()
