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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import nn

from ww_opt.spectral import diagnose, diagnostics, fit_power_law
from ww_opt.spectral.measuring.fits import fit_power_laws
from ww_opt.spectral.measuring.schedule import Memory

Array = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

__all__ = ["MODELS", "best", "fresh", "heavy_", "main"]

TOGETHER = 32
"""Samples of one size that are fitted together, as those of a model's layers are."""


def heavy_(module: nn.Module, generator: torch.Generator) -> None:
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
    """MiniLM's 39 matrices, 384 wide, its vocabulary of 30,522 among them."""
    block = [nn.Linear(384, 384) for _ in range(4)] + [nn.Linear(384, 1536), nn.Linear(1536, 384)]
    modules: list[nn.Module] = [nn.Embedding(30522, 384), nn.Embedding(512, 384)]
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


def _limit(matrices: Sequence[Floats]) -> list[Floats]:
    """The physical limit: nothing but Gram matrices and eigenvalues, by the faster library for each shape."""
    return [_eigvalsh(np.swapaxes(W, 1, 2) @ W) for W in matrices]


def _eigvalsh(gram: Floats) -> Floats:
    if gram.shape[1] <= 64 and gram.dtype == np.float64:
        return np.asarray(torch.linalg.eigvalsh(torch.from_numpy(gram)).numpy())
    return np.asarray(np.linalg.eigvalsh(gram))


def _weightwatcher(model: nn.Module, **options: Any) -> Any:
    import weightwatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weightwatcher.WeightWatcher(model=model).analyze(**options)


def fresh(model: nn.Module, **options: Any) -> Any:
    """Diagnose as if for the first time."""
    diagnostics._MEMORY = Memory()  # forgets what an earlier round has seen
    return diagnose(model, **options)


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def best(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Alternate, so that all meet the same noise; the least of each is what the machine can do."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_seconds(function))
    return {name: min(own) for name, own in times.items()}


EVERYTHING = {"randomize": True, "mp_fit": True, "erg": True}


def _table(name: str, model: nn.Module, has_peer: bool, rounds: int, everything: bool) -> str:
    matrices = _matrices(model)
    single = [W.astype(np.float32) for W in matrices]
    functions: dict[str, Callable[[], Any]] = {
        "limit": lambda: _limit(matrices),
        "limit32": lambda: _limit(single),
        "columns": lambda: fresh(model, convention="weightwatcher"),
        "traps": lambda: fresh(model),
        "all": lambda: fresh(model, **EVERYTHING),
    }
    best(functions, 1)
    seconds = best(functions, rounds)
    fresh(model)
    again = best({"again": lambda: diagnose(model)}, rounds)["again"]
    peer = {"columns": float("nan"), "traps": float("nan"), "all": float("nan")}
    if has_peer:
        peer["columns"] = best({"": lambda: _weightwatcher(model)}, 2)[""]
        peer["traps"] = _seconds(lambda: _weightwatcher(model, randomize=True))
        if everything:
            peer["all"] = _seconds(lambda: _weightwatcher(model, randomize=True, mp_fit=True, detX=True))
    cells = [name, f"{seconds['limit']:.3f} / {seconds['limit32']:.3f} s"]
    for step in ("columns", "traps", "all"):
        cells.append(f"{seconds[step]:.3f} s, {seconds[step] / seconds['limit']:.2f} x limit")
        cells.append(f"{peer[step]:.2f} s, {peer[step] / seconds[step]:.1f} x" if peer[step] > 0 else "")
    cells.append(f"{again / seconds['traps']:.2%}")
    return f"| {' | '.join(cells)} |"


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


def _each(function: Callable[[Array], Any], samples: list[Array]) -> list[Any]:
    return [function(sample) for sample in samples]


def _fit_table(rounds: int) -> str:
    import powerlaw

    def theirs(sample: Array) -> Any:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return powerlaw.Fit(sample, parameter_ranges={"alpha": [1, None]}, verbose=False).alpha

    lines = [
        f"| n | powerlaw | ours, alone | ours, {TOGETHER} together, each | ratio alone | ratio together | difference |",
        "|---" * 7 + "|",
    ]
    generator = np.random.default_rng(0)
    for n in (20, 100, 500, 2000):
        samples = [(1 - generator.random(n)) ** (-1 / 1.5) for _ in range(TOGETHER)]
        few = samples[:4]
        slow = best({"": partial(_each, theirs, few)}, 2)[""] / len(few)
        alone = best({"": partial(_each, fit_power_law, few)}, 5 * rounds)[""] / len(few)
        joint = best({"": partial(fit_power_laws, samples)}, 5 * rounds)[""] / TOGETHER
        gap = max(abs(theirs(x) - fit.alpha) for x, fit in zip(few, fit_power_laws(few), strict=True))
        lines.append(
            f"| {n} | {slow * 1e3:.1f} ms | {alone * 1e3:.2f} ms | {joint * 1e3:.3f} ms | {slow / alone:.0f}x "
            f"| {slow / joint:.0f}x | {gap:.0e} |"
        )
    return "\n".join(lines)


def main(rounds: int = 5, everything: bool = False) -> None:
    """Print the tables; ``everything`` also waits two minutes for all columns of WeightWatcher."""
    try:
        import weightwatcher  # noqa: F401

        has_peer = True
    except ImportError:
        has_peer = False
        print("WeightWatcher is not installed; its columns stay empty: pip install weightwatcher==0.7.7\n")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    lines = [
        "| model | limit, float64 / float32 | default columns | WeightWatcher | with traps | its randomize=True "
        "| everything | its everything | second look / first |",
        "|---" * 9 + "|",
    ]
    checks = []
    with threadpool_limits(1):
        for name, build in MODELS.items():
            model = build()
            heavy_(model, generator)
            lines.append(_table(name, model, has_peer, rounds, everything))
            checks.append(f"{name}: {_check(model, has_peer)}")
        print("\n".join(lines), "\n".join(checks), _fit_table(rounds), sep="\n\n")


if __name__ == "__main__":
    main()
