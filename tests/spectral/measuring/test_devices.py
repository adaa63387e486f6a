"""The device follows the weights, and changes no number."""

import subprocess
import sys

import pytest
import torch.utils.backend_registration


def test_a_device_that_is_not_the_cpu_gives_the_same_rows() -> None:
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot pretend a device")
    command = [sys.executable, "-W", "error", "-m", "tests.spectral.measuring.pretended"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-10
