"""The packages for OptunaHub: loaded as its users load them, and their examples run."""

from __future__ import annotations

import functools
import re
import runpy
from pathlib import Path
from typing import Any

import optuna
import pytest

import ww_opt
from tests.frameworks import framework

hub = framework("optunahub", "load_local_module")

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "optunahub" / "package"
PACKAGES = sorted(str(file.parent.relative_to(REGISTRY)) for file in REGISTRY.glob("*/*/__init__.py"))
TAGS = {"pruners": "pruner", "samplers": "sampler", "callbacks": "callback"}
FIELDS = {"author", "title", "description", "tags", "optuna_versions", "license"}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def loaded(package: str) -> Any:
    return hub.load_local_module(package, registry_root=str(REGISTRY))


def test_there_are_three() -> None:
    assert PACKAGES == ["callbacks/ww_opt_mlflow", "pruners/spectral_pruner", "samplers/layerwise_sampler"]


@pytest.mark.parametrize("package", PACKAGES)
class TestEveryPackage:
    def test_it_has_the_form_of_the_registry(self, package: str) -> None:
        folder = REGISTRY / package
        assert {file.name for file in folder.iterdir() if file.is_file()} == {
            "LICENSE", "README.md", "__init__.py", "example.py"
        }  # fmt: skip
        assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
        text = (folder / "README.md").read_text(encoding="utf-8")
        _, front, rest = text.split("---\n", 2)
        said = dict(line.split(": ", 1) for line in front.splitlines())
        assert set(said) == FIELDS
        assert TAGS[package.partition("/")[0]] in said["tags"].strip("[]").split(", ")
        assert optuna.__version__ in said["optuna_versions"]
        assert said["license"] == "MIT License"
        assert re.findall(r"^## (.+)$", rest, re.MULTILINE)[:4] == [
            "Abstract", "Class or Function Names", "Installation", "Example"
        ]  # fmt: skip
        assert f'load_module(package="{package}")' in rest

    def test_it_gives_what_it_names(self, package: str) -> None:
        module = loaded(package)
        names = re.findall(r"^- (\w+)$", (REGISTRY / package / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
        assert sorted(names) == sorted(module.__all__)
        assert all(hasattr(module, name) for name in names)

    def test_its_example_runs(
        self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        local = functools.partial(hub.load_local_module, registry_root=str(REGISTRY))
        monkeypatch.setattr(hub, "load_module", local)
        said = runpy.run_path(str(REGISTRY / package / "example.py"), run_name="__main__")
        study = said["study"]
        assert study.best_value is not None
        out = capsys.readouterr().out
        if package.startswith("pruners"):
            assert "PRUNED" in out
        if package.startswith("samplers"):
            assert study.best_value < 0.2
        if package.startswith("callbacks"):
            assert out == "not written: 0\n"
            assert (tmp_path / "mlflow.db").is_file()


def test_they_are_the_librarys_own() -> None:
    assert loaded("pruners/spectral_pruner").SpectralPruner is ww_opt.SpectralPruner
    assert loaded("samplers/layerwise_sampler").LayerwiseSampler is ww_opt.LayerwiseSampler
