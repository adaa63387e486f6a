"""Peak memory of a diagnosis above the weights, each in a process of its own; Linux tells it."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["main"]

_PEAK = r"""
import re, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from ww_opt.spectral import diagnose

def kilobytes(name):
    return int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

N, M = map(int, sys.argv[1:])
diagnose(torch.nn.Linear(600, 700))  # libraries and their buffers
model = torch.nn.Linear(M, N)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
diagnose(model)
print((kilobytes("VmHWM") - before) / 1024)
"""


def main() -> None:
    """Print the table."""
    print("\n| layer | a copy in float64 and its Gram | peak above the weights |", "|---|---|---|", sep="\n")
    for N, M in ((4096, 1024), (3072, 3072)):
        command = [sys.executable, "-c", _PEAK, str(N), str(M)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        peak = f"{float(done.stdout):.0f} MiB" if done.returncode == 0 else "not known on this system"
        print(f"| {N} x {M} | {8 * (N * M + M * M) / 2**20:.0f} MiB | {peak} |")


if __name__ == "__main__":
    main()
