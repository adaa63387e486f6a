"""Optuna's contract suites."""
from collections.abc import Callable
import optuna, pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from ww_opt.search.sampler import LayerwiseSampler

class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: LayerwiseSampler(seed=0, n_startup_trials=2)
