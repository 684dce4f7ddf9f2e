"""Names of slices, and what they mean."""

import pytest

from stepaudio_jax.config import ConfigError
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
    ],
)
def test_both_ways_of_naming_a_slice(name, kind, shape):
    assert parse_topology(name) == Topology(kind, shape)


def test_several_slices_count_together():
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
    ],
)
def test_other_names_are_errors_that_say_what_to_write(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(name)


def test_slices_are_positive():
    with pytest.raises(ConfigError, match="slices=0"):
        parse_topology("v5p-128", slices=0)
