"""What the parent run of a study holds at its end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState, create_trial

from tests import tiny
from ww_opt.search import records
from ww_opt.search.ranking import INTERRUPTED
from ww_opt.study.closing import closing, open_test_set
from ww_opt.study.pick_card import pick_card, write_card
from ww_opt.study.study import open_study, run
from ww_opt.tracking.contents import best_late_accuracy, finding_counts, of_study, rule_counts
from ww_opt.tracking.mlflow import MLflowCallback

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def test_the_parent_run_is_the_study_and_moves_with_its_pick(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    study = replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, n_steps=4, interval_steps=2), n_repeats=2)
    host = open_study(study)
    run(study, host, tmp_path / "kept")
    client = MlflowClient(uri)

    def told(*, repeat: bool) -> dict[str, dict[str, object]]:
        callback = MLflowCallback(uri, spool=tmp_path / "spool")
        result = closing(study, host, repeat=repeat)
        card = pick_card(study, host, result, None, tmp_path)
        assert card is not None
        accuracy = open_test_set(study, host, tmp_path / "kept")
        file = write_card(card, tmp_path)
        contents = of_study(card, result, accuracy, host.trials, [file])
        assert callback.finish(host, timeout=600, contents=contents) == 0
        assert callback.trouble is None
        experiment = client.get_experiment_by_name("ww_opt").experiment_id
        (parent,) = client.search_runs([experiment], "tags.`ww_opt.role` = 'study'")
        assert [own.path for own in client.list_artifacts(parent.info.run_id)] == ["pick.json"]
        return {"params": parent.data.params, "tags": parent.data.tags, "metrics": parent.data.metrics}

    first = told(repeat=True)
    assert first["params"] == {
        "ww_opt.score": "default",
        "ww_opt.guard": "False",
        "ww_opt.n_steps": "4",
        "ww_opt.direction": "minimize",
        "ww_opt.task": "tiny",
    }
    best = host.best_trial
    assert first["tags"]["ww_opt.pick"] == str(best.number)
    assert first["tags"]["ww_opt.pick.lr/0"] == str(best.params["lr/0"])
    assert first["tags"]["ww_opt.pick.weight_decay/0"] == "0.0001"
    assert first["tags"]["ww_opt.optimizer"] == "AdamW"
    assert {"ww_opt.version.torch", "ww_opt.version.optuna", "ww_opt.seed", "ww_opt.trust"} <= set(first["tags"])
    assert first["tags"]["ww_opt.mattered"].startswith("What mattered cannot be told: 3 completed trials are too few")
    wanted = {"pick_score", "seed_noise", "steps_saved", "sealed_accuracy/pick", "sealed_accuracy/median", "n_complete"}
    assert wanted <= set(first["metrics"])
    assert first["metrics"]["pick_score"] == best.value
    assert "sealed_accuracy/retrained_pick" not in first["metrics"], "NaN is left out"
    note = first["tags"]["mlflow.note.content"]
    assert note.startswith(f"tiny: 3 COMPLETE. Best: **trial {best.number}**")
    assert "**How far to trust it**\n\n- " in note
    assert f"| lr/0 | {best.params['lr/0']:.4g} |" in note

    other = create_trial(
        value=-9.0,
        params={"lr/0": 0.05},
        distributions={"lr/0": best.distributions["lr/0"]},
        user_attrs={**best.user_attrs, "ww_opt:settings": {"0": {"lr": 0.05}}},
    )
    host.add_trial(other)
    second = told(repeat=False)
    assert second["tags"]["ww_opt.pick"] == "3"
    assert second["tags"]["ww_opt.pick.lr/0"] == "0.05"
    assert "ww_opt.pick.weight_decay/0" not in second["tags"], "of the earlier pick"
    assert second["metrics"]["pick_score"] == -9.0


def test_findings_and_rules_are_counted() -> None:
    def layer(name: str, *findings: str, **own: object) -> records.LayerRecord:
        values = {"name": name, "N": 64, "M": 32, "alpha": 3.0, "D": 0.1, "sigma": 0.2, "n_tail": 9, "spikes": 2}
        more = {"n_eigenvalues": 32, "traps": 0, "rank_loss": 0, "stable_rank": 7.0, "spectral_norm": 4.0}
        return records.LayerRecord(**{**values, **more, "findings": findings, "role": "HIDDEN", **own})  # type: ignore[arg-type]

    layers = (layer("a", "TRAP"), layer("b", "TRAP", "HEAVY_TAIL"), layer("head", "HEALTHY", role="HEAD"))
    look = records.Look(10, 10, 1.0, 1.0, layers=layers, late_accuracy=0.7)
    attrs = {"ww_opt:look:10": records._to_json(records.asdict(look))}
    reasons = [
        "correlation traps in 3 of 4 layers: ['a'] at step 40",
        "correlation traps in 2 of 2 layers: ['b'] at step 60",
        "MedianPruner at step 450",
        "the training loss became nan at step 3: training diverged",
        "rank collapse in ['a'] at step 9",
    ]
    pruned = [create_trial(state=TrialState.PRUNED, user_attrs={"ww_opt:reason": reason}) for reason in reasons]
    trials = [create_trial(value=1.0, user_attrs=attrs), *pruned]
    assert finding_counts(trials) == {"HEAVY_TAIL": 1, "TRAP": 2}
    assert rule_counts(trials) == {
        "correlation_traps": 2,
        "medianpruner": 1,
        "rank_collapse": 1,
        "the_training_loss": 1,
    }
    assert best_late_accuracy(trials) == 0.7
    assert math.isnan(best_late_accuracy(pruned))


def test_a_study_without_a_pick_has_counts_alone() -> None:
    host = open_study(tiny.STUDY)
    host.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"ww_opt:reason": INTERRUPTED}))
    contents = of_study(None, closing(tiny.STUDY, host), None, host.trials)
    assert contents.params == {}
    assert contents.metrics == {"steps_saved": 0.0, "n_complete": 0.0, "n_pruned": 0.0, "n_failed": 0.0}
