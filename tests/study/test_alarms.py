"""What must be read before the pick."""

from __future__ import annotations

import math
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from ww_opt.search.ranking import INTERRUPTED
from ww_opt.study.alarms import about_ends, about_learning, alarms


def cohort(accuracy: float, n: int = 90, **own: Any) -> dict[str, Any]:
    """One as ``judge`` makes it of ``n`` independent labels; the loss falls as the accuracy rises."""
    error = math.sqrt(max(accuracy * (1 - accuracy), 0.01) / n) if accuracy == accuracy else math.nan
    known = {"accuracy_error": error, "constant_accuracy": 0.12, "constant_loss": 2.3, "loss_error": 0.1}
    return {"step": 1, "n": n, "accuracy": accuracy, "losses": [2.5 - accuracy] * 61, **known, **own}


def said_of(*late: dict[str, Any], n_trials: int = 5) -> list[str]:
    trials = [trial(*late, first_loss=2.3)] * n_trials
    return alarms(trials, trials, trials[0])


def trial(*late: dict[str, Any], state: TrialState = TrialState.COMPLETE, **own: Any) -> FrozenTrial:
    """``step`` of its last look of a run of 100, ``train_loss`` there, ``first_loss`` and ``reason``."""
    look = {"step": own.get("step", 100), "n_steps": 100, "value": 1.0, "score": 1.0, "layers": []}
    attrs = {f"ww_opt:{name}": own[name] for name in ("first_loss", "reason") if name in own}
    return create_trial(
        value=1.0 if state is TrialState.COMPLETE else None,
        state=state,
        user_attrs={"ww_opt:look:1": {**look, "train_loss": own.get("train_loss", 0.5)}, "ww_opt:late": late, **attrs},
    )


class TestLearning:
    def test_no_better_than_a_constant_answer_is_said(self) -> None:
        own = cohort(0.22, 30, constant_accuracy=0.17, losses=[2.3] * 61)
        (said,) = said_of(own, own, own)
        assert said.startswith("Nothing was learnt that late examples can confirm: of their 90 labels")
        assert "predicts 22%, a constant guess 17%" in said

    @pytest.mark.parametrize(
        "own",
        [
            cohort(0.5, 30, constant_accuracy=0.17),
            cohort(0.22, 3000, constant_accuracy=0.17),
            # most labels are of one class: the accuracy is no better, the loss is
            cohort(0.9, 90, constant_accuracy=0.9, constant_loss=0.4, loss_error=0.02, losses=[0.2] * 61),
            # of a record that knows no errors
            {"step": 1, "n": 30, "accuracy": 0.22, "losses": [2.3] * 61},
        ],
    )
    def test_what_was_learnt_or_is_not_known_alarms_nobody(self, own: dict[str, Any]) -> None:
        assert said_of(own, own, own) == []

    @pytest.mark.parametrize(("loss", "is_said"), [(2.25, True), (2.0, False), (math.nan, False)])
    def test_without_late_examples_the_training_loss_tells(self, loss: float, is_said: bool) -> None:
        said = about_learning(trial(train_loss=loss, first_loss=2.3))
        assert bool(said) is is_said


class TestCohorts:
    def test_those_of_one_kind_rise_with_training_and_alarm_nobody(self) -> None:
        assert said_of(cohort(0.7), cohort(0.75), cohort(0.85)) == []
        assert said_of(cohort(0.8), cohort(0.76), cohort(0.85)) == [], "chance"

    def test_one_far_worse_than_the_others_is_named(self) -> None:
        (said,) = said_of(cohort(0.85), cohort(0.3), cohort(0.85))
        assert said.startswith("Cohort 2 of 3 disagrees with the others")
        assert "30% are predicted, of theirs 85%" in said

    def test_the_first_two_at_chance_and_the_last_is_not(self) -> None:
        said = said_of(*(cohort(value) for value in (0.1, 0.14, 0.8)))
        assert [own[:8] for own in said] == ["Cohort 1", "Cohort 2"]


class TestEnds:
    def test_most_failed(self) -> None:
        failed = trial(state=TrialState.FAIL, reason="OutOfMemoryError: 3 GiB")
        (said,) = about_ends([failed, failed, trial()])
        assert said.startswith("2 of 3 trials failed: OutOfMemoryError (2).")
        assert about_ends([failed, trial(), trial()]) == []
        assert about_ends([trial(state=TrialState.FAIL, reason=INTERRUPTED)] * 3 + [trial()]) == []

    def test_most_were_pruned_early(self) -> None:
        early, late = (trial(state=TrialState.PRUNED, step=step) for step in (20, 80))
        (said,) = about_ends([early, early, trial()])
        assert said.startswith("2 of 3 trials were pruned before half of their run")
        assert about_ends([late, late, trial()]) == []

    def test_what_ended_before_its_first_look_is_counted(self) -> None:
        def unseen(state: TrialState, reason: str) -> FrozenTrial:
            return create_trial(state=state, user_attrs={"ww_opt:reason": reason})

        seen = trial(state=TrialState.FAIL, reason="KeyError: x")
        failed = unseen(TrialState.FAIL, "KeyError: x")
        (said,) = about_ends([failed, failed, seen, trial()], is_picked=False)
        assert said == "3 of 4 trials failed: KeyError (3). 2 of them ended before the first look."
        gone = unseen(TrialState.PRUNED, "training diverged")
        (said,) = about_ends([gone] * 3)
        assert "3 of 3 trials diverged: -1, -1, -1. 3 of them ended before the first look. The pick" in said
        early = trial(state=TrialState.PRUNED, step=20, reason="MedianPruner at step 20")
        assert "first look" not in about_ends([early] * 3)[0]

    def test_what_failed_and_what_was_pruned_early_are_a_majority_together(self) -> None:
        failed = create_trial(state=TrialState.FAIL, user_attrs={"ww_opt:reason": "KeyError: x"})
        early = trial(state=TrialState.PRUNED, step=20, reason="MedianPruner at step 20")
        (said,) = about_ends([failed, failed, early, trial(), trial()])
        assert said.startswith("3 of 5 trials came to nothing: 2 failed, 1 were pruned before half of their run. 2 of")
        assert about_ends([failed, failed, early, *[trial()] * 3]) == []


def test_the_most_serious_comes_first() -> None:
    nothing = trial(*[cohort(0.1, losses=[2.4] * 61)] * 3, first_loss=2.3)
    said = alarms([nothing, *[trial(state=TrialState.FAIL, reason="x")] * 2], [nothing], nothing)
    assert [own.split()[0] for own in said] == ["Nothing", "2"]
    assert alarms([], [], None) == []


def test_divergence_is_called_so_and_no_pick_is_none() -> None:
    reason = "the training loss became nan at step 20: training diverged"
    gone = [trial(state=TrialState.PRUNED, step=20, reason=reason)] * 3
    (said,) = alarms(gone, [], None)
    assert said.startswith("3 of 3 trials diverged: ")
    assert "learning rate" in said
    assert "pick" not in said


def test_being_outrun_early_is_no_alarm() -> None:
    outrun = trial(state=TrialState.PRUNED, step=20, reason="rule late: place 5 of 6")
    assert len(about_ends([outrun] * 5)) == 1
    outrun.user_attrs["ww_opt:decision:20:rank"] = {"step": 20, "rule": "late", "half": "rank", "is_pruned": True}
    assert about_ends([outrun] * 5) == []
