"""A fresh study tries the best settings of an earlier one early, once, and says so; what cannot be is named."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from torch import nn

from tests import tiny
from ww_opt import Study, carried_over
from ww_opt.search import records
from ww_opt.search.starting import PRESENT, carried_of
from ww_opt.study.storages import StorageError
from ww_opt.study.study import open_study, run


def deeper() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 48), nn.ReLU(), *(nn.Linear(48, 48) for _ in range(3)), nn.Linear(48, 3))


TASK = replace(tiny.TASK, optimizer=partial(torch.optim.AdamW, lr=0.003))
EARLIER = replace(
    tiny.STUDY, name="earlier", objective=replace(tiny.OBJECTIVE, task=TASK, n_steps=2, interval_steps=2), n_repeats=0
)
STUDY = replace(
    EARLIER,
    name="later",
    objective=replace(EARLIER.objective, task=replace(TASK, build_model=deeper)),
    n_trials=5,
    start=True,
    carry_over="earlier",
)
NAMES = ["lr/0", "lr/2", "lr/3", "lr/4", "lr/5"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{(tmp_path / 'studies.db').as_posix()}"


@pytest.fixture
def earlier(url: str, tmp_path: Path) -> optuna.Study:
    host = open_study(EARLIER, url)
    run(EARLIER, host, tmp_path / "earlier")
    return host


def origins(host: optuna.Study) -> list[str | None]:
    return [records.read(trial, "origin") for trial in host.trials]


def test_nothing_is_carried_over_unless_asked() -> None:
    assert Study(name="s", objective=EARLIER.objective).carry_over is None


@pytest.mark.parametrize("start", [True, False])
def test_settings_come_after_the_start_and_before_the_search(
    start: bool, url: str, tmp_path: Path, earlier: optuna.Study
) -> None:
    study = replace(STUDY, start=start)
    host = open_study(study, url)
    assert not host.trials, "to open is not to begin"
    run(study, host, tmp_path / "later")
    expected = carried_over(earlier, study.objective.space.parameters(deeper()))
    assert len(expected) == 3
    assert [trial.params for trial in host.trials[start : start + 3]] == expected
    assert list(host.trials[0].params) == NAMES
    source = "carried over from study 'earlier'"
    assert origins(host) == [*([PRESENT] if start else []), source, source, source, *([] if start else [None]), None]


def test_it_is_done_once_however_often_the_study_goes_on(url: str, tmp_path: Path, earlier: optuna.Study) -> None:
    for n_trials in (1, 3, 6):
        study = replace(STUDY, n_trials=n_trials)
        run(study, open_study(study, url), tmp_path / "later")
    host = open_study(STUDY, url)
    assert [own is not None for own in origins(host)] == [True, True, True, True, False, False]
    assert all(trial.state is not TrialState.WAITING for trial in host.trials)


def test_it_goes_on_when_the_earlier_one_is_gone(
    url: str, tmp_path: Path, earlier: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    run(replace(STUDY, n_trials=1), open_study(STUDY, url), tmp_path / "later")
    optuna.delete_study(study_name="earlier", storage=url)
    run(replace(STUDY, n_trials=2), open_study(STUDY, url), tmp_path / "later")
    assert "Nothing is carried over" not in caplog.text


def test_a_study_that_has_begun_takes_nothing_over_and_says_so(
    url: str, tmp_path: Path, earlier: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    plain = replace(STUDY, carry_over=None, n_trials=1)
    run(plain, open_study(plain, url), tmp_path / "later")
    host = open_study(STUDY, url)
    assert "Nothing is carried over from study 'earlier': study 'later' has trials already" in caplog.text
    run(replace(STUDY, n_trials=2), host, tmp_path / "later")
    assert origins(host) == [PRESENT, None]


def test_who_changes_his_mind_before_the_first_trial_is_heard(url: str, tmp_path: Path, earlier: optuna.Study) -> None:
    open_study(STUDY, url)
    host = open_study(replace(STUDY, carry_over=None), url)
    assert carried_of(host) is None


def test_other_storages_and_a_study_itself(url: str, tmp_path: Path, earlier: optuna.Study) -> None:
    journal = f"{tmp_path / 'copy.journal'}"
    optuna.copy_study(
        from_study_name="earlier",
        from_storage=url,
        to_storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal)),
        to_study_name="earlier",
    )
    for source, where in (
        (f"earlier@{url}", f" in '{url}'"),
        (f"earlier@{journal}", f" in '{journal}'"),
        (earlier, f" in '{url}'"),
    ):
        host = open_study(replace(STUDY, carry_over=source))
        found = carried_of(host)
        assert found is not None
        assert len(found.settings) == 3
        assert found.source == f"study 'earlier'{where}"
        assert found.told.startswith(
            f"Carried over from {found.source}: the settings of 3 of its best trials, tried after"
        )


def test_what_was_not_searched_is_the_samplers_and_told(url: str, tmp_path: Path, earlier: optuna.Study) -> None:
    space = replace(tiny.SPACE, weight_decay=FloatDistribution(1e-6, 1e-2, log=True))
    study = replace(STUDY, objective=replace(STUDY.objective, space=space), start=False, n_trials=2)
    host = open_study(study, url)
    found = carried_of(host)
    assert found is not None
    assert found.told.endswith("tried first. It did not search weight_decay: that is left to the sampler.")
    run(study, host, tmp_path / "later")
    assert len(host.trials[0].params) == 2 * len(NAMES)
    assert origins(host)[:2] == [f"carried over from {found.source}"] * 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("source", "words"),
        [
            (
                "earlyer",
                r"must name a study that is there, but got 'earlyer', and the storage of this study has 'earlier'",
            ),
            ("earlier@sqlite:///no/such.db", r"but got 'sqlite:///no/such\.db', and there is no no/such\.db"),
            ("earlier@no_such.journal", r"but got 'no_such\.journal', and there is no no_such\.journal"),
            ("earlier@studies.db", r"write sqlite:///studies\.db"),
            ("later", r"must name another study, but got 'later', which is this one"),
        ],
    )
    def test_what_is_not_there_or_itself_is_named(
        self, source: str, words: str, url: str, earlier: optuna.Study, tmp_path: Path
    ) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=words):
            open_study(replace(STUDY, carry_over=source), url)
        assert sorted(tmp_path.rglob("*")) == before, "no storage is made"

    def test_itself_by_another_way_to_its_storage(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_study(STUDY := replace(EARLIER, name="later"), url)
        monkeypatch.chdir(tmp_path)
        for source in ("later@sqlite:///studies.db", optuna.load_study(study_name="later", storage=url)):
            with pytest.raises(ValueError, match="must name another study"):
                open_study(replace(STUDY, carry_over=source), url)

    def test_itself_when_it_goes_on(self, url: str, earlier: optuna.Study) -> None:
        with pytest.raises(ValueError, match="leave it out to go on with it"):
            open_study(replace(EARLIER, carry_over="earlier"), url)

    def test_nothing_to_carry(self, url: str, tmp_path: Path) -> None:
        open_study(EARLIER, url)
        with pytest.raises(ValueError, match=r"must have a completed trial to start from, but 'earlier' has none"):
            open_study(STUDY, url)

    def test_no_study_at_all_and_the_remedy_works(self, tmp_path: Path, url: str, earlier: optuna.Study) -> None:
        with pytest.raises(ValueError, match=r"has none: .* NAME@sqlite:///path/to/studies\.db"):
            open_study(STUDY)
        assert carried_of(open_study(replace(STUDY, carry_over=f"earlier@{url}"))) is not None

    def test_a_password_is_not_shown(self) -> None:
        with pytest.raises(StorageError, match=r"`carry_over` \(--from\).*//\*\*\*@") as told:
            open_study(replace(STUDY, carry_over="earlier@nosuchdb://me:secret@host/x"))
        assert "secret" not in str(told.value)

    @pytest.mark.parametrize("source", [3, True, ["earlier"]])
    def test_other_types(self, source: Any) -> None:
        with pytest.raises(TypeError, match=r"Study\.carry_over must be a name, a study or None"):
            replace(STUDY, carry_over=source)
