"""The fit against the `powerlaw` package (2.x), against a plain search, and against theory."""

import warnings

import numpy as np
import pytest

from ww_opt.spectral.findings import Status
from ww_opt.spectral.measuring.fits import fit_power_law, fit_power_laws, fit_without_fingers, hill, hill_excess


def pareto(generator: np.random.Generator, n: int, alpha: float) -> np.ndarray:
    """Exact samples of p(x) ~ x^-alpha on [1, inf)."""
    return (1.0 - generator.random(n)) ** (-1.0 / (alpha - 1.0))


def plain_search(sample: np.ndarray) -> tuple[float, int, float]:
    """Every start of the tail in full: alpha, n_tail, D."""
    x = np.sort(sample)
    y, n = np.log(x), len(x)
    best = (np.nan, 0, np.inf)
    for i in range(n - 1):
        count, S = n - i, float((y[i:] - y[i]).sum())
        if S <= 0 or (n < 20 and count < 8):
            continue
        alpha = 1 + (count - 1 if n < 20 else count) / S
        D = float(np.abs(1 - (x[i:] / x[i]) ** (1 - alpha) - np.arange(count) / count).max())
        if best[2] > D:
            best = (alpha, count, D)
    return best


SAMPLES = {
    "pareto": lambda g, n: pareto(g, n, 2.5),
    "steep": lambda g, n: pareto(g, n, 6.0),
    "lognormal": lambda g, n: g.lognormal(size=n),
    "bulk": lambda g, n: np.linalg.eigvalsh(np.cov(g.standard_normal((n, 2 * n)))) if n > 1 else np.ones(1),
    "ties": lambda g, n: np.round(pareto(g, n, 2.0), 1),
}


@pytest.mark.parametrize("n", [8, 19, 20, 27, 64, 144, 301, 600])
@pytest.mark.parametrize("kind", SAMPLES)
def test_pruned_search_is_exact(kind: str, n: int) -> None:
    sample = SAMPLES[kind](np.random.default_rng(n), n)
    fit = fit_power_law(sample)
    alpha, n_tail, D = plain_search(sample)
    assert fit.n_tail == n_tail
    assert fit.alpha == pytest.approx(alpha, abs=1e-10)
    assert pytest.approx(D, abs=1e-12) == fit.D
    assert fit.xmax == sample.max()


@pytest.mark.parametrize("n", [50, 200, 700])
@pytest.mark.parametrize("alpha", [1.7, 2.5, 4.0])
def test_agrees_with_powerlaw(n: int, alpha: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import powerlaw

        sample = pareto(np.random.default_rng(int(10 * alpha) + n), n, alpha)
        theirs = powerlaw.Fit(sample, parameter_ranges={"alpha": [1, None]}, verbose=False)
    ours = fit_power_law(sample)
    assert ours.xmin == pytest.approx(theirs.xmin, rel=1e-12)
    assert ours.alpha == pytest.approx(theirs.alpha, abs=1e-8)
    assert pytest.approx(theirs.D, abs=1e-8) == ours.D
    assert ours.sigma == pytest.approx(theirs.sigma, abs=1e-8)


def test_many_samples_give_what_each_gives_alone() -> None:
    generator = np.random.default_rng(0)
    samples = [pareto(generator, n, 2.5) for n in (30, 100, 95, 30, 88, 100, 12, 15, 12)]
    assert fit_power_laws(samples) == [fit_power_law(sample) for sample in samples]


def test_scale_changes_only_xmin() -> None:
    sample = pareto(np.random.default_rng(1), 200, 3.0)
    one, other = fit_power_law(sample), fit_power_law(sample * 1e-8)
    assert other.alpha == pytest.approx(one.alpha, rel=1e-9)
    assert other.xmin == pytest.approx(one.xmin * 1e-8, rel=1e-9)


@pytest.mark.parametrize("alpha", [2.0, 3.0, 5.0])
def test_recovers_the_exponent(alpha: float) -> None:
    generator = np.random.default_rng(int(alpha))
    fits = [fit_power_law(pareto(generator, 2000, alpha)) for _ in range(10)]
    assert np.mean([fit.alpha for fit in fits]) == pytest.approx(alpha, rel=0.05)


@pytest.mark.parametrize(
    ("sample", "status"),
    [
        (np.ones(50), Status.ALL_EQUAL),
        (1 + 1e-6 * np.arange(50), Status.ALL_EQUAL),
        (np.zeros(50), Status.ALL_ZERO),
        (np.arange(1.0, 8.0), Status.TOO_FEW),
        (np.array([1.0] * 20 + [np.nan]), Status.NON_FINITE),
        (np.array([1.0] * 20 + [np.inf]), Status.NON_FINITE),
        (np.empty(0), Status.EMPTY),
    ],
)
def test_what_cannot_be_fitted_says_why(sample: np.ndarray, status: Status) -> None:
    fit = fit_power_law(sample)
    assert fit.status is status
    assert np.isnan([fit.alpha, fit.xmin, fit.xmax, fit.D, fit.sigma]).all()
    assert fit.n_tail == 0


def test_extreme_range_neither_overflows_nor_warns() -> None:
    fit = fit_power_law(np.logspace(-300, 300, 100))
    assert fit.status is Status.SUCCESS
    assert np.isfinite(fit.alpha)


def test_hill_on_exact_samples() -> None:
    sample = pareto(np.random.default_rng(3), 20000, 3.0)
    assert hill(sample) == pytest.approx(3.0, rel=0.05)
    assert np.isnan(hill(np.ones(2)))


@pytest.mark.parametrize("shape", [(200, 200), (800, 200)])
def test_noise_has_no_hill_excess_and_a_heavy_tail_has(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(7)
    W = generator.standard_normal(shape)
    assert abs(hill_excess(np.linalg.eigvalsh(W.T @ W), *shape)) < 0.15
    W = generator.standard_t(2, shape)
    assert hill_excess(np.linalg.eigvalsh(W.T @ W), *shape) < -0.2


def test_fingers_are_left_out() -> None:
    bulk = pareto(np.random.default_rng(8), 60, 6.0)
    clean, fingered = fit_without_fingers(bulk), fit_without_fingers(np.concatenate([bulk, [400.0, 900.0]]))
    assert fingered.n_fingers >= 1
    assert abs(fingered.alpha - clean.alpha) < abs(fingered.fits[0].alpha - clean.alpha)
    assert fingered.spread > clean.spread
    assert np.isnan(fit_without_fingers(np.ones(20)).alpha)
    with pytest.raises(ValueError, match="max_fingers=-1"):
        fit_without_fingers(bulk, -1)
