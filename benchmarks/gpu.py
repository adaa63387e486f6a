"""The same diagnosis on the CPU and on a GPU, and the side from which eigenvalues are faster there.

The second table says what ``ww_opt.spectral.measuring.spectra._ON_DEVICE`` should be.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.speed import MODELS, best, fresh, heavy_

__all__ = ["main"]


def main(rounds: int = 5) -> None:
    """Print the tables, or say that there is no GPU."""
    if not torch.cuda.is_available():
        print("\nNo GPU: its tables stay out.")
        return
    print("\n| model | CPU | GPU | ratio | worst difference of alpha |", "|---" * 5 + "|", sep="\n")
    for name, build in {**MODELS, "4096x4096": _square}.items():
        model = build()
        heavy_(model, torch.Generator().manual_seed(0))
        moved = build().to("cuda")
        moved.load_state_dict(model.state_dict())
        seconds = best({"cpu": partial(fresh, model), "gpu": partial(fresh, moved)}, rounds)
        alphas = [fresh(own).to_frame()["alpha"].to_numpy() for own in (model, moved)]
        print(
            f"| {name} | {seconds['cpu']:.3f} s | {seconds['gpu']:.3f} s | {seconds['cpu'] / seconds['gpu']:.1f} "
            f"| {np.nanmax(np.abs(alphas[0] - alphas[1])):.0e} |"
        )
    print("\n| side | eigenvalues by LAPACK, transfer included | by the GPU |", "|---|---|---|", sep="\n")
    for M in (64, 256, 512, 1024, 2048, 4096):
        W = torch.randn(M, M, dtype=torch.float64, device="cuda")
        seconds = best({"cpu": partial(_lapack, W @ W.T), "gpu": partial(_cusolver, W @ W.T)}, rounds)
        print(f"| {M} | {seconds['cpu']:.4f} s | {seconds['gpu']:.4f} s |")


def _square() -> nn.Module:
    return nn.Sequential(nn.Linear(4096, 4096))


def _lapack(gram: torch.Tensor) -> object:
    return np.linalg.eigvalsh(gram.cpu().numpy())


def _cusolver(gram: torch.Tensor) -> object:
    return torch.linalg.eigvalsh(gram).cpu()


if __name__ == "__main__":
    main()
