"""Speed of the instrument, as ratios: against the limit (Gram and eigvalsh, float64) and against WeightWatcher.

All in one process with one BLAS thread, alternating, best of a few rounds: the machines are noisy, ratios less so.
Correctness is checked in the same run: eigenvalues against a full SVD, alpha against WeightWatcher where installed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import nn

from ww_opt.spectral import diagnose, diagnostics, fit_power_law
from ww_opt.spectral.fits import fit_power_laws
from ww_opt.spectral.schedule import Memory

Array = NDArray[np.float64]

__all__ = ["MODELS", "main"]

TOGETHER = 32
"""Samples of one size that are fitted together, as those of a model's layers are."""


def _heavy_(module: nn.Module, generator: torch.Generator) -> None:
    """Give every weight a power-law spectrum, as trained weights have."""
    for parameter in module.parameters():
        if parameter.ndim >= 2:
            scale = torch.rand(parameter.shape[1], generator=generator).clamp_min(1e-3) ** -0.3
            shape = (1, -1, *[1] * (parameter.ndim - 2))
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale.view(shape) * 0.05)


def resnet56() -> nn.Module:
    """The convolutions of a CIFAR ResNet-56: 55 of 3x3 and a head."""
    modules: list[nn.Module] = [nn.Conv2d(3, 16, 3, bias=False)]
    for width, before in ((16, 16), (32, 16), (64, 32)):
        modules += [nn.Conv2d(before if i == 0 else width, width, 3, bias=False) for i in range(18)]
    return nn.Sequential(*modules, nn.Linear(64, 10))


def minilm() -> nn.Module:
    """MiniLM's 39 matrices, 384 wide, its vocabulary cut to 2,000."""
    block = [nn.Linear(384, 384) for _ in range(4)] + [nn.Linear(384, 1536), nn.Linear(1536, 384)]
    modules: list[nn.Module] = [nn.Embedding(2000, 384), nn.Embedding(512, 384)]
    for _ in range(6):
        modules += [type(layer)(layer.in_features, layer.out_features) for layer in block]
    return nn.Sequential(*modules, nn.Linear(384, 384))


def large() -> nn.Module:
    """One matrix of 4096 x 1024."""
    return nn.Sequential(nn.Linear(1024, 4096, bias=False))


MODELS: dict[str, Callable[[], nn.Module]] = {"ResNet-56": resnet56, "MiniLM-like": minilm, "4096x1024": large}


def _matrices(model: nn.Module) -> list[Array]:
    result = []
    for parameter in model.parameters():
        if parameter.ndim < 2:
            continue
        W = parameter.detach().double().numpy()
        stack = W.reshape(*W.shape[:2], -1).transpose(2, 0, 1)
        result.append(np.ascontiguousarray(stack if stack.shape[1] >= stack.shape[2] else stack.transpose(0, 2, 1)))
    return result


def _limit(matrices: list[Array]) -> list[Array]:
    return [np.asarray(np.linalg.eigvalsh(W.transpose(0, 2, 1) @ W), dtype=np.float64) for W in matrices]


def _weightwatcher(model: nn.Module, **options: Any) -> Any:
    import weightwatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weightwatcher.WeightWatcher(model=model).analyze(**options)


def _fresh(model: nn.Module, **options: Any) -> Any:
    diagnostics._MEMORY = Memory()  # forgets what an earlier round has seen
    return diagnose(model, **options)


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _best(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Alternate, so that all meet the same noise; the least of each is what the machine can do."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_seconds(function))
    return {name: min(own) for name, own in times.items()}


def _table(name: str, model: nn.Module, has_peer: bool, rounds: int) -> str:
    matrices = _matrices(model)
    functions: dict[str, Callable[[], Any]] = {
        "limit": lambda: _limit(matrices),
        "columns": lambda: _fresh(model, convention="weightwatcher"),
        "traps": lambda: _fresh(model),
    }
    _best(functions, 1)
    seconds = _best(functions, rounds)
    _fresh(model)
    again = _best({"again": lambda: diagnose(model)}, rounds)["again"]
    peer = {"plain": float("nan"), "random": float("nan")}
    if has_peer:
        peer["plain"] = _best({"plain": lambda: _weightwatcher(model)}, 2)["plain"]
        peer["random"] = _seconds(lambda: _weightwatcher(model, randomize=True))
    return (
        f"| {name} | {seconds['limit']:.3f} s | {seconds['columns'] / seconds['limit']:.2f} "
        f"| {seconds['traps'] / seconds['limit']:.2f} | {peer['plain'] / seconds['columns']:.1f}x "
        f"| {peer['random'] / seconds['traps']:.0f}x | {again / seconds['traps']:.2%} |"
    )


def _check(model: nn.Module, has_peer: bool) -> str:
    ours = diagnose(model, convention="weightwatcher").to_frame()
    exact = [np.linalg.svd(W, compute_uv=False).max() ** 2 for W in _matrices(model)]
    scale = np.where(ours["kind"] == "conv2d", 0.5, 1.0)
    worst = float(np.abs(ours["lambda_max"] / (np.array(exact) * scale) - 1).max())
    text = f"largest eigenvalue against SVD: {worst:.0e}"
    if has_peer:
        theirs = _weightwatcher(model)
        text += (
            f"; alpha against WeightWatcher: {np.abs(ours['alpha'].to_numpy() - theirs['alpha'].to_numpy()).max():.0e}"
        )
    return text


def _fit_table(rounds: int) -> str:
    import powerlaw

    def theirs(sample: Array) -> Any:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return powerlaw.Fit(sample, parameter_ranges={"alpha": [1, None]}, verbose=False).alpha

    lines = [
        f"| n | powerlaw | ours, alone | ours, {TOGETHER} together, each | ratio alone | ratio together | worst difference |",
        "|---|---|---|---|---|---|---|",
    ]
    generator = np.random.default_rng(0)
    for n in (20, 100, 500, 2000):
        samples = [(1 - generator.random(n)) ** (-1 / 1.5) for _ in range(TOGETHER)]
        few = samples[:4]
        slow = _best({"": lambda few=few: [theirs(x) for x in few]}, 2)[""] / len(few)
        alone = _best({"": lambda few=few: [fit_power_law(x) for x in few]}, 5 * rounds)[""] / len(few)
        joint = _best({"": partial(fit_power_laws, samples)}, 5 * rounds)[""] / TOGETHER
        gap = max(abs(theirs(x) - fit.alpha) for x, fit in zip(few, fit_power_laws(few), strict=True))
        lines.append(
            f"| {n} | {slow * 1e3:.1f} ms | {alone * 1e3:.2f} ms | {joint * 1e3:.3f} ms | {slow / alone:.0f}x "
            f"| {slow / joint:.0f}x | {gap:.0e} |"
        )
    return "\n".join(lines)


def main(rounds: int = 5) -> None:
    """Print the tables."""
    try:
        import weightwatcher  # noqa: F401

        has_peer = True
    except ImportError:
        has_peer = False
        print("WeightWatcher is not installed; its columns stay empty: pip install weightwatcher==0.7.7\n")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    lines = [
        "| model | limit | default columns / limit | with traps / limit | against WeightWatcher "
        "| with traps, against randomize=True | second look / first |",
        "|---|---|---|---|---|---|---|",
    ]
    checks = []
    with threadpool_limits(1):
        for name, build in MODELS.items():
            model = build()
            _heavy_(model, generator)
            lines.append(_table(name, model, has_peer, rounds))
            checks.append(f"{name}: {_check(model, has_peer)}")
        print("\n".join(lines), "\n".join(checks), _fit_table(rounds), sep="\n\n")


if __name__ == "__main__":
    main()
