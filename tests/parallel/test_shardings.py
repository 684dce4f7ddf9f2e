"""Where parameters lie, and errors that name what cannot be placed.

After a wanted change: python -m tests.parallel.test_shardings > tests/parallel/shardings_32b.txt
"""

import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from stepaudio_jax.config import MESH_AXES, ModelConfig, ShardingRules
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.models import abstract_parameters, logical_axes
from stepaudio_jax.parallel import parameter_shardings

R1 = ModelConfig.presets()["r1_32b"]


def mesh(**sizes: int) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in MESH_AXES), MESH_AXES)


def specs(model: ModelConfig, **sizes: int) -> dict[str, PartitionSpec]:
    shardings = parameter_shardings(
        logical_axes(model), abstract_parameters(model), ShardingRules(), mesh(**sizes)
    )
    return {
        jax.tree_util.keystr(path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)
    }


def snapshot() -> str:
    """A line for each parameter of the 32 B model: shape, and mesh axes of each dimension."""
    shapes = jax.tree_util.tree_leaves_with_path(abstract_parameters(R1))
    by_path = specs(R1, data=2, fsdp=16, tensor=4)
    return "".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(leaf.shape)} "
        f"{[axes if axes else '-' for axes in by_path[jax.tree_util.keystr(path)]]}\n"
        for path, leaf in shapes
    )


def test_shardings_of_the_32b_model_equal_the_golden_file():
    golden = pathlib.Path(__file__).with_name("shardings_32b.txt").read_text(encoding="utf-8")
    assert snapshot() == golden


def test_every_large_parameter_of_the_32b_model_is_sharded_over_fsdp():
    shapes = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_parameters(R1))
    }
    for name, spec in specs(R1, fsdp=64).items():
        if np.prod(shapes[name].shape) > 10**6 and name != "['encoder']['positions']":
            assert any("fsdp" in (axes or ()) for axes in spec), name


def test_the_decoders_widths_are_sharded_over_tensor():
    by_path = specs(R1, fsdp=8, tensor=8)
    layers = "['decoder']['layers']"
    assert by_path[f"{layers}['attention']['query']['kernel']"] == PartitionSpec(
        None, "fsdp", "tensor", None
    )
    assert by_path[f"{layers}['attention']['output']['kernel']"] == PartitionSpec(
        None, "tensor", None, "fsdp"
    )
    assert by_path[f"{layers}['mlp']['up']['kernel']"] == PartitionSpec(
        None, None, ("tensor", "fsdp")
    )
    assert by_path[f"{layers}['mlp']['down']['kernel']"] == PartitionSpec(
        None, ("tensor", "fsdp"), None
    )
    assert by_path["['decoder']['embedding']"] == PartitionSpec("tensor", "fsdp")
    assert by_path["['decoder']['lm_head']['kernel']"] == PartitionSpec("fsdp", "tensor")


def test_a_size_that_cannot_be_sharded_is_named():
    with pytest.raises(
        ConfigError,
        match=r"decoder/layers/attention/key/kernel: axis 'kv_heads' of size 8 .* 16 \(tensor=16\)",
    ):
        specs(R1, tensor=16)


def test_two_axes_of_one_parameter_on_one_mesh_axis_are_named():
    rules = ShardingRules(ffn_embed=("fsdp",))
    message = "mlp/up/kernel: axes 'ffn_embed' and 'ffn_kernel' are both sharded over .*'fsdp'"
    with pytest.raises(ConfigError, match=message):
        parameter_shardings(logical_axes(R1), abstract_parameters(R1), rules, mesh(fsdp=8))


def test_axes_of_another_rank_are_named():
    parameters = {"weight": jax.ShapeDtypeStruct((4, 4), np.float32)}
    with pytest.raises(
        ConfigError,
        match=r"weight: 1 logical axes \('embed',\) for the 2 dimensions of shape \(4, 4\)",
    ):
        parameter_shardings({"weight": ("embed",)}, parameters, ShardingRules(), mesh(fsdp=2))


if __name__ == "__main__":
    print(snapshot(), end="")
