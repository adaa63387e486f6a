"""A fresh study begins with what is trained today, once, and says so in that trial's record."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.samplers import GridSampler
from optuna.trial import TrialState
from torch import Tensor, nn

from tests import tiny
from ww_opt import Study
from ww_opt.search import records
from ww_opt.search.starting import GIVEN, PRESENT
from ww_opt.study.study import open_study, run

NAMES = ["lr/0", "lr/2", "lr/4"]
TASK = replace(tiny.TASK, optimizer=partial(torch.optim.AdamW, lr=0.003))
QUICK = replace(tiny.OBJECTIVE, task=TASK, n_steps=2, interval_steps=2)
STUDY = replace(tiny.STUDY, objective=QUICK, n_trials=2, start=True)


def origins(host: optuna.Study) -> list[str | None]:
    return [records.read(trial, "origin") for trial in host.trials]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{(tmp_path / 'studies.db').as_posix()}"


def test_it_is_so_unless_told_otherwise() -> None:
    assert Study(name="s", objective=QUICK).start is True


def test_the_first_trial_is_the_present_configuration_and_the_next_is_not(tmp_path: Path, url: str) -> None:
    host = open_study(STUDY, url)
    assert not host.trials, "to open is not to begin"
    run(STUDY, host, tmp_path)
    assert host.trials[0].params == dict.fromkeys(NAMES, 0.003)
    assert host.trials[1].params != host.trials[0].params
    assert origins(host) == [PRESENT, None]


def test_it_is_tried_once_however_often_the_study_goes_on(tmp_path: Path, url: str) -> None:
    for n_trials in (1, 1, 3):
        study = replace(STUDY, n_trials=n_trials)
        run(study, open_study(study, url), tmp_path)
    assert origins(open_study(STUDY, url)) == [PRESENT, None, None]


def test_two_that_open_at_once_try_it_once(tmp_path: Path, url: str) -> None:
    hosts = [open_study(STUDY, url, worker=worker) for worker in (0, 1)]
    for host in hosts:
        run(STUDY, host, tmp_path)
    assert origins(hosts[0]) == [PRESENT, None]


def test_trials_that_are_there_come_first_and_alone(tmp_path: Path) -> None:
    host = open_study(replace(STUDY, n_trials=1))
    host.enqueue_trial({"lr/0": 0.02})
    run(STUDY, host, tmp_path)
    assert host.trials[0].params["lr/0"] == 0.02
    assert origins(host) == [None, None]


def test_a_trial_that_was_interrupted_is_done_again_with_its_origin(tmp_path: Path) -> None:
    n_calls = 0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return tiny.loss(model, batch)

    study = replace(STUDY, objective=replace(QUICK, task=replace(TASK, loss=loss)))
    host = open_study(study)
    with pytest.raises(KeyboardInterrupt):
        run(study, host, tmp_path)
    assert host.trials[0].state is TrialState.FAIL
    run(study, host, tmp_path)
    assert origins(host) == [PRESENT, PRESENT, None]


@pytest.mark.parametrize("start", [{"lr/2": 0.05}, dict.fromkeys(NAMES, 0.05)])
def test_a_start_of_ones_own(tmp_path: Path, start: Mapping[str, float]) -> None:
    study = replace(STUDY, start=start)
    host = open_study(study)
    run(study, host, tmp_path)
    assert start.items() <= host.trials[0].params.items()
    assert set(host.trials[0].params) == set(NAMES)
    assert origins(host) == [GIVEN, None]


@pytest.mark.parametrize(
    ("start", "words"),
    [({"lr/9": 0.05}, r"`start` may only name.*'lr/9'.*lr/0"), ({"lr/0": 5.0}, r"lr/0 in 0\.001 to 0\.1 .*got 5\.0")],
)
def test_a_start_outside_the_space_is_named_before_anything_runs(start: Mapping[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_study(replace(STUDY, start=start))


@pytest.mark.parametrize("start", ["present", 1, None, ["lr/0"]])
def test_what_is_no_start_is_named(start: Any) -> None:
    with pytest.raises(TypeError, match=r"Study\.start must be True, False or a mapping"):
        replace(STUDY, start=start)


def test_none_where_it_is_switched_off(tmp_path: Path) -> None:
    study = replace(STUDY, start=False)
    host = open_study(study)
    run(study, host, tmp_path)
    assert origins(host) == [None, None]
    assert host.trials[0].params["lr/0"] != 0.003


def test_a_rate_outside_the_bounds_is_taken_at_the_nearest_and_told(caplog: pytest.LogCaptureFixture) -> None:
    task = replace(TASK, optimizer=partial(torch.optim.SGD, lr=3.0))
    host = open_study(replace(STUDY, objective=replace(QUICK, task=task)))
    assert host.user_attrs["ww_opt:start"]["params"] == dict.fromkeys(NAMES, 0.1)
    assert "lr of 3 labels is 3 and was taken as 0.1" in caplog.text


def test_a_present_configuration_that_cannot_be_told_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def uneven(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        own = [{**group, "lr": group.get("lr", 0.1 / number)} for number, group in enumerate(groups, 1)]
        return torch.optim.SGD(own)

    space = replace(tiny.SPACE, label=lambda name: "one" if name in ("0", "2") else "other")
    split = partial(_splitting, uneven)
    objective = replace(QUICK, space=space, task=replace(TASK, optimizer=split))
    study = replace(STUDY, objective=objective)
    host = open_study(study)
    assert "The present configuration is not tried first" in caplog.text
    assert "must share `lr`" in caplog.text
    run(study, host, tmp_path)
    assert origins(host) == [None, None]


def _splitting(build: Callable[..., torch.optim.Optimizer], groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """A factory that gives each parameter a group of its own."""
    return build([{**group, "params": [own]} for group in groups for own in group["params"]])


@pytest.mark.parametrize("what", ["build_model", "optimizer"])
def test_a_fault_of_the_users_code_is_told_by_the_first_trial(tmp_path: Path, what: str) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("mine")

    study = replace(STUDY, objective=replace(QUICK, task=replace(TASK, **{what: broken})))
    host = open_study(study)
    with pytest.raises(KeyError, match="mine"):
        run(study, host, tmp_path)
    assert records.reason(host.trials[0]) == "KeyError: 'mine'"


def test_a_grid_is_done_beside_it(tmp_path: Path) -> None:
    grid = {"lr/0": [0.01, 0.02], "lr/2": [0.01], "lr/4": [0.01]}
    study = replace(STUDY, n_trials=9, sampler=lambda seed: GridSampler(grid, seed=seed))
    host = open_study(study)
    run(study, host, tmp_path)
    assert origins(host)[0] == PRESENT
    assert {0.01, 0.02} <= {trial.params["lr/0"] for trial in host.trials}


def test_a_search_of_optunas_own_begins_with_it_as_well() -> None:
    model = tiny.build_model()
    space = replace(tiny.SPACE, weight_decay=FloatDistribution(1e-3, 1.0, log=True))
    study = optuna.create_study(direction=QUICK.direction)
    study.enqueue_trial(space.present(model, TASK.optimizer))
    study.optimize(replace(QUICK, space=space), n_trials=1)
    assert study.trials[0].params == {
        f"{kind}/{n}": v for n in "024" for kind, v in (("lr", 0.003), ("weight_decay", 0.01))
    }
