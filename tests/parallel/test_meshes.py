"""Whatever the mesh, the loss and every gradient are those of one device."""

import json
import os
import subprocess
import sys

import pytest

from tests.parallel.eight_devices import CASES


@pytest.fixture(scope="module")
def report():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "tests.parallel.eight_devices"]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_those_of_one_device(report, name):
    assert report[name]["loss"] < 1e-5
    assert report[name]["gradient"] < 1e-5, report[name]["where"]
