"""What is written comes back, from a real storage and in a fresh interpreter without torch."""

import math
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from ww_opt.search.records import LayerRecord, Look, layer_records, looks, read, reason, write, write_look
from ww_opt.spectral.findings import Finding, Role

ROOT = Path(__file__).parents[2]
LAYER = LayerRecord(
    name="blocks.0",
    N=96,
    M=64,
    alpha=3.5,
    D=0.1,
    sigma=0.2,
    n_tail=20,
    spikes=3,
    n_eigenvalues=64,
    traps=0,
    rank_loss=1,
    stable_rank=8.5,
    spectral_norm=2.5,
    findings=("TRAP", "MOVED_LITTLE"),
    role="HIDDEN",
)
UNFITTED = replace(LAYER, name="head", alpha=math.nan, D=math.nan, sigma=math.nan, findings=(), role="HEAD")
LOOK = Look(step=60, n_steps=600, value=3.5, score=3.25, train_loss=0.5, seconds=0.01, layers=(LAYER, UNFITTED))


@pytest.fixture(params=["memory", "sqlite"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> optuna.Study:
    storage = f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else None
    return optuna.create_study(storage=storage, study_name="records")


class TestLooks:
    def test_a_look_comes_back_from_the_live_and_the_frozen_trial(self, study: optuna.Study) -> None:
        trial = study.ask()
        write_look(trial, LOOK)
        study.tell(trial, 1.0)
        for source in (trial, study.trials[0]):
            (found,) = looks(source)
            assert_same(found, LOOK)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_comes_back_as_nan(self, study: optuna.Study, value: float) -> None:
        trial = study.ask()
        write_look(trial, replace(LOOK, value=value, train_loss=value, layers=(replace(LAYER, stable_rank=value),)))
        (found,) = looks(trial)
        assert math.isnan(found.value)
        assert math.isnan(found.train_loss)
        assert math.isnan(found.layers[0].stable_rank)
        assert found.score == LOOK.score

    def test_layers_from_before_there_were_roles_have_none(self, study: optuna.Study) -> None:
        trial = study.ask()
        write_look(trial, LOOK)
        [(key, value)] = [item for item in trial.user_attrs.items() if ":look:" in item[0]]
        trial.set_user_attr(key, {**value, "layers": [{k: v for k, v in value["layers"][0].items() if k != "role"}]})
        (found,) = looks(trial)
        assert found.layers == (replace(LAYER, role=""),)

    def test_looks_come_by_step(self, study: optuna.Study) -> None:
        trial = study.ask()
        for step in (600, 60, 1200):
            write_look(trial, replace(LOOK, step=step))
        write(trial, looked=True)
        assert [look.step for look in looks(trial)] == [60, 600, 1200]

    def test_a_second_look_at_a_step_replaces_the_first(self, study: optuna.Study) -> None:
        trial = study.ask()
        for score in (1.0, 2.0):
            write_look(trial, replace(LOOK, score=score))
        assert [look.score for look in looks(trial)] == [2.0]

    def test_numbers_of_numpy_are_numbers(self, study: optuna.Study) -> None:
        layer: Any = replace(LAYER, n_tail=np.int64(20), alpha=np.float32(3.5), D=np.float64("nan"))  # type: ignore[arg-type]
        trial = study.ask()
        write_look(trial, replace(LOOK, layers=(layer,)))
        assert_same(looks(trial)[0].layers[0], replace(LAYER, D=math.nan))

    def test_fields_of_later_versions_are_left_out(self, study: optuna.Study) -> None:
        trial = study.ask()
        values = {**asdict(replace(LOOK, layers=())), "mood": "sunny"}
        values["layers"] = [{**asdict(LAYER), "colour": "red"}]
        trial.set_user_attr("ww_opt:look:60", values)
        assert_same(looks(trial)[0], replace(LOOK, layers=(LAYER,)))

    def test_a_trial_without_looks_has_none(self, study: optuna.Study) -> None:
        assert looks(study.ask()) == ()


class TestValues:
    def test_values_come_back_as_json(self, study: optuna.Study) -> None:
        trial = study.ask()
        write(trial, settings={"fc": {"lr": 0.1, "dropout": None}}, steps=(1, 2), done=True, first_loss=math.inf)
        assert read(trial, "settings") == {"fc": {"lr": 0.1, "dropout": None}}
        assert read(trial, "steps") == [1, 2]
        assert read(trial, "done") is True
        assert read(trial, "first_loss") is None
        assert read(trial, "missing", default="default") == "default"

    def test_a_value_may_have_any_name(self, study: optuna.Study) -> None:
        trial = study.ask()
        write(trial, trial="x", value=1)
        assert (read(trial, "trial"), read(trial, "value")) == ("x", 1)

    def test_the_reason_is_empty_where_there_is_none(self, study: optuna.Study) -> None:
        trial = study.ask()
        assert reason(trial) == ""
        write(trial, reason="rank collapse in layer 'fc'")
        assert reason(trial) == "rank collapse in layer 'fc'"

    def test_the_users_own_attributes_are_left_alone(self, study: optuna.Study) -> None:
        trial = study.ask()
        trial.set_user_attr("reason", "mine")
        write(trial, reason="ours")
        assert trial.user_attrs == {"reason": "mine", "ww_opt:reason": "ours", "ww_opt:of_trial": trial.number}


class TestLayerRecords:
    def test_rows_are_reduced_to_what_others_act_on(self) -> None:
        @dataclass(frozen=True)
        class Row:
            values: LayerRecord
            findings: tuple[Finding, ...]
            role: Role

            def __getattr__(self, name: str) -> Any:
                return getattr(self.values, name)

        rows: Any = [Row(LAYER, (Finding.TRAP, Finding.MOVED_LITTLE), Role.HIDDEN), Row(UNFITTED, (), Role.HEAD)]
        for found, expected in zip(layer_records(rows), (LAYER, UNFITTED), strict=True):
            assert_same(found, expected)


@pytest.mark.parametrize("module", ["ww_opt.search.records", "ww_opt.spectral.findings"])
def test_records_are_read_where_no_torch_is(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def assert_same(found: object, expected: object) -> None:
    """Equal, where NaN equals NaN."""
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)
