"""How layers are gone through: order, company, memory, progress."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ww_opt.spectral.measuring import schedule
from ww_opt.spectral.measuring.schedule import in_batches, in_parallel, n_bytes


@pytest.mark.parametrize("n_threads", [1, 3])
def test_results_come_in_order_and_large_items_alone(monkeypatch: pytest.MonkeyPatch, n_threads: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    sizes = [1, 2, schedule.ALONE + 1, 3, 4, 5, 6, schedule.ALONE + 2, 7]
    drawn = list(schedule._drawn(sizes, lambda size: size, n_threads))
    assert [size for part in drawn for size in part] == sizes
    assert all(len(part) == 1 or max(part) <= schedule.ALONE for part in drawn)
    assert max(map(len, drawn)) == n_threads
    assert in_parallel(str, sizes, lambda size: size) == [str(size) for size in sizes]


def test_batches_keep_order_inside_a_key_and_bound_what_waits() -> None:
    items = [("a", 1), ("b", 1), ("a", 2), (None, 3), ("a", 900), ("b", 4), ("c", 60), ("c", 60)]
    seen: list[tuple[str | None, int]] = []

    def stream() -> Iterator[tuple[str | None, int]]:
        for item in items * 30:
            seen.append(item)
            yield item

    out: list[tuple[str | None, int]] = []
    for batch in in_batches(stream(), lambda item: item[0], lambda item: item[1], together=1000):
        assert len({key for key, _ in batch}) == 1
        assert len(batch) == 1 or (batch[0][0] is not None and max(size for _, size in batch) <= 1000 // 16)
        out += batch
        assert sum(size for _, size in seen) - sum(size for _, size in out) <= 1000 + 900
    assert sorted(out, key=str) == sorted(items * 30, key=str)


def test_bytes_of_a_model_its_state_and_its_files(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.Conv2d(3, 4, 5), nn.LazyLinear(7))
    weights = 4 * (30 * 20 + 3 * 4 * 25)
    assert n_bytes(model) == weights
    state = dict(model[:2].state_dict())
    assert n_bytes(state) == weights
    save_file(state, tmp_path / "model.safetensors")
    assert n_bytes(tmp_path / "model.safetensors") == n_bytes(str(tmp_path))
    assert weights < (n_bytes(tmp_path) or 0) < weights + 1000
    assert n_bytes(tmp_path / "nothing") is None
    assert n_bytes(3) is None


def test_progress_tells_bytes_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schedule, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    in_parallel(lambda size: time.sleep(0.06), [1000] * 5, lambda size: size, 5000)
    shown = capsys.readouterr().err
    assert re.search(r"layers:  [468]0%.*\d\.00k/5\.00k \[00:00<00:00, ", shown), shown


UNDER_A_LIMIT = """
import re, resource, sys, torch
from pathlib import Path
from torch import nn
torch.set_num_threads(1)
from ww_opt.spectral import diagnose
diagnose(nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 900)))  # libraries and their buffers
source = eval(sys.argv[1])
data = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (data + int(float(sys.argv[2]) * (1 << 20)),) * 2)
assert all(row.fit_status == "success" for row in diagnose(source)), "a layer could not be read"
"""


def diagnose_under_a_limit(source: str, megabytes: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", UNDER_A_LIMIT, source, str(megabytes)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and read as Linux does it")


@linux
def test_a_large_layer_costs_a_copy_in_float64_and_its_gram() -> None:
    # 2048 x 1536: 24 MiB in float64, Gram 18 MiB
    model = "nn.Sequential(nn.Linear(1536, 2048))"
    done = diagnose_under_a_limit(model, 24 + 18 + 12)
    assert done.returncode == 0, done.stderr
    assert diagnose_under_a_limit(model, 24).returncode != 0


@linux
def test_a_checkpoint_is_streamed(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = {f"layer{i}.weight": torch.randn(1024, 1024, generator=generator) for i in range(24)}
    save_file(layers, tmp_path / "model.safetensors")
    # the file, which is mapped, is 96 MiB; a layer is 4 MiB, 8 MiB in float64, and so is its Gram matrix; what is
    # small comes from the heap
    done = diagnose_under_a_limit(repr(str(tmp_path / "model.safetensors")), 96 + 16 + 48)
    assert done.returncode == 0, done.stderr
