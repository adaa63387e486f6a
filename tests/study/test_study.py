"""A study runs, stops, goes on, keeps weights, and says at its end what is true."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch import Tensor, nn

from tests import tiny
from ww_opt import Study, score
from ww_opt.search import records
from ww_opt.study.closing import closing, open_test_set
from ww_opt.study.references import BadReference, load, load_study
from ww_opt.study.study import INTERRUPTED, is_bad_input, n_finished, open_study, run
from ww_opt.study.weights_folder import weights_file

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
QUICK = replace(tiny.OBJECTIVE, n_steps=2, interval_steps=2)


def quick(**changes: Any) -> Study:
    return replace(tiny.STUDY, **{"objective": QUICK, **changes})


def with_loss(loss: Callable[[nn.Module, Any], Tensor]) -> Study:
    return quick(objective=replace(QUICK, task=replace(tiny.TASK, loss=loss)))


def states(host: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in host.get_trials(deepcopy=False)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{(tmp_path / 'studies.db').as_posix()}"


class TestBudget:
    def test_a_study_goes_on_to_its_n_trials_in_all(self, tmp_path: Path, url: str) -> None:
        for n_trials, expected in ((2, 2), (5, 5), (5, 5), (3, 5)):
            study = quick(n_trials=n_trials)
            run(study, open_study(study, url), tmp_path)
            assert n_finished(open_study(study, url)) == expected

    def test_pruned_and_failed_trials_count(self, tmp_path: Path) -> None:
        study = quick(n_trials=5)
        host = open_study(study)
        for state, values in ((COMPLETE, [1.0]), (PRUNED, None), (FAIL, None)):
            host.add_trial(create_trial(state=state, values=values))
        run(study, host, tmp_path)
        assert states(host) == [COMPLETE, PRUNED, FAIL, COMPLETE, COMPLETE]

    def test_no_trial_starts_after_the_timeout(self, tmp_path: Path) -> None:
        study = quick(timeout=1e-9)
        host = open_study(study)
        run(study, host, tmp_path)
        assert not host.trials

    def test_who_may_end_it_is_asked_before_each_trial(self, tmp_path: Path) -> None:
        answers = iter([True, True, False])
        host = open_study(quick(n_trials=5))
        run(quick(n_trials=5), host, tmp_path, may_start=lambda: next(answers))
        assert len(host.trials) == 2

    def test_observers_see_each_trial_when_it_has_ended(self, tmp_path: Path) -> None:
        seen: list[tuple[int, TrialState]] = []
        run(quick(), open_study(quick()), tmp_path, [lambda _, trial: seen.append((trial.number, trial.state))])
        assert seen == [(0, COMPLETE), (1, COMPLETE), (2, COMPLETE)]


class TestSeed:
    @staticmethod
    def params(url: str | None, n_trials: int, directory: Path, **changes: Any) -> list[dict[str, Any]]:
        study = quick(n_trials=n_trials, sampler=lambda seed: RandomSampler(seed=seed), **changes)
        host = open_study(study, url)
        run(study, host, directory)
        return [trial.params for trial in host.trials]

    def test_the_same_seed_asks_the_same_and_another_does_not(self, tmp_path: Path) -> None:
        folders = (tmp_path / name for name in "abc")
        first, again, other = (self.params(None, 2, next(folders), seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first[0] != other[0]

    def test_a_resumed_study_does_not_ask_its_first_points_again(self, tmp_path: Path, url: str) -> None:
        self.params(url, 2, tmp_path)
        asked = self.params(url, 4, tmp_path)
        assert len({tuple(params.items()) for params in asked}) == 4

    def test_workers_draw_apart(self) -> None:
        seeds: list[int] = []

        def sampler(seed: int) -> BaseSampler:
            seeds.append(seed)
            return RandomSampler(seed=seed)

        for worker in (0, 1):
            open_study(quick(sampler=sampler), worker=worker)
        assert len(set(seeds)) == 2


class TestStorage:
    def test_a_journal_file_by_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "study.journal"
        run(quick(), open_study(quick(), str(path)), tmp_path)
        assert path.stat().st_size > 0
        assert n_finished(open_study(quick(), str(path))) == 3

    def test_another_direction_is_refused(self, url: str) -> None:
        open_study(quick(), url)
        other = quick(objective=replace(QUICK, score="spike_share"))
        with pytest.raises(ValueError, match=r"must maximize.*created to minimize.*--study-name"):
            open_study(other, url)

    @pytest.mark.parametrize(
        "change", [{"score": "mean_alpha"}, {"guard": not QUICK.guard}, {"n_steps": QUICK.n_steps + 1}]
    )
    def test_values_made_in_another_way_are_refused(self, url: str, change: dict[str, Any]) -> None:
        open_study(quick(), url)
        open_study(quick(), url)  # the same again is welcome
        with pytest.raises(ValueError, match=r"same objective.*--study-name"):
            open_study(quick(objective=replace(QUICK, **change)), url)


class TestInterrupted:
    """Ctrl-C and SIGTERM, wherever they come."""

    @pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
    def number(self, request: pytest.FixtureRequest) -> signal.Signals:
        number: signal.Signals = request.param
        return number

    @staticmethod
    def send(number: signal.Signals) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0)  # the interpreter handles it here at the latest

    def test_in_training_the_trial_is_recorded_and_done_again_first(
        self, tmp_path: Path, url: str, number: signal.Signals
    ) -> None:
        n_calls = 0

        def loss(model: nn.Module, batch: Any) -> Tensor:
            nonlocal n_calls
            n_calls += 1
            if n_calls == 12:  # in the second trial
                self.send(number)
            return tiny.loss(model, batch)

        study = with_loss(loss)
        before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
        with pytest.raises(KeyboardInterrupt):
            run(study, open_study(study, url), tmp_path)
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
        host = open_study(study, url)
        assert states(host) == [COMPLETE, FAIL, TrialState.WAITING]
        assert records.reason(host.trials[1]) == INTERRUPTED
        assert n_finished(host) == 1
        run(study, host, tmp_path)
        assert states(host) == [COMPLETE, FAIL, COMPLETE, COMPLETE]
        assert host.trials[2].params == host.trials[1].params
        assert host.trials[3].params != host.trials[1].params

    def test_between_trials_the_books_are_closed_first(self, tmp_path: Path, number: signal.Signals) -> None:
        host = open_study(quick())
        with pytest.raises(KeyboardInterrupt):
            run(quick(), host, tmp_path, [lambda *_: self.send(number)])
        assert states(host) == [COMPLETE]

    def test_while_the_sampler_thinks_no_trial_is_left_running(self, tmp_path: Path, number: signal.Signals) -> None:
        class Slow(RandomSampler):
            def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
                TestInterrupted.send(number)

        study = quick(sampler=lambda seed: Slow(seed=seed))
        host = open_study(study)
        with pytest.raises(KeyboardInterrupt):
            run(study, host, tmp_path)
        assert states(host) == [FAIL]
        assert n_finished(host) == 0

    def test_twice_is_as_good_as_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = records.write

        def interrupted_write(trial: optuna.Trial, /, **values: Any) -> None:
            if "reason" in values:
                self.send(signal.SIGTERM)
            write(trial, **values)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            self.send(signal.SIGINT)
            return tiny.loss(model, batch)

        monkeypatch.setattr(records, "write", interrupted_write)
        study = with_loss(loss)
        host = open_study(study)
        with pytest.raises(KeyboardInterrupt):
            run(study, host, tmp_path)
        assert states(host) == [FAIL, TrialState.WAITING]
        assert records.reason(host.trials[0]) == INTERRUPTED

    def test_settings_that_were_given_are_given_again_even_where_none_was_suggested_yet(self, tmp_path: Path) -> None:
        def build_model() -> nn.Module:
            self.send(signal.SIGINT)
            return tiny.build_model()

        study = quick(objective=replace(QUICK, task=replace(tiny.TASK, build_model=build_model)))
        host = open_study(study, is_checked=True)  # which builds no model
        host.enqueue_trial({"lr/0": 0.02})
        with pytest.raises(KeyboardInterrupt):
            run(study, host, tmp_path)
        run(quick(), host, tmp_path)
        assert host.trials[1].params["lr/0"] == 0.02

    def test_a_signal_that_was_ignored_still_is(self, tmp_path: Path) -> None:
        host = open_study(quick())
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            run(quick(), host, tmp_path, [lambda *_: self.send(signal.SIGINT)])
        finally:
            signal.signal(signal.SIGINT, before)
        assert states(host) == [COMPLETE] * 3


def test_what_the_users_code_raises_ends_the_run_with_its_reason_on_record(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("mine")

    study = with_loss(loss)
    host = open_study(study)
    with pytest.raises(KeyError, match="mine") as caught:
        run(study, host, tmp_path)
    assert states(host) == [FAIL]
    assert records.reason(host.trials[0]) == "KeyError: 'mine'"
    assert not is_bad_input(caught.value)


def test_bad_input_is_what_our_checks_raise_and_nothing_else() -> None:
    def caught(action: Callable[[], object]) -> BaseException:
        try:
            action()
        except Exception as error:
            return error
        raise AssertionError("nothing was raised")

    assert is_bad_input(caught(lambda: quick(n_trials=0)))
    assert is_bad_input(caught(lambda: score({})))
    assert not is_bad_input(caught(lambda: int("x")))
    assert not is_bad_input(caught(lambda: weights_file(None, 1))), "a mistake in our own code keeps its traceback"  # type: ignore[arg-type]


class TestWeights:
    def test_they_are_those_of_the_scored_model(self, tmp_path: Path) -> None:
        host = open_study(quick())
        run(quick(), host, tmp_path / "new" / "folder")
        for trial in host.trials:
            file = weights_file(tmp_path / "new" / "folder", trial.number)
            assert score(str(file)) == trial.value
        left = {file.name for file in (tmp_path / "new" / "folder").iterdir()} - {".study"}
        assert len(left) == 3, "no half-written file is left"

    def test_another_study_of_the_same_name_takes_no_folder_over(self, tmp_path: Path, url: str) -> None:
        study = replace(tiny.STUDY, n_trials=1)
        run(study, open_study(study, url), tmp_path)
        before = weights_file(tmp_path, 0).read_bytes()
        with pytest.raises(ValueError, match=r"one study alone.*another storage: choose another --directory"):
            run(study, open_study(study), tmp_path)
        assert weights_file(tmp_path, 0).read_bytes() == before
        run(replace(study, n_trials=2), open_study(study, url), tmp_path)
        assert weights_file(tmp_path, 1).is_file()

    def test_what_a_killed_process_left_half_written_is_removed_once_it_is_old(self, tmp_path: Path) -> None:
        for name, age in (("trial-00007.pt-a.part", 3600.0), ("trial-00008.pt-b.part", 0.0)):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (time.time() - age,) * 2)
        run(quick(n_trials=1), open_study(quick()), tmp_path)
        assert [file.name for file in tmp_path.glob("*.part")] == ["trial-00008.pt-b.part"]

    def test_only_the_best_where_asked(self, tmp_path: Path) -> None:
        study = replace(tiny.STUDY, n_trials=4, keep_weights="best")
        host = open_study(study)
        kept: list[list[Path]] = []
        run(study, host, tmp_path, [lambda *_: kept.append(sorted(tmp_path.iterdir()))])
        assert sorted(tmp_path.glob("*.*")) == [tmp_path / ".study", weights_file(tmp_path, host.best_trial.number)]
        accuracy = open_test_set(study, host, tmp_path)
        assert accuracy is not None
        assert accuracy.pick > 0.3
        assert math.isnan(accuracy.best)
        assert math.isnan(accuracy.median)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_trials": 0}, "n_trials=0"),
        ({"n_trials": -3}, "n_trials=-3"),
        ({"timeout": 0.0}, "timeout=0.0"),
        ({"timeout": math.nan}, "timeout=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"keep_weights": "some"}, "'some'"),
        ({"name": ""}, "got ''"),
        ({"name": "../x"}, "got '../x'"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        quick(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": RandomSampler(seed=0)}, r"called with a seed.*write `lambda seed: RandomSampler\(seed=seed\)`"),
        ({"objective": len}, "must be a SpectralObjective"),
        ({"pruner": "median"}, "must be a BasePruner, but got 'median'"),
        ({"n_trials": 1.5}, "n_trials must be a int, but got 1.5"),
    ],
)
def test_bad_types_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        quick(**changes)


def ended(state: TrialState, *steps: int, value: float | None = None, **attrs: Any) -> FrozenTrial:
    """A trial with looks at these steps."""
    looks = [records.Look(step, 100, float(step), float(step), train_loss=0.5) for step in steps]
    return create_trial(
        state=state,
        values=None if value is None else [value],
        user_attrs={
            **{f"ww_opt:look:{look.step}": {**vars(look), "layers": []} for look in looks},
            **{f"ww_opt:{name}": item for name, item in attrs.items()},
        },
    )


class TestClosing:
    @pytest.fixture
    def study(self) -> Study:
        return quick(objective=replace(tiny.OBJECTIVE, n_steps=100, interval_steps=10))

    def test_the_numbers_of_a_study_made_by_hand(self, study: Study) -> None:
        host = open_study(study)
        host.add_trials(
            [
                ended(COMPLETE, 50, 100, value=0.7),
                ended(COMPLETE, 50, 100, value=0.2),
                ended(PRUNED, 10, 40, value=40.0, reason="random", steps=40),
                ended(PRUNED, 10, reason="the loss", steps=20),
                ended(PRUNED, 10, 60, value=60.0),
                ended(FAIL, 10, reason="KeyError: 1"),
                ended(FAIL, 10, reason=INTERRUPTED),
                create_trial(state=TrialState.RUNNING, user_attrs={}, system_attrs={}),
            ]
        )
        result = closing(study, host)
        assert (result.n_complete, result.n_pruned, result.n_failed) == (2, 3, 1)
        # 100 + 100 + 40 + 20 + 60 of 5 x 100 steps were run
        assert result.saved == pytest.approx(1 - 320 / 500)
        assert result.pick is not None
        assert result.pick.number == 1
        assert result.look is not None
        assert result.look.step == 100
        assert result.reasons == ("random", "the loss", "KeyError: 1")

    def test_a_study_without_a_completed_trial_has_no_pick(self, study: Study) -> None:
        host = open_study(study)
        assert closing(study, host).pick is None
        assert closing(study, host).saved == 0.0
        host.add_trial(ended(PRUNED, 10, steps=10))
        result = closing(study, host)
        assert result.pick is None
        assert result.saved == pytest.approx(0.9)

    @pytest.fixture
    def constant(self) -> Study:
        """A study whose test accuracy is written into the model."""

        class Constant(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.accuracy = nn.Parameter(torch.rand(()))

        def evaluate(model: nn.Module) -> float:
            return next(model.parameters()).item()

        return quick(objective=replace(QUICK, task=replace(tiny.TASK, build_model=Constant, evaluate=evaluate)))

    @staticmethod
    def finished(study: Study, directory: Path, accuracies: dict[int, float]) -> optuna.Study:
        """Trials 0 to 4, of which trial 1 has the best score and trial 2 was pruned."""
        host = open_study(study)
        for value, state in ((0.5, COMPLETE), (0.1, COMPLETE), (0.0, PRUNED), (0.9, COMPLETE), (0.3, COMPLETE)):
            host.add_trial(ended(state, value=value))
        for number, accuracy in accuracies.items():
            torch.save({"accuracy": torch.tensor(accuracy)}, weights_file(directory, number))
        return host

    def test_the_test_set_says_how_good_pick_best_and_median_are(self, tmp_path: Path, constant: Study) -> None:
        host = self.finished(constant, tmp_path, {0: 0.25, 1: 0.5, 3: 0.75, 4: 0.625})
        state = torch.get_rng_state()
        accuracy = open_test_set(constant, host, tmp_path)
        assert accuracy is not None
        assert (accuracy.pick, accuracy.best, accuracy.best_number) == (0.5, 0.75, 3)
        assert accuracy.median == (0.5 + 0.625) / 2
        assert accuracy.n_trials == 4
        assert torch.equal(torch.get_rng_state(), state)

    def test_it_says_nothing_where_it_cannot(self, tmp_path: Path, constant: Study) -> None:
        assert open_test_set(constant, open_study(constant), tmp_path) is None
        assert open_test_set(constant, self.finished(constant, tmp_path, {0: 0.2}), tmp_path) is None
        sealed = replace(constant.objective, task=replace(constant.objective.task, evaluate=None))
        host = self.finished(constant, tmp_path, {1: 0.2})
        assert open_test_set(replace(constant, objective=sealed), host, tmp_path) is None


class TestReferences:
    @pytest.fixture(autouse=True)
    def own_path(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize("reference", ["{}/tiny.py", "{}/tiny.py:STUDY", "tests.tiny", "tests.tiny:STUDY"])
    def test_a_study_by_file_or_module(self, reference: str) -> None:
        found = load_study(reference.format(Path(tiny.__file__).parent.as_posix()))
        assert found.name == "tiny"

    def test_a_file_finds_what_lies_beside_it_and_in_its_project(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").touch()
        (tmp_path / "beside_the_project.py").write_text("A = 1")
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "beside_the_study.py").write_text("B = 2")
        text = "from beside_the_project import A\nfrom beside_the_study import B\nC = A + B"
        (tmp_path / "deep" / "one.py").write_text(text)
        assert load("deep/one.py:C") == 3

    @pytest.mark.parametrize(
        ("reference", "text", "message"),
        [
            ("none.py", None, "none.py"),
            ("folder/none.py:X", None, "no.*Python file|Python file at"),
            ("no_such_module", None, "ModuleNotFoundError"),
            ("bad.py", "x = (", r"SyntaxError.*bad\.py, line 1"),
            ("bad.py", "\nraise ValueError('boo')", r"ValueError: boo \(.*bad\.py, line 2\)"),
            ("bad.py", "from ww_opt import score\nscore({})", r"ValueError.*\(.*bad\.py, line 2\)"),
            ("bad.py", "import sys; sys.exit(1)", "SystemExit"),
            ("bad.py", "x = 1", "'STUDY'"),
            ("bad.py:OTHER", "x = 1", "'OTHER'"),
            ("bad.py", "STUDY = 3", "gives int"),
            ("bad.txt", "hello", r"ends in \.py"),
            ("./bad.py:x y", "x = 1", "Python file"),
        ],
    )
    def test_what_is_no_study_is_named(self, reference: str, text: str | None, message: str) -> None:
        if text is not None:
            Path(reference.partition(":")[0]).write_text(text)
        with pytest.raises(BadReference, match=message):
            load_study(reference)

    def test_a_name_is_needed_where_there_is_no_default(self) -> None:
        with pytest.raises(BadReference, match=r"tests\.tiny:NAME"):
            load("tests.tiny")


def test_the_distributions_of_a_resumed_study_are_its_own(tmp_path: Path, url: str) -> None:
    """A space that was narrowed meanwhile is searched as it is now."""
    run(quick(n_trials=2), open_study(quick(), url), tmp_path)
    narrow = replace(tiny.SPACE, lr=FloatDistribution(0.05, 0.06, log=True))
    study = quick(n_trials=4, objective=replace(QUICK, space=narrow), changed_space="rescale")
    host = open_study(study, url)
    run(study, host, tmp_path)
    assert all(0.05 <= value <= 0.06 for trial in host.trials[2:] for value in trial.params.values())
