"""The comparison of distributions tells exact samples apart."""

import numpy as np

from ww_opt.spectral.alternatives import ALTERNATIVES, compare_distributions


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
