"""The judge is right on data made by hand, a generation resumes, an ensemble trains as `train` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from benchmarks.evidence import free, kept
from benchmarks.evidence import generate as generation
from benchmarks.evidence.ensemble import Ensemble
from benchmarks.evidence.generate import Settings, generate, units
from benchmarks.evidence.judge import Study, agreement, figures, left_out, rules, splits, studies
from benchmarks.evidence.rivals import (
    each,
    head_gradient,
    late_minimum,
    least_changes,
    quickshift,
    scaled_head_gradient,
    twin_by_regime,
    twin_by_threshold,
)
from benchmarks.evidence.seen import FREE, HeldOut, Seen, Trial, trials
from benchmarks.evidence.statistics import lost, partial_spearman, spearman
from benchmarks.evidence.tables import report
from benchmarks.evidence.tasks import CASES, configurations
from ww_opt.spectral import diagnose
from ww_opt.training.layerwise import LayerSettings, labelled, parameter_groups
from ww_opt.training.run import train
from ww_opt.training.task import Task

TINY = replace(CASES[0], name="tiny", options={"n_train": 60, "batch_size": 20, "width": 32}, n_steps=20, together=2)


class TestStatistics:
    def test_spearman_is_of_ranks_and_puts_nan_last(self) -> None:
        assert spearman(np.array([1.0, 10.0, 100.0, 1000.0]), np.arange(4.0)) == pytest.approx(1.0)
        assert spearman(np.array([np.nan, 1.0, 2.0, 3.0]), np.arange(4.0)) == pytest.approx(1.0)
        assert spearman(np.ones(4), np.arange(4.0)) == 0.0
        assert spearman(np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(-0.5)

    def test_partial_takes_the_covariate_out(self) -> None:
        generator = np.random.default_rng(0)
        setting, own = generator.normal(size=(2, 400))
        follows = setting + 0.1 * generator.normal(size=400)
        score, truth = setting + own, setting + own + 0.5 * generator.normal(size=400)
        assert spearman(follows, truth) > 0.5
        assert abs(partial_spearman(follows, truth, setting[None])) < 0.15
        assert partial_spearman(setting, truth, setting[None]) == 0.0
        assert partial_spearman(score, truth, setting[None]) > 0.8

    def test_lost_is_what_the_pick_lacks(self) -> None:
        truth = np.array([0.5, 0.9, 0.7])
        assert lost(np.array([0.0, 1.0, 2.0]), truth) == pytest.approx(0.2)
        assert lost(np.array([0.0, 1.0, np.nan]), truth) == pytest.approx(0.0)
        assert lost(np.array([0.0, 1.0, 1.0]), truth) == pytest.approx(0.1)  # a tie is shared


def seen(x: float, *, held_out: dict[int, HeldOut] | None = None, norm: float = 1.0, loss: float = 1.0) -> Seen:
    curve = np.array([[0.0, 2.0, np.nan], [10.0, loss, loss]])
    return Seen(100, 10.0, {"lr/a": abs(x) + 1.0}, curve, {100: {"norm": norm}}, held_out or {})


def study(name: str, truth: Sequence[float], score: Sequence[float]) -> Study:
    runs = [
        Trial(number, "base", 0, dict.fromkeys((50, 100), seen(x)), dict.fromkeys((50, 100), accuracy))
        for number, (x, accuracy) in enumerate(zip(score, truth, strict=True))
    ]
    return Study(replace(CASES[0], name=name), runs)


by_setting = each(lambda run: run.parameters["lr/a"])


class TestJudge:
    def test_figures_start_with_the_figure_itself(self) -> None:
        own = figures(study("a", np.arange(20) / 20, range(20)), by_setting, n_bootstraps=50)
        assert own.end.shape == (51,)
        assert own.end[0] == pytest.approx(1.0)
        assert own.lost[0] == pytest.approx(0.0)
        worst = figures(study("a", np.arange(20) / 20, range(20)), each(lambda run: -run.parameters["lr/a"]), 50)
        assert worst.lost[0] == pytest.approx(95.0)

    def test_left_out_chooses_on_the_other_tasks(self) -> None:
        up = list(range(20))
        of = [study("up", up, up), study("down", up[::-1], up)]
        found = left_out({"plus": by_setting, "minus": each(lambda run: -run.parameters["lr/a"])}, of)
        assert [(own.case, own.setting) for own in found] == [("up", "minus"), ("down", "plus")]
        assert [own.figures.end[0] for own in found] == pytest.approx([-1.0, -1.0])

    def test_more_validation_examples_pick_better(self) -> None:
        generator = np.random.default_rng(0)
        truth = np.linspace(0.3, 0.9, 20)
        base = study("a", truth, truth)
        runs = []
        for trial, accuracy in zip(base.trials, truth, strict=True):
            right = (generator.random(400) < accuracy).astype(float)
            run = seen(0.0, held_out={100: HeldOut(np.ones(400), right, right, right)})
            runs.append(replace(trial, kind="holdout", seen={100: run}))
        few, many = splits(base, Study(base.case, runs), (5, 200))
        assert few.end < many.end
        assert many.end > 0.9
        assert few.lost > many.lost

    def test_agreement_is_over_pairs(self) -> None:
        assert agreement([np.arange(5.0), np.arange(5.0), -np.arange(5.0)]) == pytest.approx(-1 / 3)


class TestTwin:
    def test_segments_follow_density(self) -> None:
        points = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]])
        labels = quickshift(points, kernel=0.5, max_distance=1.0)
        assert len(set(labels[:3])) == len(set(labels[3:])) == 1
        assert labels[0] != labels[3]

    def test_smallest_norm_wins_in_the_low_loss_class(self) -> None:
        runs = [seen(0, norm=3, loss=0.1), seen(0, norm=2, loss=0.12), seen(0, norm=1, loss=1.0), seen(0, loss=1.1)]
        assert list(twin_by_threshold(runs).argsort()) == [3, 2, 0, 1]

    def test_smallest_norm_wins_where_the_data_are_separated(self) -> None:
        runs = [seen(0, norm=3, loss=0.001), seen(0, norm=2, loss=0.002), seen(0, norm=1, loss=1.0)]
        assert twin_by_regime(runs).argmax() == 1
        unseparated = [seen(0, norm=1, loss=0.5), seen(0, norm=9, loss=0.4)]
        assert twin_by_regime(unseparated).argmax() == 1


class TestFreeRivals:
    def probed(self, *changed: float, gradient: float = 0.1, weight: float = 2.0) -> Seen:
        probes = np.array([[np.nan, 1.0, 1.0], *([own, gradient, weight] for own in changed)])
        return replace(seen(0.0), probes=probes)

    def test_label_wave_stops_at_the_first_minimum_of_the_moving_average(self) -> None:
        # moving averages over three: .5, .3, .2, .3, .2
        run = self.probed(0.8, 0.5, 0.2, 0.2, 0.2, 0.5, -0.1)
        assert least_changes(run) == pytest.approx(-0.2)
        assert late_minimum(run) == pytest.approx(2 / 5)
        assert late_minimum(self.probed(0.5, 0.4, 0.3, 0.2)) == pytest.approx(1 / 2), "at the end where it only falls"

    def test_a_small_gradient_of_the_head_is_good(self) -> None:
        small, large = (self.probed(0.1, gradient=own) for own in (0.01, 1.0))
        assert head_gradient(small) > head_gradient(large)
        assert scaled_head_gradient(small) == pytest.approx(-np.log(0.01 / 2.0))

    def test_without_probes_nothing_is_known(self) -> None:
        for rule in (least_changes, late_minimum, head_gradient, scaled_head_gradient):
            assert np.isnan(rule(seen(0.0)))

    def test_what_is_kept_of_a_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(free, "CASES", (TINY,))
        monkeypatch.setattr(free, "N_CONFIGURATIONS", 2)
        kept.append(FREE, free.probed(TINY, [0]), tmp_path)
        assert list(free.generate(tmp_path)) == ["tiny: 1 runs"]
        first, second = kept.read(FREE, tmp_path)
        assert [first["configuration"], second["configuration"]] == [0, 1]
        assert [look[0] for look in first["looks"]] == list(range(21))
        assert first["looks"][0][1] is None
        assert all(0 <= look[1] <= 1 and look[2] > 0 and look[3] > 0 for look in first["looks"][1:])
        monkeypatch.setattr(generation, "CASES", (TINY,))
        list(generate(Settings(("tiny",), n=2, n_reseeded=0, folder=tmp_path)))
        run = trials("tiny", "base", 10.0, tmp_path)[0]
        assert run.seen[100].probes.shape == (21, 3)
        assert run.seen[50].probes.shape == (11, 3)


class _Net(nn.Module):
    """Convolution and batch norm, and no dropout, whose random numbers an ensemble draws otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            1, 8, 3, padding=1, bias=False
        )  # Adam makes much of a gradient that is 0 but for rounding
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.norm(self.conv(x[:, None])).relu().mean(-1))
        return out


@pytest.mark.parametrize("optimizer", [partial(SGD, momentum=0.9, fused=True), partial(AdamW, fused=True)])
def test_an_ensemble_trains_as_one_model_does(optimizer: partial[Optimizer]) -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(x[index], y[index]) for index in torch.split(torch.randperm(40), 8)]

    task = Task(_Net, batches, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), optimizer)
    settings = [{name: LayerSettings(lr=lr, weight_decay=0.1) for name in labelled(_Net())} for lr in (0.01, 0.05)]
    together = Ensemble(task, settings, seed=3)
    looks = list(together.train(20, 10))
    for k, own in enumerate(settings):
        torch.manual_seed(3)
        model = task.build_model()
        alone = list(train(model, task, parameter_groups(model, own), n_steps=20, interval_steps=10))
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(together.state(k)[name], tensor, atol=2e-4, rtol=1e-3)
        for look, checkpoint in zip(looks[1:], alone, strict=True):
            assert float(look.train_loss[k]) == pytest.approx(checkpoint.train_loss, rel=1e-3)
            assert float(look.running_loss[k]) == pytest.approx(checkpoint.running_loss, rel=1e-3)


def test_a_generation_resumes_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "CASES", (TINY,))
    settings = Settings(("tiny",), n=2, n_reseeded=1, folder=tmp_path, weights=tmp_path / "weights")
    run = generate(settings)
    next(run)  # interrupted after the first unit
    run.close()
    with (tmp_path / "tiny.jsonl").open("a") as file:
        file.write('{"torn')
    assert {unit.kind for unit in units(settings)} == {"holdout", "late", "seed"}
    list(generate(settings))
    kept.pack("tiny", tmp_path)
    assert [path.name for path in tmp_path.glob("tiny*")] == ["tiny.jsonl.gz"]
    assert list(units(settings)) == []
    records = kept.read("tiny", tmp_path)
    assert len(records) == 2 + 2 + 2 + 2
    base, late = records[0], next(record for record in records if record["kind"] == "late")
    assert list(base["states"]) == ["25", "50", "100"]
    assert list(late["held_out"]) == ["50", "75", "90"]
    assert len(late["held_out"]["50"]["right"]) == 3  # 5 % of 60
    state = torch.load(tmp_path / "weights/tiny/0-0-100.pt", weights_only=True)
    model = TINY.task().build_model()
    model.load_state_dict(state)
    again = kept.diagnosis(base["states"]["100"]["rows"])
    assert [row.spikes for row in again] == [row.spikes for row in diagnose(model)]
    assert [row.findings for row in again] == [row.findings for row in diagnose(model)]


def test_every_rule_judges_runs_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "CASES", (replace(TINY, together=10),))
    list(generate(Settings(("tiny",), n=10, n_reseeded=10, folder=tmp_path)))
    (found,) = studies("base", tmp_path, [TINY])
    assert len(found.trials) == 10
    for name, rule in rules().items():
        assert rule(found.seen(100)).shape == (10,), name
    tables = report(tmp_path, [TINY])
    titles = [line.split(":")[0] for line in tables.splitlines() if line.startswith("###")]
    assert titles == [
        "### Tasks",
        "### Base runs",
        "### Per task",
        "### Late-entry runs",
        "### Per task",
        "### What late entry costs",
        "### Validation splits",
        "### Seed noise",
    ]
    assert "nan" not in tables
    assert "No task" in report(tmp_path, [])


def test_configurations_do_not_depend_on_how_many_are_drawn() -> None:
    assert configurations(TINY, 3) == configurations(TINY, 5)[:3]
