"""On every mesh, the loss and all gradients are those of one device."""

import json
import os
import subprocess
import sys

import pytest

from tests.parallel.eight_devices import CASES

pytestmark = pytest.mark.first

SHORT = ["fsdp 2 x tensor 2 x sequence 2"]  # the axes along which a model is cut
LONG = [name for name in CASES if name not in SHORT]


def run_cases(names):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "tests.parallel.eight_devices", *names]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report():
    return run_cases(SHORT)


@pytest.fixture(scope="module")
def long_report():
    return run_cases(LONG)


@pytest.mark.parametrize("name", SHORT)
def test_loss_and_gradients_equal_those_of_one_device(report, name):
    assert report[name]["loss"] < 1e-5
    assert report[name]["gradient"] < 1e-5, report[name]["where"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_loss_and_gradients_of_other_meshes_kernels_and_shapes(long_report, name):
    assert long_report[name]["loss"] < 1e-5
    assert long_report[name]["gradient"] < 1e-5, long_report[name]["where"]
