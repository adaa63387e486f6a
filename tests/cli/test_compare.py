"""``ww-opt compare`` as people, monitors and pipelines meet it: text, JSON, exit codes, one line for bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.spectral.comparing.pairs import State, net, state, tuned, with_change
from tests.spectral.comparing.test_rules import by_layer
from ww_opt.cli import main as cli

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # lines are cut to the width of the terminal
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ww-opt", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def old(tmp_path: Path) -> State:
    own = state(net())
    torch.save(own, tmp_path / "old.pt")
    torch.save(tuned(own), tmp_path / "tuned.pt")
    torch.save(with_change(tuned(own), lambda W: 10 * W), tmp_path / "broken.pt")
    return own


class TestText:
    def test_what_broke_stands_first_with_what_to_try(self, compare: Command, old: State) -> None:
        code, out, err = compare("old.pt", "broken.pt")
        assert (code, err) == (0, "")
        first, *rest = out.split("\n\n")
        assert first == "1 broken, of 4 layers in common: 2."
        assert rest[0].startswith("Broken: rescaled\n- 2 (64x64): the weights of OLD times 10 (cosine 0.999)")
        assert "Try: look for a factor applied twice" in rest[0]
        assert "The rest of the layers: 3 changed little, by 5.00% in the median" in out

    def test_what_changed_much_is_sorted_and_the_unchanged_only_counted(self, compare: Command, old: State) -> None:
        new = {**old, "0.weight": tuned(old, 0.2)["0.weight"], "4.weight": tuned(old, 0.4)["4.weight"]}
        torch.save(new, "new.pt")
        _, out, _ = compare("old.pt", "new.pt")
        lines = out.splitlines()
        table = lines[lines.index("Changed much, the farthest first") + 4 :]
        assert [line.split()[0] for line in table[:2]] == ["4", "0"]
        assert "moved by 40%" in table[0]
        assert "2 unchanged" in out
        assert not any(line.startswith(("2 ", "6 ")) for line in lines)

    def test_one_side_only(self, compare: Command, old: State) -> None:
        new = {name: tensor for name, tensor in old.items() if name != "2.bias"}
        torch.save({**new, "6.weight": torch.randn(12, 64)}, "new.pt")
        code, out, _ = compare("old.pt", "new.pt")
        assert code == 0
        assert "2 tensors missing, new or of another shape" in out
        assert "Only in OLD: 2.bias 64." in out
        assert "Another shape: 6.weight 10x64 -> 12x64." in out

    def test_the_same_file(self, compare: Command, old: State) -> None:
        assert compare("old.pt", "old.pt", "--fail-on", "changed") == (
            0, "Nothing changed: 4 layers in common, every number is the same.\n", ""
        )  # fmt: skip

    def test_kinds_prefixes_and_formats(self, compare: Command, old: State) -> None:
        rounded = {f"module.{name}": by_layer(tensor) if tensor.ndim > 1 else tensor for name, tensor in old.items()}
        save_file(rounded, "int4.safetensors")
        _, out, _ = compare("old.pt", "int4.safetensors")
        assert "- quantised: 4 of 4 changed layers" in out
        assert "Note: the names of NEW begin with `module.`, which is left out here." in out

    def test_many_broken_layers_are_cut_short(self, compare: Command) -> None:
        own = {f"{n}.weight": torch.randn(40, 40) for n in range(30)}
        torch.save(own, "old.pt")
        torch.save({name: torch.zeros_like(tensor) for name, tensor in own.items()}, "new.pt")
        _, out, _ = compare("old.pt", "new.pt")
        assert out.count("all its weights are 0") == 12
        assert "- 18 more: 12, 13," in out

    def test_factories(self, compare: Command, old: State) -> None:
        Path("models.py").write_text("from tests.spectral.comparing.pairs import net\n")
        assert compare("models.py:net", "old.pt")[1].startswith("Nothing changed")
        assert compare("tests.spectral.comparing.pairs:net", "broken.pt")[1].startswith("1 broken")


class TestJson:
    def test_it_is_short_and_whole(self, compare: Command, old: State) -> None:
        new = with_change(tuned(old), lambda W: 10 * W)
        new["6.weight"] = old["6.weight"]
        new["0.weight"] = new["0.weight"] * torch.nan
        torch.save(new, "new.pt")
        code, out, err = compare("old.pt", "new.pt", "--json")
        assert (code, err) == (0, "")
        found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert found["verdict"] == "broken"
        assert [(item["name"], item["rule"]) for item in found["broken"]] == [("0", "not finite"), ("2", "rescaled")]
        change = found["broken"][1]["change"]
        assert (change["what"], change["limit"]) == ("factor of the norm", 1.45)
        assert change["value"] == pytest.approx(10.0, rel=0.01)
        assert found["broken"][1]["band"]["value"] > found["broken"][1]["band"]["limit"] == 0.97
        assert found["counts"] == {
            "layers": 4, "broken": 2, "changed": 1, "unchanged": 1, "differences": 0, "unread": 0, "vectors": 4,
            "changed_vectors": 4,
        }  # fmt: skip
        assert [layer["name"] for layer in found["layers"]] == ["0", "2", "4"]
        assert found["layers"][0]["distance"] is None
        assert found["layers"][0]["alpha"][1] is None
        assert found["layers"][2]["distance"] == pytest.approx(0.05, rel=1e-3)

    def test_differences(self, compare: Command, old: State) -> None:
        torch.save({name: tensor for name, tensor in old.items() if name != "0.bias"}, "new.pt")
        found = json.loads(compare("old.pt", "new.pt", "--json")[1])
        assert found["verdict"] == "missing"
        assert found["differences"] == [{"name": "0.bias", "old": [64], "new": None}]


class TestGate:
    @pytest.mark.parametrize(
        ("new", "codes"),
        [
            ("old.pt", {"broken": 0, "missing": 0, "changed": 0}),
            ("tuned.pt", {"broken": 0, "missing": 0, "changed": 1}),
            ("missing.pt", {"broken": 0, "missing": 1, "changed": 1}),
            ("broken.pt", {"broken": 1, "missing": 1, "changed": 1}),
        ],
    )
    def test_exit_codes(self, compare: Command, old: State, new: str, codes: dict[str, int]) -> None:
        torch.save({name: tensor for name, tensor in old.items() if name != "2.bias"}, "missing.pt")
        for level, expected in codes.items():
            code, out, err = compare("old.pt", new, "--fail-on", level)
            assert code == expected
            assert out.startswith(("No layer", "Nothing", "1 broken"))
            assert err == (f"Failed on {level!r}: {out.splitlines()[0]}\n" if expected else "")
        assert compare("old.pt", new)[0] == 0

    def test_json_stays_json(self, compare: Command, old: State) -> None:
        code, out, err = compare("old.pt", "broken.pt", "--json", "--fail-on", "broken")
        assert code == 1
        assert json.loads(out)["verdict"] == "broken"
        assert err.startswith("Failed on 'broken'")


BAD = {
    "missing": ("none.pt", "none.pt"),
    "truncated": ("truncated.pt", "damaged"),
    "truncated safetensors": ("truncated.safetensors", "damaged"),
    "no common layer": ("other.pt", "a layer in common"),
    "no matrix": ("vectors.pt", "NEW has none"),
    "meta": ("models.py:meta", "meta device"),
    "no factory": ("models.py:FIVE", "'models.py:FIVE' is a int"),
    "a file alone": ("models.py", "models.py:NAME"),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("is_new", [True, False], ids=["NEW", "OLD"])
def test_bad_input_is_one_line_and_exit_code_2(
    compare: Command, old: State, source: str, message: str, is_new: bool
) -> None:
    Path("truncated.pt").write_bytes(Path("old.pt").read_bytes()[:3000])
    save_file(old, "whole.safetensors")
    Path("truncated.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:3000])
    torch.save({"fc.weight": torch.randn(30, 40)}, "other.pt")
    torch.save({"a.bias": torch.ones(30)}, "vectors.pt")
    Path("models.py").write_text(
        "import torch\nfrom tests.spectral.comparing.pairs import net\nFIVE = 5\n"
        "def meta():\n    with torch.device('meta'):\n        return net()\n"
    )
    code, out, err = compare(*(("old.pt", source) if is_new else (source, "old.pt")), "--fail-on", "broken")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert (message if is_new else message.replace("NEW has", "OLD has")) in err


@pytest.mark.parametrize("arguments", [["old.pt"], ["old.pt", "old.pt", "--fail-on", "nothing"]])
def test_bad_options(compare: Command, old: State, arguments: list[str]) -> None:
    assert compare(*arguments)[0] == 2
