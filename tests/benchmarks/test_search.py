"""Searches end to end, planted faults, their tables and figures, on a task that takes no time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import faults as planting
from benchmarks.evidence import kept, tables
from benchmarks.evidence import search as searching
from benchmarks.evidence.faults import FAULTS, Planted, plant
from benchmarks.evidence.figures import draw
from benchmarks.evidence.generate import Settings, generate
from benchmarks.evidence.search import METHODS, Search, read_searches, search_all
from benchmarks.evidence.tables import incumbents, searched
from benchmarks.evidence.tasks import CASES
from benchmarks.evidence.verdicts import RIGHT, verdict
from tests.benchmarks.test_evidence import TINY
from ww_opt.training.layerwise import LayerSettings


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "CASES", (TINY,))
    monkeypatch.setattr(tables, "SEARCHED", ("tiny",))


@pytest.mark.usefixtures("tiny")
def test_searches_are_kept_resumed_and_tabulated(tmp_path: Path) -> None:
    units = [Search("tiny", method, 0, 2) for method in METHODS]
    assert len(list(search_all(units[:2], 1, tmp_path))) == 2
    with (tmp_path / "searches.jsonl").open("a") as file:
        file.write('{"torn')
    assert searching.missing(units, tmp_path) == units[2:]
    (tmp_path / "searches.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in read_searches(tmp_path))  # rid of the torn line
    )
    assert [left for _, left in search_all(units, 1, tmp_path)] == [3, 2, 1, 0]
    for record in read_searches(tmp_path):
        assert len(record["values"]) == len(record["test"]) == 2
        assert 0 <= record["pick"] <= 1
        best = int(np.argmin(record["values"]))
        if record["method"] not in ("late guard", "validation split"):  # these are trained once more, on everything
            assert record["pick"] == pytest.approx(record["test"][best], rel=1e-3)
    text = searched(tmp_path)
    assert "| oracle | 0.0 +- 0.0 |" in text
    assert "nan" not in text


def test_incumbents_follow_the_best_value() -> None:
    record = {"values": [3.0, 1.0, 2.0, 0.5], "test": [0.1, 0.4, 0.9, 0.3]}
    assert incumbents(record).tolist() == [0.1, 0.4, 0.4, 0.3]


class TestFaults:
    case = replace(TINY, options={"n_train": 200, "batch_size": 20, "width": 48}, n_steps=80)

    @pytest.fixture(autouse=True)
    def _tiny(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(planting, "CASES", (self.case,))
        monkeypatch.setattr(planting, "HEALTHY", {"tiny": LayerSettings(lr=0.05, weight_decay=1e-3)})

    @pytest.mark.parametrize("fault", ["huge entry", "frozen at init"])
    def test_the_layer_is_named(self, fault: str) -> None:
        (record,) = plant(Planted("tiny", fault, "hidden2", 0))
        assert verdict(record).names_layer

    def test_a_healthy_run_gives_several(self) -> None:
        records = plant(Planted("tiny", "healthy", "", 0))
        assert [record["fault"] for record in records] == [
            "too little training", "healthy", "int4", "int4", "int4", "wrong labels later",
        ]  # fmt: skip
        assert all(
            verdict(record).names_layer for record in records if record["fault"] in ("int4", "too little training")
        )
        assert records[-1]["accuracy"] < records[1]["accuracy"]

    def test_what_is_kept_is_not_trained_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(planting, "N_SEEDS", 1)
        units = planting.units()
        assert {unit.fault for unit in units} == {
            "healthy",
            "wrong labels",
            *planting.IN_ONE_LAYER,
            *planting.IN_THE_NET,
        }
        assert len({unit.layer for unit in units}) == 4  # three judged layers, and none
        assert set(RIGHT) < set(FAULTS)
        kept.append("faults", [unit._asdict() for unit in units[1:]], tmp_path)
        assert [(record["fault"], left) for record, left in planting.plant_all(1, tmp_path)] == [
            ("wrong labels later", 0)
        ]
        assert list(planting.plant_all(1, tmp_path)) == []


def test_figures_are_drawn(tmp_path: Path) -> None:
    case = replace(CASES[0], name="mlp_sgd_0", options=TINY.options, n_steps=20, together=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.evidence.generate.CASES", (case,))
        list(generate(Settings(("mlp_sgd_0",), n=10, n_reseeded=0, folder=tmp_path)))
    found = [
        {"case": "mlp_sgd_0", "method": method, "seed": 0, "n_trials": 200, "values": [2.0, 1.0], "test": [0.2, 0.3]}
        for method in ("weights", "late guard")
    ]
    (tmp_path / "searches.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    paths = draw(tmp_path, tmp_path)
    assert all(path.stat().st_size > 5000 for path in paths)
