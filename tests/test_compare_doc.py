"""What docs/compare.md shows runs as it stands there: the CI job's commands, and the check of a registry."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from safetensors.torch import save_file

import ww_opt
from tests.spectral.comparing.pairs import State, net, state, tuned, with_change
from ww_opt.spectral.comparing.shifts import Rule

ROOT = Path(ww_opt.__file__).parents[1]
TEXT = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_every_rule_has_its_row() -> None:
    labels = [line.split("|")[1].strip() for line in TEXT.splitlines() if line.startswith("| ")]
    assert {rule.label for rule in Rule} <= set(labels)


def test_the_registry_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    namespace: dict[str, Any] = {"__name__": "check"}
    try:
        for block in blocks("python"):
            exec(compile(block, "docs/compare.md", "exec"), namespace)
        client, model = mlflow.MlflowClient(), net()
        first = namespace["register"](model, "digits")
        client.set_registered_model_alias("digits", "champion", first.version)
        model.load_state_dict(tuned(state(model)))
        namespace["register"](model, "digits")
        assert namespace["check"]("digits").verdict == "changed"
        with torch.no_grad():
            model[2].weight.mul_(10)
        last = namespace["register"](model, "digits")
        assert namespace["check"]("digits").fails("broken")
        tags = {v.version: v.tags for v in client.search_model_versions("name='digits'")}
    finally:
        mlflow.set_tracking_uri(before)
    assert tags[first.version] == {}
    assert tags[last.version]["ww_opt.verdict"] == "broken"
    assert tags[last.version]["ww_opt.2"].startswith("the weights of OLD times 10")


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_job_of_a_pull_request(tmp_path: Path, is_broken: bool) -> None:
    (job,) = blocks("yaml")
    steps = [step["run"] for step in yaml.safe_load(job)["jobs"]["compare"]["steps"] if "run" in step]
    assert steps[0].startswith("pip install")
    command = tmp_path / "bin" / "ww-opt"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom ww_opt.cli.main import main\nmain()\n")
    command.chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def shell(text: str) -> int:
        return subprocess.run(["bash", "-ec", text], cwd=repository, env=environment, check=False).returncode

    repository = tmp_path / "repository"
    (repository / "models").mkdir(parents=True)
    old = state(net())
    new: State = tuned(old)
    assert shell("git init -q .") == 0
    for own in (old, with_change(new, lambda W: 10 * W) if is_broken else new):
        save_file(own, repository / "models" / "model.safetensors")
        assert shell("git add -A && git commit -q -m weights") == 0
    assert [shell(step) for step in steps[1:]] == [0, int(is_broken)]
