"""What a study says of itself: how far its ranking can be trusted."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pytest
import torch
from optuna.samplers import BaseSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from torch import nn

from tests import tiny
from tests.study.test_closing import late_study
from ww_opt import Study, Task
from ww_opt.search import records
from ww_opt.search.ranking import comparable
from ww_opt.study.closing import closing, meaning
from ww_opt.study.study import open_study, run
from ww_opt.study.trust import known_noise, seed_noise, trust


def ran(study: Study, directory: Path) -> optuna.Study:
    host = open_study(study)
    run(study, host, directory)
    return host


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))


class TestComparable:
    def test_one_kind_is_ranked_whole(self, tmp_path: Path) -> None:
        trials = ran(tiny.STUDY, tmp_path).trials
        assert comparable(trials) == (trials, "")
        assert comparable([]) == ([], "")

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"build_model": wider}, "architecture"),
            ({"optimizer": partial(torch.optim.SGD, momentum=0.9)}, "optimizer"),
        ],
    )
    def test_others_are_not_ranked_with_the_most(self, tmp_path: Path, change: dict[str, object], word: str) -> None:
        host = ran(tiny.STUDY, tmp_path)
        task = replace(tiny.TASK, **change)  # type: ignore[arg-type]
        other = replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, task=task), n_trials=5)
        run(other, host, tmp_path)
        group, said = comparable(host.trials)
        assert [trial.number for trial in group] == [0, 1, 2]
        assert f"2 trials differ in {word} from the other 3" in said
        assert ": 3, 4." in said
        result = closing(tiny.STUDY, host)
        assert result.pick is not None
        assert result.pick.number in (0, 1, 2)
        assert result.trust[0] == said


class TestSeedNoise:
    def test_is_measured_once(self, tmp_path: Path) -> None:
        host = ran(tiny.STUDY, tmp_path)
        n_trials = len(host.trials)
        assert math.isnan(known_noise(host, host.best_trial))
        noise = seed_noise(tiny.STUDY, host, host.best_trial)
        assert noise > 0
        assert closing(tiny.STUDY, host).noise == known_noise(host, host.best_trial) == noise
        assert len(host.trials) == n_trials
        broken = replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, n_steps=1, interval_steps=1))
        assert seed_noise(broken, host, host.best_trial) == noise

    def test_records_alone_are_summed_up_without_training(self, tmp_path: Path) -> None:
        host = ran(tiny.STUDY, tmp_path)
        alone, whole = closing(None, host, repeat=True), closing(tiny.STUDY, host)
        assert (alone.pick, alone.saved, alone.meaning) == (whole.pick, whole.saved, "")
        assert alone.trust == tuple(said for said in whole.trust if not said.startswith("The weights alone"))
        assert not any(name.startswith("ww_opt:repeats") for name in host.user_attrs)

    def test_is_unknown_where_it_was_not_asked_for(self, tmp_path: Path) -> None:
        study = replace(tiny.STUDY, n_repeats=0)
        host = ran(study, tmp_path)
        assert math.isnan(seed_noise(study, host, host.best_trial))
        assert not any("seeds" in said for said in closing(study, host, repeat=True).trust)

    def test_bad_number(self) -> None:
        with pytest.raises(ValueError, match="n_repeats=-1"):
            replace(tiny.STUDY, n_repeats=-1)


def with_classes(task: Task) -> Task:
    assert task.late_entry is not None
    return replace(task, late_entry=replace(task.late_entry, logits=lambda model, batch: (model(batch[0]), batch[1])))


def frozen(number: int, value: float) -> FrozenTrial:
    any_number = optuna.distributions.IntDistribution(0, 1000)
    trial = optuna.trial.create_trial(value=value, params={"x": number}, distributions={"x": any_number})
    trial.number = number
    return trial


def said(values: list[float], noise: float = math.nan, study: Study = tiny.STUDY) -> str:
    trials = [frozen(number, value) for number, value in enumerate(values)]
    return "\n".join(trust(study, trials, trials[0], noise))


class TestTrust:
    def test_few_trials(self) -> None:
        assert "Only 3 trials completed" in said([0.1, 0.2, 0.3])
        assert "Only 1 trial completed" in said([0.1])
        assert "Only" not in said([0.1 * number for number in range(10)])

    def test_spread_against_seeds(self) -> None:
        values = [0.1 * number for number in range(12)]
        assert "tells settings apart" in said(values, 0.02)
        assert "little more than chance" in said(values, 0.3)
        assert "same score" in said([0.5] * 12, 0.0)

    def test_ties_are_named_nearest_first(self) -> None:
        values = [0.0, 0.03, 0.01, *(1.0 + 0.1 * number for number in range(9))]
        text = said(values, 0.02)
        assert "bad settings from good ones, but not the good ones from each other" in text
        assert "2 of the other 11 trials lie within the noise of the seeds of the pick (2 x 0.02), and could" in text
        assert "could as well be it: 2, 1." in text
        assert "tells settings apart" not in text
        assert "tells settings apart, and the pick from the rest" in said(values, 0.004)

    def test_an_alarm_takes_the_praise_away(self) -> None:
        trials = [frozen(number, float(number)) for number in range(12)]
        praise = "tells settings apart"
        assert praise in "".join(trust(tiny.STUDY, trials, trials[0], 0.1))
        assert praise not in "".join(trust(tiny.STUDY, trials, trials[0], 0.1, alarms=["Nothing was learnt"]))

    @pytest.mark.parametrize(
        ("sampler", "lost"),
        [
            (TPESampler(), "0.5 [-0.1, 1.1] points of accuracy behind those of the same search on the test set itself"),
            (NSGAIISampler(), "0.5 [-0.1, 1.1]"),
            (RandomSampler(), "0.8 points of accuracy behind the best"),
            (GridSampler({"x": [1]}), "0.8"),
        ],
    )
    def test_what_is_lost_is_that_of_the_sampler(self, sampler: BaseSampler, lost: str) -> None:
        late = late_study([])
        trials = [frozen(0, 0.1)]
        classes = replace(late, objective=replace(late.objective, task=with_classes(late.objective.task)))
        assert lost in "".join(trust(classes, trials, trials[0], host=optuna.create_study(sampler=sampler)))

    def test_what_was_not_measured_is_said(self) -> None:
        late = late_study([])
        task = late.objective.task
        assert task.late_entry is not None
        without = replace(task, late_entry=replace(task.late_entry, logits=None))
        study = replace(late, objective=replace(late.objective, task=without))
        assert "measured for classification, not for losses such as this one" in said([0.1, 0.2], study=study)

    def test_what_guards(self) -> None:
        for guard, words in ((False, "weights alone"), (True, "training loss, which wrong labels mislead")):
            study = replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, guard=guard))
            assert words in said([0.1, 0.2], study=study)
        other = replace(tiny.STUDY, objective=replace(tiny.OBJECTIVE, score="mean_alpha"))
        assert "points of accuracy" not in said([0.1, 0.2], study=other)

    def test_narrow_layers_and_a_perfect_fit(self, tmp_path: Path) -> None:
        host = ran(tiny.STUDY, tmp_path)
        pick = host.best_trial
        assert "The widest layer is 48 wide" in "\n".join(trust(tiny.STUDY, [pick], pick))
        for loss, is_perfect in ((0.5, False), (0.01, True)):
            look = replace(records.looks(pick)[-1], train_loss=loss)
            pick.user_attrs[f"ww_opt:look:{look.step}"] = records._to_json(records.asdict(look))
            assert ("by heart" in "\n".join(trust(tiny.STUDY, [pick], pick))) == is_perfect


@pytest.mark.parametrize(("n", "is_said"), [(19, True), (20, False)])
def test_cohorts_of_few_labels_are_told(n: int, is_said: bool) -> None:
    late = [{"step": 10, "n": size, "accuracy": 0.5, "losses": [1.0] * 61} for size in (40, n)]
    pick = optuna.trial.create_trial(value=1.0, user_attrs={"ww_opt:late": late})
    said = trust(late_study([]), [pick], pick)
    assert any(own.startswith(f"The smallest cohort has {n} labels") for own in said) is is_said


def test_a_loss_that_is_no_cross_entropy_is_explained_as_such() -> None:
    late = late_study([])
    entry = late.objective.task.late_entry
    assert entry is not None
    without = replace(late.objective.task, late_entry=replace(entry, logits=None))
    assert "ln(loss on examples" in meaning(replace(late.objective, task=without))
    assert "accuracy" in meaning(replace(late.objective, task=with_classes(late.objective.task)))
