"""What a figure holds is read back from its axes; every figure is drawn, and a warning is an error."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.text import Text
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from torch import nn

from ww_opt.reporting.plots import layers_figure, spectrum_figure, study_figure
from ww_opt.reporting.plots.drawing import Colour, spread
from ww_opt.search import records
from ww_opt.spectral import Diagnosis, Finding, LayerDiagnostics, diagnose

ROOT = Path(__file__).parents[2]
SPACE = {
    "lr/a": FloatDistribution(1e-4, 1.0, log=True),
    "lr/b": FloatDistribution(1e-4, 1.0, log=True),
    "dropout/a": FloatDistribution(0.0, 0.5),
    "kind/a": CategoricalDistribution(["x", "y"]),
}
VALUES = {"lr/a": 0.1, "lr/b": 0.01, "dropout/a": 0.2, "kind/a": "x"}


def layer(name: str, alpha: float, *findings: str) -> records.LayerRecord:
    return records.LayerRecord(
        name=name, N=64, M=32, alpha=alpha, D=0.1, sigma=0.2, n_tail=12, spikes=2, n_eigenvalues=32, traps=0,
        rank_loss=0, stable_rank=7.5, spectral_norm=4.0, findings=findings,
    )  # fmt: skip


def with_looks() -> optuna.Study:
    study = optuna.create_study()
    for number, alphas in enumerate([(5.0, 4.0), (7.0, math.nan), (4.0, 3.0)]):
        trial = study.ask(SPACE)
        for step, alpha in zip((10, 20), alphas, strict=True):
            layers = (layer("a", alpha), layer(r"tiny$\frac$", 1.5, "TOO_SMALL"), layer("unfitted", math.nan))
            records.write_look(trial, records.Look(step, 40, 1.0, 1.0, layers=layers))
        if number == 1:
            records.write(trial, steps=20)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, 5.0 - number)
    return study


def drawn(figure: Figure) -> Figure:
    figure.savefig(io.BytesIO(), dpi=50)
    return figure


def axes_titled(figure: Figure, words: str) -> Axes:
    (found,) = [axes for axes in figure.axes if words in axes.get_title(loc="left")]
    return found


def words_in(axes: Axes | Figure) -> str:
    return " | ".join(text.get_text().replace("\n", " ") for text in axes.findobj(Text))


class TestStudy:
    def test_every_trial_has_its_place(self) -> None:
        study = with_looks()
        study.add_trial(create_trial(state=TrialState.FAIL))
        figure = drawn(study_figure(study))
        assert figure.get_suptitle() == "4 trials, 1 pruned, 1 failed; the pick is trial 2 with score 3"
        line, dots, pick = axes_titled(figure, "Score, lower").lines
        assert np.array_equal(line.get_ydata(), [5.0, 3.0, 3.0])
        assert np.array_equal(dots.get_xydata(), [[0, 5], [2, 3]])
        assert np.array_equal(pick.get_xydata(), [[2, 3]])
        (bars,) = axes_titled(figure, "Training steps").collections
        assert [path.vertices[1].tolist() for path in bars.get_paths()] == [[0, 20], [1, 20], [2, 20]]
        colours = zip(bars.get_colors(), (Colour.BLUE, Colour.GREY, Colour.ORANGE), strict=True)
        assert all(same_color(shown, expected) for shown, expected in colours)

    def test_the_best_so_far_climbs_where_higher_is_better(self) -> None:
        study = optuna.create_study(direction="maximize")
        for value in (1.0, 3.0, 2.0):
            study.add_trial(create_trial(value=value))
        figure = drawn(study_figure(study))
        assert axes_titled(figure, "Score, higher").lines[0].get_ydata().tolist() == [1.0, 3.0, 3.0, 3.0]
        assert "the pick is trial 1 with score 3" in figure.get_suptitle()

    def test_a_curve_for_each_fitted_layer_of_the_pick(self) -> None:
        axes = axes_titled(drawn(study_figure(with_looks())), "Alpha")
        assert [line.get_xydata().tolist() for line in axes.lines] == [[[10, 4], [20, 3]], [[10, 1.5], [20, 1.5]]]
        assert [line.get_linestyle() for line in axes.lines] == ["-", ":"]
        words = words_in(axes)
        assert [text.get_text() for text in axes.texts][:2] == ["a", r"tiny$\frac$"]
        for expected in ("above 6: under-trained", "below 2: heavy tail", "dotted: too small"):
            assert expected in words
        assert "unfitted" not in words

    def test_many_layers_name_the_first_and_the_last(self) -> None:
        study = optuna.create_study()
        trial = study.ask()
        look = records.Look(1, 1, 1.0, 1.0, layers=tuple(layer(f"layer{i}", 3.0 + i) for i in range(40)))
        records.write_look(trial, look)
        study.tell(trial, 1.0)
        axes = axes_titled(drawn(study_figure(study)), "Alpha")
        assert len(axes.lines) == 40
        assert [text.get_text() for text in axes.texts if "layer" in text.get_text()] == ["layer0", "layer39"]

    def test_settings_show_what_was_tried_and_the_pick(self) -> None:
        study = with_looks()
        figure = drawn(study_figure(study))
        lr, dropout = axes_titled(figure, "lr"), axes_titled(figure, "dropout")
        assert not [axes for axes in figure.axes if "kind" in axes.get_title(loc="left")], "no numbers, no axes"
        assert [label.get_text() for label in lr.get_yticklabels()] == ["a", "b"]
        assert (lr.get_xscale(), dropout.get_xscale()) == ("log", "linear")
        assert [line.get_xydata().tolist() for line in lr.lines] == [
            [[study.best_params["lr/a"], 0]],
            [[study.best_params["lr/b"], 1]],
        ]
        dots = [one.get_offsets() for one in lr.collections if len(one.get_offsets()) == 3]
        tried = [[trial.params[name] for trial in study.trials] for name in ("lr/a", "lr/b")]
        assert [sorted(offsets[:, 0]) for offsets in dots] == [pytest.approx(sorted(values)) for values in tried]
        assert all(np.abs(offsets[:, 1] - row).max() < 0.31 for row, offsets in enumerate(dots))

    def test_the_better_the_darker(self) -> None:
        study = optuna.create_study(direction="maximize")
        for value in (3.0, 1.0, 2.0):
            lr = {"lr/a": value / 10}
            study.add_trial(create_trial(value=value, params=lr, distributions={"lr/a": SPACE["lr/a"]}))
        dots = axes_titled(drawn(study_figure(study)), "lr").collections[-1]
        assert dots.get_offsets()[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])
        assert np.all(np.diff(dots.get_facecolors()[:, :3].sum(axis=1)) < 0)

    def test_sentences_stand_where_nothing_completed(self) -> None:
        study = optuna.create_study()
        assert drawn(study_figure(study)).get_suptitle() == "No trial has finished yet"
        study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={3: 1.0}))
        figure = drawn(study_figure(study))
        assert figure.get_suptitle() == "1 trial, 1 pruned; none completed, so there is no pick"
        assert "No trial completed, so there is no pick." in words_in(figure)
        (bars,) = axes_titled(figure, "Training steps").collections
        assert bars.get_paths()[0].vertices[1].tolist() == [0, 3]

    def test_a_study_without_records_says_so(self) -> None:
        study = optuna.create_study()
        study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=2)
        figure = drawn(study_figure(study))
        assert "The pick has no fitted layer on record." in words_in(figure)
        assert len(axes_titled(figure, "x").lines) == 1

    def test_an_infinite_score_is_not_drawn(self) -> None:
        study = optuna.create_study()
        study.add_trial(create_trial(value=math.inf))
        assert "No trial completed with a finite score." in words_in(drawn(study_figure(study)))
        study.add_trial(create_trial(value=1.0))
        assert axes_titled(drawn(study_figure(study)), "Score").lines[1].get_xydata().tolist() == [[1, 1]]

    def test_several_objectives_are_an_error(self) -> None:
        study = optuna.create_study(study_name="two", directions=["minimize", "maximize"])
        with pytest.raises(ValueError, match=r"1 objective, but 'two' has 2: .*pareto"):
            study_figure(study)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """One layer of every sort: rectangular with spikes, square with a trap, convolution, constant, broken, tiny."""
    torch.manual_seed(0)
    parts = {"wide": nn.Linear(64, 200), "trap": nn.Linear(64, 64), "conv": nn.Conv2d(32, 40, 3)}
    parts |= {"shifted": nn.Linear(64, 64), "rich": nn.Linear(96, 128)}
    parts |= {"constant": nn.Linear(40, 40), "zero": nn.Linear(40, 40), "broken": nn.Linear(40, 40)}
    model = nn.Sequential()
    for name, part in {**parts, "tiny": nn.Linear(4, 4)}.items():
        model.add_module(name, part)
    with torch.no_grad():
        parts["wide"].weight += 0.05 * torch.randn(200, 3) @ torch.randn(3, 64)
        parts["trap"].weight[3, 4] = 9.0
        parts["shifted"].weight += 0.1
        parts["rich"].weight += 0.03 * torch.randn(128, 20) @ torch.randn(20, 96)
        parts["constant"].weight.fill_(0.25)
        parts["zero"].weight.zero_()
        parts["broken"].weight[0, 0] = math.nan
    return model


class TestSpectrum:
    @pytest.mark.parametrize("name", ["wide", "trap", "conv", "shifted", "rich"])
    def test_what_lies_beyond_the_edge_are_the_spikes(self, model: nn.Module, name: str) -> None:
        row = next(row for row in diagnose(model) if row.name == name)
        figure = drawn(spectrum_figure(model, name))
        assert f"alpha {row.alpha:.2f}, {row.spikes or 'no'} spike" in figure.get_suptitle()
        axes = figure.axes[0]
        noise, spikes = (patch.get_data() for patch in axes.patches)
        assert noise.edges[-1] == spikes.edges[0] == 1.0
        counts = [
            (own.values * np.diff(own.edges) * row.n_eigenvalues)[own.values > own.baseline * 1.001]
            for own in (noise, spikes)
        ]
        assert counts[1].sum() == pytest.approx(row.spikes)
        hidden = sum(int(word) for word in words_in(axes).partition("not drawn: ")[2].split()[:1])
        assert counts[0].sum() == pytest.approx(row.n_eigenvalues - row.spikes - hidden)

    def test_the_line_is_the_fit_of_the_median_window(self, model: nn.Module) -> None:
        row = next(row for row in diagnose(model) if row.name == "wide")
        axes = drawn(spectrum_figure(model, "wide")).axes[1]
        assert row.n_windows == 4
        (x, y) = axes.lines[-1].get_data()
        assert x.tolist() == [row.xmin, row.xmax]
        assert y[0] == pytest.approx(row.n_tail / 64)
        slope = np.diff(np.log(y))[0] / np.diff(np.log(x))[0]
        assert f"alpha {1 - slope:.2f}: line" in words_in(axes)
        assert f"median of 4 square windows; the layer's alpha is their mean, {row.alpha:.2f}" in words_in(axes)
        assert [line.get_marker() for line in axes.lines].count("o") == 1
        assert len(axes.lines) == 5

    def test_a_square_layer_has_one_fit(self, model: nn.Module) -> None:
        axes = drawn(spectrum_figure(model, "trap")).axes[1]
        assert len(axes.lines) == 2
        assert "windows" not in words_in(axes)

    def test_traps_are_told(self, model: nn.Module) -> None:
        figure = drawn(spectrum_figure(model.state_dict(), "trap"))
        assert figure.get_suptitle().endswith("1 trap")
        assert "1 trap: entries of up to" in words_in(figure.axes[0])

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("constant", ["All entries are equal", "not fitted: fewer than 8"]),
            ("zero", ["not fitted: the matrix is zero"]),
            ("broken", ["not analysed: the weights contain NaN or infinity"]),
            ("tiny", ["not fitted: fewer than 8 non-zero eigenvalues"]),
        ],
    )
    def test_a_status_stands_where_no_fit_is(self, model: nn.Module, name: str, words: list[str]) -> None:
        shown = words_in(drawn(spectrum_figure(model, name)))
        assert all(word in shown for word in words)

    def test_an_unknown_layer_is_told_the_names(self, model: nn.Module) -> None:
        with pytest.raises(ValueError, match=r"got 'fc1'; its layers: \['wide', 'trap', 'conv', .*'tiny'\]"):
            spectrum_figure(model, "fc1")


class TestLayers:
    def test_every_layer_has_a_row(self, model: nn.Module) -> None:
        diagnosis = diagnose(model)
        alphas, distances, shares = drawn(layers_figure(diagnosis)).axes
        fitted = [(row.alpha, place) for place, row in enumerate(diagnosis) if not math.isnan(row.alpha)]
        assert [tuple(line.get_xydata()[0]) for line in alphas.lines] == fitted
        assert [float(line.get_xdata()[0]) for line in distances.lines] == [
            row.D for row in diagnosis if math.isfinite(row.D)
        ]
        low, high = alphas.collections[0].get_segments()[0][:, 0]
        assert (low, high) == pytest.approx(
            (fitted[0][0] - diagnosis.rows[0].sigma, fitted[0][0] + diagnosis.rows[0].sigma)
        )
        assert [label.get_text().split()[0] for label in alphas.get_yticklabels()] == [row.name for row in diagnosis]
        for words in ("heavy tail or over-trained", "under-trained", "not fitted: the matrix is zero"):
            assert words in words_in(alphas)
        assert [bar.get_width() for bar in shares.patches] == [
            row.spikes / max(row.n_eigenvalues, 1) for row in diagnosis
        ]
        assert "too small" in shares.get_yticklabels()[-1].get_text()
        assert [text.get_text() for text in shares.texts][:2] == [f"{row.spikes} of 64" for row in diagnosis.rows[:2]]

    @pytest.mark.parametrize(
        ("findings", "marker"),
        [
            ((Finding.NO_FAULT,), "o"),
            ((Finding.UNDER_TRAINED,), "^"),
            ((Finding.OVER_TRAINED, Finding.TRAP), "P"),
            ((Finding.MOVED_LITTLE, Finding.TRAP, Finding.RANK_COLLAPSE), "X"),
        ],
    )
    def test_the_gravest_finding_marks_a_layer(self, findings: tuple[Finding, ...], marker: str) -> None:
        row = LayerDiagnostics("fc", "linear", "fc.weight", N=64, M=64, alpha=3.0, sigma=0.2, findings=findings)
        figure = drawn(layers_figure(Diagnosis((row,))))
        (line,) = figure.axes[0].lines
        assert line.get_marker() == marker
        words = [finding.label for finding in findings]
        assert [label.get_text() for label in figure.axes[2].get_yticklabels()] == [", ".join(words)]
        assert figure.get_suptitle() == "1 layer: " + ", ".join(f"1 {word}" for word in words)

    def test_weightwatchers_convention_counts_no_spikes(self, model: nn.Module) -> None:
        shares = drawn(layers_figure(diagnose(model, convention="weightwatcher"))).axes[2]
        assert len(shares.patches) == 0
        assert "not counted in this convention" in shares.get_title(loc="left")

    def test_a_diagnosis_without_rows_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="at least 1 layer, but the diagnosis has 0 rows"):
            layers_figure(Diagnosis(()))


@pytest.mark.parametrize("places", [[0.5, 0.5, 0.5], [0.9, 0.1, 0.12], [0.3], [0.0, 0.2, 0.4]])
def test_labels_keep_their_distance_and_their_order(places: list[float]) -> None:
    moved = spread(np.array(places), 0.1)
    assert np.diff(np.sort(moved)).min(initial=1.0) >= 0.1 - 1e-12
    assert np.argsort(moved).tolist() == np.argsort(places, kind="stable").tolist()
    assert moved.mean() == pytest.approx(np.mean(places)), "as little as needed"


def test_drawing_neither_loads_pyplot_nor_changes_settings() -> None:
    code = """
import io, sys
import matplotlib, optuna
before = matplotlib.rcParams.copy()  # asking for the backend would load pyplot
from torch import nn
from ww_opt.reporting import plots
from ww_opt.spectral import diagnose
model = nn.Linear(40, 40)
for figure in (plots.study_figure(optuna.create_study()), plots.layers_figure(diagnose(model)),
               plots.spectrum_figure({"fc.weight": model.weight.detach()}, "fc")):
    figure.savefig(io.BytesIO())
print("matplotlib.pyplot" in sys.modules)
print(matplotlib.rcParams.copy() == before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_the_figure_knows_the_infeasible_and_the_interrupted() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=2.0))
    study.add_trial(create_trial(value=1.0, constraints={"x": 1.0}))
    attrs = {"ww_opt:reason": "interrupted by the user"}
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attrs))
    figure = drawn(study_figure(study))
    assert figure.get_suptitle() == "3 trials, 0 pruned, 1 interrupted; the pick is trial 0 with score 2"
    line = next(line for axes in figure.axes for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert min(line.get_ydata()) == 2.0, "the best so far is feasible"
