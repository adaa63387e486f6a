"""The comparison of distributions tells exact samples apart."""

import numpy as np

from ww_opt.spectral.findings import Status
from ww_opt.spectral.measuring.alternatives import ALTERNATIVES, compare_distributions, fit_truncated


def verdicts(values: np.ndarray) -> dict[str, str]:
    return {item.alternative: item.verdict for item in compare_distributions(values)}


def test_a_power_law_is_no_exponential() -> None:
    sample = (1 - np.random.default_rng(0).random(1000)) ** (-1 / 1.5)
    found = verdicts(sample)
    assert tuple(found) == ALTERNATIVES
    assert found["exponential"] == "power law"
    assert found["lognormal"] != "lognormal"


def test_an_exponential_is_no_power_law() -> None:
    found = verdicts(1 + np.random.default_rng(1).exponential(size=2000))
    assert found["exponential"] == "exponential" or found["truncated_power_law"] == "truncated power law"


def test_nothing_to_compare() -> None:
    assert compare_distributions(np.ones(50)) == ()


def test_a_truncated_sample_shows_its_cutoff() -> None:
    generator = np.random.default_rng(2)
    sample = (1 - generator.random(4000)) ** (-1 / 1.0)  # alpha 2
    sample = sample[generator.random(4000) < np.exp(-0.05 * (sample - 1))]
    for extended in (False, True):
        fit = fit_truncated(sample, extended=extended)
        assert fit.status is Status.SUCCESS
        assert 1.5 < fit.alpha < 2.5
        assert 0.02 < fit.Lambda < 0.1
        assert fit.D < 0.05


def test_a_truncated_fit_says_why_there_is_none() -> None:
    fit = fit_truncated(np.ones(50))
    assert fit.status is Status.ALL_EQUAL
    assert np.isnan(fit.alpha)
