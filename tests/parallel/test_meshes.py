"""Whatever the mesh, the loss and every gradient are those of one device."""

import json
import os
import subprocess
import sys

import pytest

from tests.parallel.eight_devices import CASES

pytestmark = pytest.mark.first

LONG = [
    name for name in CASES if "splash" in name or "two key heads" in name
]  # kernels in interpret mode, or like another one


def reported(names):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "tests.parallel.eight_devices", *names]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report():
    return reported([name for name in CASES if name not in LONG])


@pytest.fixture(scope="module")
def long_report():
    return reported(LONG)


@pytest.mark.parametrize("name", [name for name in CASES if name not in LONG])
def test_loss_and_gradients_equal_those_of_one_device(report, name):
    assert report[name]["loss"] < 1e-5
    assert report[name]["gradient"] < 1e-5, report[name]["where"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_and_so_do_those_of_other_kernels_and_shapes(long_report, name):
    assert long_report[name]["loss"] < 1e-5
    assert long_report[name]["gradient"] < 1e-5, long_report[name]["where"]
