"""Tests the names of topologies: their shapes, links and errors."""

import pytest

from stepaudio_jax.errors import ConfigError
from stepaudio_jax.planning.topology import Topology, parse_topology


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("v5p:4x4x4", "v5p", (4, 4, 4)),
        ("v5p-128", "v5p", (4, 4, 4)),  # 128 cores
        ("v5p-64", "v5p", (2, 4, 4)),
        ("v5p-8", "v5p", (2, 2, 1)),
        ("v4-32", "v4", (2, 2, 4)),
        ("v6e-64", "v6e", (8, 8)),
        ("v6e-8", "v6e", (2, 4)),
        ("v5litepod-256", "v5e", (16, 16)),
        ("v5e:4x4", "v5e", (4, 4)),
        ("v5p-384", "v5p", (4, 4, 12)),
        ("v4-1536", "v4", (8, 8, 12)),
        ("v5p-6912", "v5p", (12, 12, 24)),
        ("v5p-12288", "v5p", (16, 16, 24)),
        ("tpu7x-128", "tpu7x", (4, 4, 4)),
        ("tpu7x:4x4x4", "tpu7x", (4, 4, 4)),
        ("tpu7x-4x4x8", "tpu7x", (4, 4, 8)),  # as GKE's tools write it
        ("ironwood-8", "tpu7x", (2, 2, 1)),
        ("trillium-256", "v6e", (16, 16)),
        ("V6E-1", "v6e", (1, 1)),
    ],
)
def test_shape_of_a_named_slice(name, kind, shape):
    assert parse_topology(name) == Topology(kind, shape)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("v4-128", (True, True, True)),
        ("v5p:4x4x12", (True, True, True)),
        ("tpu7x-128", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),  # half a cube: the optical switches link whole ones
        ("v4:2x2x1", (False, False, False)),
        ("v5e-256", (True, True, False)),
        ("v6e-256", (True, True, False)),
        ("v5e:8x16", (False, True, False)),
        ("v6e:16x8", (True, False, False)),
        ("v6e:8x8", (False, False, False)),
    ],
)
def test_axes_whose_ends_are_linked(name, wrap):
    assert parse_topology(name).wrap == wrap


def test_ironwood_chip_is_two_devices():
    topology = parse_topology("tpu7x-128", slices=2)
    assert (topology.chips, topology.devices) == (128, 256)
    assert topology.chip.flops * topology.devices == 128 * 2307e12


@pytest.mark.parametrize(
    "name",
    [
        "h100:8",
        "a100",
        "h200-8",
        "gpu",
        "8xh100",
        "A100-80GB",
        "nvidia-h100-80gb",
        "a3-highgpu-8g",
        "cuda:0",
        "mi300x",
        "l4",
    ],
)
def test_name_of_a_gpu_is_an_error_of_its_own(name):
    with pytest.raises(
        ConfigError,
        match=r"is of GPUs: launch.plan plans TPU slices \(v4, .*A job on GPUs is not planned",
    ):
        parse_topology(name)


def test_chips_of_several_slices():
    topology = parse_topology("v5p:4x4x4", slices=2)
    assert topology.chips == 128
    assert topology.name == "2 x v5p:4x4x4"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", "write KIND:SHAPE"),
        ("v9:2x2", "the kinds are v4, v5e, v5p, v6e"),
        ("v5p:4x4", "has 3 axes"),
        ("v6e:2x2x2", "has 2 axes"),
        ("v6e:0x4", "at least one chip"),
        ("v5p-7", "counts cores"),
        ("v6e-12", "a power of two"),
        ("v5e-2", "a power of two"),
        ("v5p-48", "a multiple of 128"),
        ("v6e:16x32", "a pod of v6e has 256; write a smaller slice, and --slices"),
        ("v5p-99968", "a pod of v5p has 8960"),
    ],
)
def test_unknown_names_are_errors_that_say_what_to_write(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(name)


def test_number_of_slices_must_be_positive():
    with pytest.raises(ConfigError, match="slices=0"):
        parse_topology("v5p-128", slices=0)
