"""The report in a real browser: it sorts, filters, compares, and asks the network for nothing.

Needs Debian's ``chromium`` and ``chromium-driver``; skipped where they are not on the PATH.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tests.reporting.browser import MISSING, Browser, browser
from tests.reporting.synthetic import ODD, searched
from ww_opt.reporting.page import gather, report_of, write_text

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

COLUMN = "return [...document.querySelectorAll('#trials tbody tr:not([hidden])')].map(row => row.cells[{}].textContent)"
# contrast of text with the colour behind it, as WCAG 2 has it; the least of all elements that hold text
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (colour) => colour.slice(0, 3).map((own) => own / 255)
  .map((own) => own <= 0.04045 ? own / 12.92 : ((own + 0.055) / 1.055) ** 2.4)
  .reduce((sum, own, at) => sum + own * [0.2126, 0.7152, 0.0722][at], 0);
const behind = (element) => {
  for (let own = element; own; own = own.parentElement) {
    const colour = rgba(getComputedStyle(own).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
let least = [99, ""];
for (const element of document.querySelectorAll("body *")) {
  const holds = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!holds || !element.getClientRects().length || element.closest("script, title, option")) continue;
  const style = getComputedStyle(element);
  const [one, other] = [light(rgba(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
  const found = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (found < least[0]) least = [found, element.textContent.slice(0, 40)];
}
return least;
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def written(folder: Path, host: optuna.Study) -> Path:
    write_text(report_of(gather(host, storage="sqlite:///x.db")).to_html(), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("odd"), searched(30, ODD))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plain"), searched(30))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
class TestLooks:
    def test_nothing_is_wrong_or_asked_for(self, own: Browser, odd: Path, width: int, scheme: str) -> None:
        own.show(odd, width, scheme=scheme)
        assert own.complaints() == []
        assert own.requests() == []
        assert own.run("return [document.images.length, document.scripts.length]") == [0, 2]

    def test_it_fits_the_window_and_can_be_read(self, own: Browser, odd: Path, width: int, scheme: str) -> None:
        own.show(odd, width, scheme=scheme)
        own.run("document.querySelectorAll('details').forEach(own => own.open = true)")
        assert own.run("return document.documentElement.scrollWidth") == width
        contrast, where = own.run(CONTRAST)
        assert contrast >= 4.5, where
        smallest = own.run(
            "return Math.min(...[...document.querySelectorAll('svg')].map(svg => "
            "9 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"
        )
        assert smallest >= 9.0, "pixels of the text in figures"


def test_dark_is_dark(own: Browser, plain: Path) -> None:
    shades = []
    for scheme in ("light", "dark"):
        own.show(plain, scheme=scheme)
        shades.append(own.run("return getComputedStyle(document.body).backgroundColor"))
    assert shades == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


def test_the_table_sorts_by_a_click_and_by_the_keyboard(own: Browser, plain: Path) -> None:
    own.show(plain)
    head = "document.querySelectorAll('#trials th')[2]"
    own.run(f"{head}.querySelector('button').click()")
    shown = own.run(COLUMN.format(2))
    known = [float(text) for text in shown if text != "-"]
    assert known == sorted(known)
    assert shown[len(known) :] == ["-"] * 6, "what is missing comes last"
    assert own.run(f"return {head}.getAttribute('aria-sort')") == "ascending"
    own.run(f"{head}.querySelector('button').focus()")
    own.press("\ue007")
    falling = own.run(COLUMN.format(2))
    assert [float(text) for text in falling if text != "-"] == known[::-1]
    assert falling[-6:] == ["-"] * 6
    assert own.run(f"return {head}.getAttribute('aria-sort')") == "descending"


def test_the_table_filters_by_words_and_by_outcome(own: Browser, plain: Path) -> None:
    own.show(plain)
    own.run("document.getElementById('words').focus()")
    own.press(*"pruned")
    assert own.run(COLUMN.format(1)) == ["pruned"] * 6
    assert own.run("return document.getElementById('count').textContent") == "6 of 30 trials"
    own.run("words.value = ''; words.dispatchEvent(new Event('input'))")
    own.run("outcome.value = 'completed'; outcome.dispatchEvent(new Event('change'))")
    assert own.run(COLUMN.format(1)) == ["completed"] * 24


def test_any_two_trials_stand_side_by_side(own: Browser, odd: Path) -> None:
    own.show(odd)
    own.run("document.querySelector('#trials tbody tr:nth-child(8) button').click()")
    assert own.run("return document.querySelectorAll('#compare th')[1].textContent") == "trial 7"
    own.run("second.value = '4'; second.dispatchEvent(new Event('change'))")
    cells = (
        "return [...document.querySelectorAll('#compare tbody tr')].map(row => [...row.cells].map(c => c.textContent))"
    )
    rows = {row[0]: row[1:] for row in own.run(cells)}
    assert rows["outcome"] == ["completed", "pruned", ""]
    name = f"lr/{ODD[0]}"
    one, other = (float(text) for text in rows[name][:2])
    assert float(rows[name][2][2:]) == pytest.approx(other / one, rel=0.01)
    assert rows["steps"] == ["100", "20", "-80"]
    own.run("second.value = '7'; second.dispatchEvent(new Event('change')); differ.click()")
    assert own.run(cells) == []


def test_without_a_script_the_tables_are_there(own: Browser, plain: Path, tmp_path: Path) -> None:
    # as in a mail reader that takes scripts away; to forbid them in the browser is a race with its loading
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<script\b.*?</script>", "", plain.read_text(), flags=re.DOTALL))
    own.show(bare)
    assert len(own.run(COLUMN.format(0))) == 30
    assert own.run("return document.querySelectorAll('#compare tbody tr').length > 5")
    assert own.run("return getComputedStyle(document.querySelector('#trials .controls')).display") == "none"


def test_every_control_has_a_name_and_every_figure_words(own: Browser, plain: Path) -> None:
    own.show(plain)
    nameless = own.run(
        "return [...document.querySelectorAll('input, select, button')].filter(own => !(own.labels?.length || "
        "own.textContent.trim())).map(own => own.outerHTML)"
    )
    assert nameless == []
    assert own.run("return [...document.querySelectorAll('svg')].every(own => own.querySelector('title').textContent)")
    levels = own.run("return [...document.querySelectorAll('h1, h2')].map(own => own.tagName)")
    assert levels[0] == "H1"
    assert levels.count("H1") == 1


@pytest.mark.parametrize("n_trials", [0, 1, 500])
def test_any_number_of_trials(own: Browser, tmp_path: Path, n_trials: int) -> None:
    own.show(written(tmp_path, searched(n_trials, ["a"])), 390)
    assert own.complaints() == []
    assert own.run("return document.querySelectorAll('#trials tbody tr').length") == n_trials
    assert own.run("return document.documentElement.scrollWidth") == 390


def test_the_network_is_watched_and_a_complaint_is_heard(own: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><img src='http://127.0.0.1:9/x.png'><script>nothing();</script>")
    own.show(bad)
    assert own.requests() == ["http://127.0.0.1:9/x.png"]
    assert any("nothing is not defined" in own_words for own_words in own.complaints())
