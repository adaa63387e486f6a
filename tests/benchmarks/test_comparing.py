"""The calibration of `compare`: what is planted is there, what is harmless is, and kept rows give their table again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.comparing import Outcome, main, of_checkpoint, of_records
from benchmarks.damages import DAMAGES, HARMLESS, damaged, healthy_update
from benchmarks.evidence.kept import read
from tests.spectral.comparing.pairs import net, state
from ww_opt.spectral import compare


def test_every_damage_is_done_to_one_layer_and_named() -> None:
    old = state(net())
    base = healthy_update(old)
    outcomes = [Outcome(what, layer, 0.0, compare(old, new)) for what, layer, new in damaged(base, ["2.weight"])]
    assert [item.what for item in outcomes] == list(DAMAGES)
    assert [item.what for item in outcomes if not item.is_named] == []
    assert sum(item.others for item in outcomes) == 0


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_harmless_breaks_nothing(what: str, tmp_path: Path) -> None:
    weight = torch.randn(64, 48)
    assert not torch.equal(HARMLESS[what](weight), weight)
    assert not compare({"0.weight": weight}, {"0.weight": HARMLESS[what](weight)}).broken


def test_a_stand_in_for_a_fine_tune_moves_each_layer_by_its_size() -> None:
    old = state(net())
    assert [row.pair.distance for row in compare(old, healthy_update(old, 0.1))] == pytest.approx([0.1] * 4)


def test_kept_rows_of_one_task() -> None:
    records = [record for record in read("faults") if record["case"] == "cnn_sgd_20"]
    found = list(of_records(records))
    healthy = [item for item in found if item.what == "healthy"]
    assert len(healthy) == 10
    assert [item.said.broken for item in healthy] == [()] * 10
    assert all(item.is_named for item in found if item.what in ("huge entry", "frozen at init"))
    assert {item.what for item in found if item.what == "int4"} == set()


def test_the_table_of_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.randn(64, 48), "2.weight": torch.randn(40, 64)}, tmp_path / "own.pt")
    found = list(of_checkpoint(tmp_path / "own.pt"))
    assert len(found) == 1 + len(HARMLESS) + 2 + 2 * len(DAMAGES)
    assert found[0].said.verdict == "changed"
    answer = CliRunner().invoke(main, ["--no-trained", "--checkpoint", str(tmp_path / "own.pt")])
    assert answer.exit_code == 0
    (line,) = (line for line in answer.output.splitlines() if line.startswith("| times 10 |"))
    assert line == "| times 10 | 2 | 2 | 0 |  | 0 | 0 | rescaled 2 |"
