"""Telling the compiler where activations lie, in the dimension letters of the einsums."""

from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from stepaudio_jax.config import ShardingRules

# The logical axis of each dimension letter of an activation; others (H hidden, D head_dim) are
# whole on every device.
ACTIVATION_AXES: Mapping[str, str] = {
    "B": "batch",
    "T": "tokens",
    "N": "heads",
    "K": "kv_heads",
    "A": "encoder_heads",
    "F": "ffn",
    "V": "vocab",
}


def current_mesh() -> AbstractMesh | None:
    """The mesh of `jax.set_mesh`; None where none is set, or it is a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def activation_spec(letters: str | tuple[str | None, ...], rules: ShardingRules) -> PartitionSpec:
    """The mesh axes of each dimension of an activation."""
    return PartitionSpec(
        *(rules.mesh_axes(ACTIVATION_AXES.get(letter or "", letter)) or None for letter in letters)
    )


def constrain(
    x: jax.Array, letters: str | tuple[str | None, ...], rules: ShardingRules
) -> jax.Array:
    """`x`, laid out by the rules on the mesh in use; unchanged where there is none."""
    if current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(letters, rules))
