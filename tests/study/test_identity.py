"""What goes on under an old name is the same study, or is refused with what differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from torch import Tensor, nn

from tests import tiny
from ww_opt import LateExamples, LayerwiseSampler, LayerwiseSpace, Study, train_best
from ww_opt.search.bounds import is_inside, remembered
from ww_opt.search.ranking import groups, ranking
from ww_opt.study.study import open_study, run

QUICK = replace(tiny.OBJECTIVE, n_steps=2, interval_steps=2)
STUDY = replace(tiny.STUDY, objective=QUICK, n_trials=2)
NARROW = LayerwiseSpace(lr=FloatDistribution(0.03, 0.1, log=True), weight_decay=1e-4)


def with_task(**changes: Any) -> Study:
    return replace(STUDY, objective=replace(QUICK, task=replace(tiny.TASK, **changes)))


def with_space(space: LayerwiseSpace, **changes: Any) -> Study:
    return replace(STUDY, objective=replace(QUICK, space=space), **changes)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{(tmp_path / 'studies.db').as_posix()}"


@pytest.fixture
def old(url: str, tmp_path: Path) -> str:
    """A study of two trials."""
    run(STUDY, open_study(STUDY, url), tmp_path)
    return url


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))


def other_start() -> nn.Module:
    model = tiny.build_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def smoothed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def other_batches() -> list[tuple[Tensor, Tensor]]:
    return [(x, y.roll(1)) for x, y in tiny.batches()]


class TestTask:
    def test_the_same_again_is_welcome(self, old: str) -> None:
        for _ in range(2):
            open_study(STUDY, old)
        open_study(replace(STUDY, n_trials=9, seed=3, start=True), old)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"name": "other"}, "its name was 'tiny' and is 'other'"),
            ({"build_model": wider}, "the number of weights was 4467 and is "),
            ({"loss": smoothed}, "the loss before training was .* so that the data, `loss` or the initial weights"),
            ({"batches": other_batches}, "the loss before training was "),
            ({"build_model": other_start}, "the loss before training was "),
            (
                {"late_entry": LateExamples(96, 32, lambda index: index)},
                "the number of examples in `late_entry` was None and is 96",
            ),
        ],
    )
    def test_another_is_refused_with_what_differs(self, old: str, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(
            ValueError, match=f"must have been run with the same task, .*{words}.*: choose another --st"
        ):
            open_study(with_task(**changes), old)

    def test_nothing_is_refused_before_a_trial_ran(self, url: str) -> None:
        host = open_study(STUDY, url)
        host.enqueue_trial({"lr/0": 0.05})
        open_study(with_task(name="other"), url)
        assert host.user_attrs["ww_opt:task"]["name"] == "other"

    def test_one_trial_is_enough(self, url: str, tmp_path: Path) -> None:
        one = replace(STUDY, n_trials=1)
        run(one, open_study(one, url), tmp_path)
        open_study(STUDY, url)
        with pytest.raises(ValueError, match="the loss before training was"):
            open_study(with_task(loss=smoothed), url)

    @pytest.mark.parametrize("n_trials", [1, 2])
    def test_a_loss_that_is_another_each_time_says_nothing(self, url: str, tmp_path: Path, n_trials: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def batches() -> list[tuple[Tensor, Tensor]]:
            return [(x + torch.randn(x.shape, generator=generator), y) for x, y in tiny.batches()]

        study = replace(with_task(batches=batches), n_trials=n_trials)
        run(study, open_study(study, url), tmp_path)
        open_study(study, url)
        generator.manual_seed(7)
        open_study(study, url)

    def test_another_seed_has_another_loss_and_is_welcome(self, old: str) -> None:
        open_study(replace(STUDY, objective=replace(QUICK, seed=5)), old)

    def test_a_loss_that_raises_is_told_by_the_next_trial(self, old: str, tmp_path: Path) -> None:
        def broken(model: nn.Module, batch: Any) -> Tensor:
            raise KeyError("mine")

        study = replace(with_task(loss=broken), n_trials=3)
        host = open_study(study, old)
        run(study, host, tmp_path)
        assert host.trials[2].state is TrialState.FAIL

    def test_opening_leaves_random_streams_alone(self, old: str) -> None:
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        open_study(STUDY, old)
        assert torch.equal(torch.rand(3), expected)


class TestSpace:
    def test_other_bounds_are_refused_with_both_and_nothing_else(self, old: str) -> None:
        space = LayerwiseSpace(lr={"0": FloatDistribution(1e-3, 1e-1, log=True), "2": FloatDistribution(0.01, 0.1)})
        with pytest.raises(ValueError, match="must be gone on with in the same space") as caught:
            open_study(with_space(space), old)
        said = str(caught.value)
        assert (
            "`lr/2` was 0.001 to 0.1 (log) and is 0.01 to 0.1; `lr/4` was 0.001 to 0.1 (log) and is not there" in said
        )
        assert "`lr/0`" not in said
        assert "--changed-space rescale" in said
        assert "--study-name" in said

    def test_a_first_trial_with_scaled_weights_is_no_other_task(self, url: str, tmp_path: Path) -> None:
        study = replace(with_space(LayerwiseSpace(lr=0.01, init_scale=FloatDistribution(2.0, 3.0))), n_trials=1)
        run(study, open_study(study, url), tmp_path)
        open_study(study, url)

    def test_constants_may_change(self, old: str) -> None:
        open_study(with_space(replace(tiny.SPACE, weight_decay=1e-3)), old)

    @pytest.mark.parametrize("sampler", [None, lambda seed: LayerwiseSampler(seed=seed)], ids=["TPE", "layerwise"])
    def test_rescaled_it_goes_on_in_the_new_bounds_and_old_trials_inside_count(
        self, url: str, tmp_path: Path, sampler: Callable[[int], Any] | None
    ) -> None:
        own = {} if sampler is None else {"sampler": sampler}
        before = replace(STUDY, n_trials=1, **own)
        host = open_study(before, url)
        for rates in ((0.05, 0.05, 0.05), (0.002, 0.05, 0.05)):
            host.enqueue_trial({f"lr/{name}": rate for name, rate in zip("024", rates, strict=True)})
        run(replace(before, n_trials=2), host, tmp_path)
        study = with_space(NARROW, n_trials=5, changed_space="rescale", **own)
        host = open_study(study, url)
        run(study, host, tmp_path)
        bounds = study.objective.space.parameters(tiny.build_model())
        assert remembered(host) == bounds
        assert [is_inside(trial.params, bounds) for trial in host.trials] == [True, False, True, True, True]
        found = ranking(host)
        assert {trial.number for trial in found.trials} == {0, 2, 3, 4}
        assert found.left_out == ("1 completed trial not ranked, for the bounds have changed since: 1.",)
        assert {trial.number for group in groups(host) for trial in group} == {0, 2, 3, 4}
        train_best(host, study.objective)
        if sampler is not None:
            assert host.sampler.infer_relative_search_space(host, host.trials[0]) == bounds
        open_study(replace(study, changed_space="refuse"), url)  # the new bounds are the study's own now

    def test_all_count_where_nothing_changed(self, old: str) -> None:
        host = open_study(replace(STUDY, changed_space="rescale"), old)
        assert len(ranking(host).trials) == 2

    def test_what_is_neither_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"`changed_space` must be 'refuse' or 'rescale', but got 'x'"):
            replace(STUDY, changed_space="x")  # type: ignore[arg-type]


def test_a_study_from_before_goes_on_as_it_is(old: str, tmp_path: Path) -> None:
    host = optuna.load_study(study_name=STUDY.name, storage=old)
    for name in ("ww_opt:space", "ww_opt:task", "ww_opt:start"):
        host.set_user_attr(name, None)
    study = replace(with_task(name="other", loss=smoothed), n_trials=3)
    study = replace(study, objective=replace(study.objective, space=NARROW))
    host = open_study(study, old)
    run(study, host, tmp_path)
    assert len(ranking(host).trials) == 3
    assert remembered(host) is None
