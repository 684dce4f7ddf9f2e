"""Whatever the mesh, the engine's replies are those of one device, and its caches are cut."""

import json
import os
import subprocess
import sys

import pytest

from tests.generation.eight_devices import MESHES

pytestmark = pytest.mark.slow  # every program on four layouts


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [
        sys.executable,
        "-m",
        "tests.generation.eight_devices",
        str(tmp_path_factory.mktemp("clips")),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MESHES)
def test_replies_equal_those_of_one_device(report, name):
    assert all(report[name]["same_tokens"])
    assert report[name]["logprobs"] < 2e-4
    assert report[name]["again"]


@pytest.mark.parametrize("name", MESHES)
def test_caches_are_sharded_and_nothing_compiles_twice(report, name):
    """Slots over data and fsdp, key heads over tensor: each device has an eighth of the cache."""
    assert report[name]["cache_share"] == 1 / 8
    assert not report[name]["compiled_again"]


def test_int8_weights_are_sharded_like_others(report):
    assert report["int8 weights"] == [True] * 4


def test_an_adapter_is_sharded_like_its_kernel_and_can_be_changed(report):
    assert report["no adapter yet"] == [True] * 4
    assert report["adapter"] == [True] * 4


def test_slots_that_cannot_be_shared_out_are_an_error(report):
    assert "slots=6 cannot be shared out over the 8 parts" in report["six slots on data 8"]
