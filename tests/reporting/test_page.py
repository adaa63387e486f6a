"""The report of a study: what it says, and that nothing a user named breaks it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from matplotlib.figure import Figure
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from tests import tiny
from tests.reporting.synthetic import ODD, layer, pruned, recorded, repeated, searched
from ww_opt.reporting.page import Report, gather, report_of
from ww_opt.reporting.page.drawings import shortened
from ww_opt.reporting.page.html import page
from ww_opt.reporting.page.section import Drawing, Section
from ww_opt.reporting.page.svg import inline_svg
from ww_opt.study.closing import TestAccuracy, closing
from ww_opt.study.opened import recalled, remember
from ww_opt.study.study import open_study, run
from ww_opt.study.weights_folder import weights_file

X = {"x": FloatDistribution(0.0, 100.0)}
SECRET = "postgresql://me:se/cr@et@host/db?password=hunter2"


class Page(HTMLParser):
    """What a browser makes of a page: elements, ids, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.data = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags[tag] += 1
        self.ids += [str(own["id"])] if "id" in own else []
        self.links += [str(own[name]) for name in ("href", "src", "action") if name in own]
        self._inside = "data" if own.get("id") == "data" else tag

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data
        elif self._inside not in ("style", "script"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def report(host: optuna.Study, **options: Any) -> Report:
    return report_of(gather(host, **options))


def values_study(*values: float, **options: Any) -> optuna.Study:
    study = optuna.create_study(**options)
    for number, value in enumerate(values):
        study.add_trial(create_trial(value=value, params={"x": number / 10}, distributions=X))
    return study


def failed(n: int) -> optuna.Study:
    study = optuna.create_study()
    attrs = {"ww_opt:reason": f"OSError: <b>no</b> {SECRET}"}
    for _ in range(n):
        study.add_trial(create_trial(state=TrialState.FAIL, params={"x": 0.5}, distributions=X, user_attrs=attrs))
    return study


def running() -> optuna.Study:
    study = searched(12)
    study.ask()
    study.enqueue_trial({"lr/conv": 0.1})
    return study


class TestAnswer:
    def test_the_gain_over_what_one_came_with_is_of_the_repeats(self) -> None:
        own = report(repeated({"start": (2.0, 2.2, 1.8, 2.1), "better": (1.0, 1.1, 0.9, 1.2)}))
        (row,) = own["gain"].frame.to_dict("records")
        assert own["pick"].title == "The pick: trial 1"
        assert row["over"] == "what you came with (trial 0)"
        assert (row["pick"], row["other"]) == (pytest.approx(1.05), pytest.approx(2.025))
        assert row["gained"] == pytest.approx(0.975)
        assert row["source"].startswith("means of 4 trainings each")
        # two-way residuals are +-(0, .05, -.05, ...)/2: freedom 3
        assert 0 < row["high"] - row["gained"] == pytest.approx(row["gained"] - row["low"])
        assert row["low"] > 0.8

    def test_without_repeats_the_gain_is_said_to_flatter(self) -> None:
        own = report(repeated({"start": (2.0,), "better": (1.0,)}))
        (row,) = own["gain"].frame.to_dict("records")
        assert row["gained"] == 1.0
        assert math.isnan(row["low"])
        assert "flatters" in row["source"]

    def test_settings_stand_beside_those_that_one_came_with(self) -> None:
        frame = report(repeated({"start": (2.0,), "better": (1.0,)}))["pick"].frame
        assert frame.to_dict("list") == {"layer": ["a", "b"], "lr": [0.5, 0.25], "lr_before": [0.1, 0.1]}

    def test_who_should_keep_what_they_have_is_told_so(self) -> None:
        own = report(repeated({"start": (1.0,), "better": (2.0,)}))
        assert own["pick"].title == "Keep the settings you came with: trial 0"
        assert own["gain"].frame.empty
        assert "What you came with is the pick" in own["gain"].sentences[0]

    def test_the_sealed_test_set_is_told_of_the_pick_it_was_opened_for(self) -> None:
        study = repeated({"start": (2.0,), "better": (1.0,)})
        accuracy = TestAccuracy(0.81, math.nan, 1, math.nan, 1, start=0.46, start_number=0)
        remember(study, study.best_trial, accuracy)
        assert recalled(study, study.trials[0]) is None
        own = report(study)
        row = own["gain"].frame.to_dict("records")[-1]
        assert (row["pick"], row["other"], row["gained"]) == (0.81, 0.46, pytest.approx(0.35))
        assert "gives the pick accuracy 81.0%" in own["gain"].sentences[-1]
        assert "81.0% against 46.0%" in Page(own.to_html()).text

    def test_alarms_and_trust_are_those_of_the_closing(self) -> None:
        study = failed(3)
        own = report(study)
        assert own["trust"].frame.to_dict("list") == {
            "what": ["read first"],
            "sentence": list(closing(None, study).alarms),
        }
        assert "3 of 3 trials failed: OSError (3)." in Page(own.to_html()).text

    def test_a_study_file_says_what_the_score_means_and_records_alone_do_not(self) -> None:
        host = open_study(tiny.STUDY)
        assert "study's file was not given" in " ".join(report(host)["pick"].notes)
        host.add_trial(create_trial(value=1.0, user_attrs=recorded(20, 1.0)))
        told = report(host, study=tiny.STUDY)
        assert any(note.startswith("The score is the default score") for note in told["pick"].notes)
        assert told["origin"].frame.set_index("what")["value"]["task"] == "tiny"


class TestTrials:
    def test_pruned_ones_have_reason_rule_and_the_steps_saved(self) -> None:
        own = report(searched(20))["ended"]
        row = own.frame.iloc[0].to_dict()
        assert (row["trial"], row["outcome"], row["at_step"], row["steps_saved"]) == (4, "pruned", 20, 80)
        assert (row["rule"], row["value"], row["threshold"], row["compared_with"]) == ("late", 1.5, 1.0, 3)
        assert row["reason"] == "pruned: others were better"
        assert "pruning saved 16% of the steps" in own.sentences[0]

    def test_the_best_so_far_follows_the_direction(self) -> None:
        for direction, best in (("minimize", [2.0, 1.0, 1.0]), ("maximize", [2.0, 2.0, 3.0])):
            frame = report(values_study(2.0, 1.0, 3.0, direction=direction))["scores"].frame
            assert frame["best_so_far"].tolist() == best

    def test_all_settings_are_in_the_frame_and_medians_shown_where_there_are_many(self) -> None:
        labels = [f"layer{number}" for number in range(8)]
        own = report(searched(10, labels))["trials"]
        assert "median lr" in own.table.columns
        assert "lr/layer3" not in own.table.columns
        assert own.frame["median lr"][0] == pytest.approx(own.frame[[f"lr/{name}" for name in labels]].loc[0].median())
        assert own.frame["alpha of layer3"].notna().all()

    def test_what_is_compared_first_leads_from_what_one_came_with_to_the_pick(self) -> None:
        frame = report(repeated({"start": (2.0,), "better": (1.0,)}))["compare"].frame.set_index("what")
        assert list(frame) == ["trial 0", "trial 1"]
        assert frame.loc["lr/a"].tolist() == [0.1, 0.5]


class TestSettings:
    def test_shares_and_effects_name_their_evaluator_and_its_doubt(self) -> None:
        own = report(searched(40))
        shares = own["importance"].frame
        first = shares.iloc[0]
        assert (first["kind"], first["share"] > 0.5) == ("lr", True)
        assert (shares["low"] <= shares["share"]).all()
        assert (shares["share"] <= shares["high"]).all()
        assert re.search(r"Evaluator: a Gaussian process .* of 32 trials.* R2 0\.\d\d", own["importance"].notes[0])
        effects = own["effects"].frame
        assert effects["beyond_chance"].tolist() == sorted(effects["beyond_chance"], reverse=True)
        assert effects.iloc[0][["kind", "beyond_chance"]].tolist() == ["lr", True]
        assert "rank correlation over 32 trials" in own["effects"].notes[0]

    def test_few_trials_say_why_nothing_is_told(self) -> None:
        own = report(searched(4))
        assert "too few to tell" in own["importance"].sentences[0]
        assert own["importance"].drawings == own["effects"].drawings == ()


class TestLayers:
    @pytest.fixture
    def trained(self, tmp_path: Path) -> tuple[optuna.Study, Path]:
        host = open_study(tiny.STUDY)
        run(tiny.STUDY, host, tmp_path)
        return host, tmp_path

    def test_spectra_are_those_of_the_weights_that_were_kept(self, trained: tuple[optuna.Study, Path]) -> None:
        host, folder = trained
        own = report(host, study=tiny.STUDY, folder=folder)["layers"]
        assert own.frame["layer"].tolist() == ["0", "2", "4"]
        assert [drawing.caption.split(" ")[0] for drawing in own.drawings] == ["", "0", "2", "4"]
        assert own.sentences == (
            f"Read from trial-{host.best_trial.number:05d}.pt: the weights that the trial of the pick ended with.",
        )
        recorded = report(host, study=tiny.STUDY)["layers"].frame
        pd.testing.assert_frame_equal(own.frame[recorded.columns], recorded, check_dtype=False)

    def test_weights_of_another_study_are_not_read(self, trained: tuple[optuna.Study, Path]) -> None:
        host, folder = trained
        (folder / ".study").write_text("another")
        own = report(host, folder=folder)["layers"]
        assert own.sentences[0].startswith("No weights of the pick lie here")
        assert len(own.frame) == 3

    def test_a_broken_file_of_weights_costs_no_report(self, trained: tuple[optuna.Study, Path]) -> None:
        host, folder = trained
        weights_file(folder, host.best_trial.number).write_bytes(b"no weights")
        own = report(host, folder=folder)["layers"]
        assert "cannot be read" in own.sentences[0]
        assert len(own.frame) == 3
        assert len(own.drawings) == 1

    def test_layers_too_large_to_be_read_again_are_told_from_the_records(
        self, trained: tuple[optuna.Study, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, folder = trained
        monkeypatch.setattr("ww_opt.reporting.page.spectra._MOST_WORK", 1e3)
        assert "too large to be read again" in report(host, folder=folder)["layers"].sentences[0]

    def test_those_to_act_on_are_drawn_first(self) -> None:
        from ww_opt.reporting.page.spectra import _first

        rows = [layer(f"layer{number}", 3.0) for number in range(60)] + [layer("bad", 3.0, "TRAP")]
        assert _first(rows)[:3] == ["bad", "layer0", "layer1"]
        assert len(_first(rows)) == 12


def with_nan() -> optuna.Study:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1.0, user_attrs=recorded(100, math.nan, [layer("a", math.nan)])))
    return study


STATES = {
    "no trial": (optuna.create_study, "No trial yet"),
    "one trial": (lambda: values_study(1.0), "The pick: trial 0"),
    "failed alone": (lambda: failed(3), "No pick"),
    "not finite": (lambda: values_study(math.inf, 1.0, -math.inf), "The pick: trial 1"),
    "maximised": (lambda: searched(20, direction="maximize"), "The pick: trial"),
    "running": (running, "The pick: trial"),
    "nothing of ours": (lambda: values_study(*(0.1 * number for number in range(500))), "The pick: trial 0"),
    "odd names": (lambda: searched(20, ODD, study_name="<b>{{ x }}</b>"), "The pick: trial"),
    "NaN in layers": (with_nan, "The pick: trial 0"),
}


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[Report, str]]:
    found = {}
    for name, (make, _) in STATES.items():
        own = report(make(), storage=SECRET)
        found[name] = own, own.to_html()
    return found


@pytest.mark.parametrize("name", STATES)
class TestEveryState:
    def test_it_renders_and_says_so(self, name: str, written: dict[str, tuple[Report, str]]) -> None:
        own, text = written[name]
        assert own["pick"].title.startswith(STATES[name][1])
        assert "could not be drawn" not in text
        assert own["pick"].title in Page(text).text

    def test_it_needs_nothing_else_and_every_id_is_one(self, name: str, written: dict[str, tuple[Report, str]]) -> None:
        found = Page(written[name][1])
        assert all(link.startswith(("#", "data:")) for link in found.links)
        assert "url(http" not in written[name][1]
        assert [own for own, count in Counter(found.ids).items() if count > 1] == []
        assert {link[1:] for link in found.links if link.startswith("#")} <= {*found.ids}

    def test_no_password_and_no_markup_of_a_user(self, name: str, written: dict[str, tuple[Report, str]]) -> None:
        own, text = written[name]
        for form in (text, own.to_json(), own.to_markdown()):
            assert not any(word in form for word in ("se/cr", "et@host", "hunter2", "me:se"))
            assert "***@host/db?password=***" in form
        found = Page(text)
        assert found.tags["script"] in (0, 2)
        assert found.tags["img"] == found.tags["b"] == 0
        assert not re.search(r"<(script|img|b)\b", own.to_markdown())

    def test_json_holds_every_frame(self, name: str, written: dict[str, tuple[Report, str]]) -> None:
        own, _ = written[name]
        sections = json.loads(own.to_json())["sections"]
        assert list(sections) == [section.key for section in own.sections]
        for section in own.sections:
            assert len(sections[section.key]["rows"]) == len(section.frame)


def test_names_come_through_unharmed(written: dict[str, tuple[Report, str]]) -> None:
    own, text = written["odd names"]
    found = Page(text)
    data = json.loads(found.data)
    for name in ODD:
        assert f"lr/{name}" in data["columns"]
        assert name in found.text
    assert own["pick"].frame["layer"].tolist() == list(ODD)


def test_a_plain_study_is_told_what_is_missing(written: dict[str, tuple[Report, str]]) -> None:
    own, text = written["nothing of ours"]
    assert own["pick"].notes[0].startswith("No trial has records of ww_opt")
    assert len(json.loads(Page(text).data)["columns"]["trial"]) == 500


def test_a_running_study_is_told_to_be_one(written: dict[str, tuple[Report, str]]) -> None:
    own, _ = written["running"]
    assert "Running, or cut off without a word: 12." in " ".join(own["pick"].sentences)
    assert own["trials"].frame["outcome"].tolist()[-2:] == ["running", "waiting"]


def test_a_hundred_trials_of_many_layers_are_under_half_a_megabyte() -> None:
    own = report(searched(100, [f"encoder.layer.{number}.dense" for number in range(33)]))
    text = own.to_html()
    assert len(text.encode()) < 500_000
    assert text == own.to_html(), "the same every time"


def test_several_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="1 objective, but 'two' has 2"):
        gather(optuna.create_study(study_name="two", directions=["minimize", "maximize"]))


def test_a_figure_that_fails_costs_no_page() -> None:
    def fails() -> Figure:
        raise RuntimeError("<b>no</b>")

    sections = list(report(searched(3)).sections)
    sections[3] = Section("scores", "Scores", frame=sections[3].frame, drawings=(Drawing("words", fails),))
    text = page("own", sections)
    assert "This figure could not be drawn: RuntimeError: &lt;b&gt;no&lt;/b&gt;" in text


def test_an_svg_follows_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.plot([1, 2, 3], [3, 1, 2], "o", color="#0072B2")
    axes.set_title("<层> & $x$", parse_math=False)
    text = inline_svg(figure, "own-0", 'what "it" shows')
    found = Page(text)
    assert "var(--blue)" in text
    assert "#0072b2" not in text.lower()
    assert "<层> & $x$" in found.text
    assert 'what "it" shows' in found.text
    assert all(name.startswith("own-0") for name in found.ids)
    assert "font-family" not in text
    assert len(text) < 4000


def test_long_names_are_cut_where_they_differ_least() -> None:
    assert shortened("lr/encoder.layer.17.attention.dense", 20) == "lr/…/attention.dense".replace(
        "/attention", ".attention"
    )
    assert shortened("conv1", 20) == "conv1"
    assert len(shortened("x" * 99, 20)) == 20
    assert len({shortened(f"lr/encoder.layers.{number}.dense", 20) for number in range(30)}) == 30


def test_a_pruned_trial_without_a_look_saves_what_is_left() -> None:
    study = searched(3)
    trial = pruned({"lr/conv": 0.1, "lr/out": 0.1, "weight_decay/conv": 0.1, "weight_decay/out": 0.1}, ["conv", "out"])
    study.add_trial(trial)
    assert report(study)["ended"].frame["steps_saved"].tolist() == [80]
