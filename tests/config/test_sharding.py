"""The mesh that a configuration describes."""

import pytest

from stepaudio_jax.config import MeshConfig, ShardingRules
from stepaudio_jax.errors import ConfigError


def test_one_axis_takes_the_rest():
    assert MeshConfig().sizes(64) == {"data": 1, "fsdp": 64, "sequence": 1, "tensor": 1}
    assert MeshConfig(tensor=4, sequence=2).sizes(64) == {
        "data": 1,
        "fsdp": 8,
        "sequence": 2,
        "tensor": 4,
    }
    assert MeshConfig(data=-1, fsdp=8).sizes(64) == {
        "data": 8,
        "fsdp": 8,
        "sequence": 1,
        "tensor": 1,
    }
    assert MeshConfig(fsdp=2, tensor=4).sizes(8) == {
        "data": 1,
        "fsdp": 2,
        "sequence": 1,
        "tensor": 4,
    }


def test_slices_lie_along_the_data_axis():
    assert MeshConfig(slices=2).sizes(128) == {"data": 2, "fsdp": 64, "sequence": 1, "tensor": 1}
    assert MeshConfig(data=2, slices=2).sizes(128) == {
        "data": 4,
        "fsdp": 32,
        "sequence": 1,
        "tensor": 1,
    }
    with pytest.raises(ConfigError, match="does not take 3 devices"):
        MeshConfig(data=-1, fsdp=1, slices=2).sizes(3)


@pytest.mark.parametrize(
    ("settings", "devices"),
    [({"fsdp": 3}, 8), ({"tensor": 3}, 8), ({"fsdp": 1}, 8), ({"data": 16}, 8)],
)
def test_axes_that_do_not_multiply_to_the_devices_are_an_error(settings, devices):
    with pytest.raises(ConfigError, match=f"does not take {devices} devices"):
        MeshConfig(**settings).sizes(devices)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": 0}, "data=0 must be positive"),
        ({"slices": -1}, "slices=-1 must be positive"),
        ({"data": -1}, "only one axis"),
    ],
)
def test_impossible_sizes_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        MeshConfig(**settings)


def test_rules_name_each_mesh_axis_once():
    with pytest.raises(ConfigError, match="twice"):
        ShardingRules(batch=("data", "data"))
    assert ShardingRules().mesh_axes("embed") == ("fsdp",)
    assert ShardingRules().mesh_axes("head_dim") == ()
