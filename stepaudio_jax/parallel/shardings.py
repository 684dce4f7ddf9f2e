"""Where every parameter lies: from its logical axes, by the rules, to a sharding."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.config import ShardingRules
from stepaudio_jax.errors import ConfigError


def parameter_shardings(axes: Any, parameters: Any, rules: ShardingRules, mesh: Mesh) -> Any:
    """Returns the sharding of every parameter of a tree.

    Args:
        axes: each leaf the tuple of a parameter's logical axes, as from `models.logical_axes`.
        parameters: the same tree, each leaf with a shape (arrays, or the abstract tree).
        rules: logical axis -> mesh axes.
        mesh: of the shardings.

    Raises:
        ConfigError: the rules cannot place a parameter; with its name, axis and sizes, all problems
            at once.
    """
    all_problems: list[str] = []

    def place(path: Any, names: tuple[str, ...], parameter: Any) -> NamedSharding:
        name = "/".join(str(key.key) for key in path)
        problems = _find_problems(names, parameter.shape, rules, mesh.shape)
        all_problems.extend(f"{name}: {problem}" for problem in problems)
        entries = (_spec_entry(rules, axis) for axis in names if not problems)
        return NamedSharding(mesh, PartitionSpec(*entries))

    shardings = jax.tree_util.tree_map_with_path(
        place, axes, parameters, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    if all_problems:
        raise ConfigError("; ".join(all_problems))
    return shardings


def batch_sharding(rules: ShardingRules, mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batch arrays: rows sharded, other dimensions replicated.

    Where a rule shards tokens, the model does it itself.
    """
    return NamedSharding(mesh, PartitionSpec(_spec_entry(rules, "batch")))


def num_batch_shards(rules: ShardingRules, mesh: Mesh) -> int:
    """Returns the number of parts into which a mesh shards a batch's rows, or an engine's slots."""
    return math.prod(mesh.shape[axis] for axis in rules.batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds."""
    return NamedSharding(mesh, PartitionSpec())


def _spec_entry(rules: ShardingRules, axis: str) -> tuple[str, ...] | None:
    return rules.mesh_axes(axis) or None


def _find_problems(
    names: tuple[str, ...],
    shape: tuple[int, ...],
    rules: ShardingRules,
    mesh_sizes: Mapping[str, int],
) -> list[str]:
    """Returns what keeps a parameter from being placed."""
    if len(names) != len(shape):
        return [
            f"{len(names)} logical axes {names} for the {len(shape)} dimensions of shape {shape}"
        ]
    problems = []
    taken: dict[str, str] = {}  # mesh axis -> the logical axis that is sharded over it
    for axis, size in zip(names, shape, strict=True):
        mesh_axes = rules.mesh_axes(axis)
        parts = math.prod(mesh_sizes[mesh_axis] for mesh_axis in mesh_axes)
        if size % parts:
            over = " x ".join(f"{mesh_axis}={mesh_sizes[mesh_axis]}" for mesh_axis in mesh_axes)
            problems.append(f"axis {axis!r} of size {size} cannot be sharded into {parts} ({over})")
        for mesh_axis in mesh_axes:
            if mesh_axis in taken and mesh_sizes[mesh_axis] > 1:
                problems.append(
                    f"axes {taken[mesh_axis]!r} and {axis!r} are both sharded over the mesh axis "
                    f"{mesh_axis!r}"
                )
            taken[mesh_axis] = axis
    return problems
