"""Matrix products of activations with kernels: plain einsums, but for one CPU."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from stepaudio_jax.kernels.cpu import dense as cpu_dense
from stepaudio_jax.kernels.partitioning import current_mesh, target_platform


def dense(
    einsum: str, inputs: Float[Array, "..."], kernel: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Multiplies activations by a kernel.

    Args:
        einsum: "batch inner,inner outer->batch outer", each of them any number of letters, for
            example "BTH,HND->BTND".
        inputs: the activations.
        kernel: in the dtype of the inputs.
    """
    if _is_single_cpu():
        return cpu_dense.dense(einsum, inputs, kernel)
    return jnp.einsum(einsum, inputs, kernel)


def dense_kernel_grad(
    einsum: str, inputs: Float[Array, "..."], gradient: Float[Array, "..."], *, dtype: Any = None
) -> Float[Array, "..."]:
    """Computes the gradient of `dense` with respect to its kernel.

    Args:
        einsum: that of the product.
        inputs: the activations that were multiplied.
        gradient: that with respect to the product's result.
        dtype: of the gradient; that of the operands if None.
    """
    if _is_single_cpu():
        return cpu_dense.dense_kernel_grad(einsum, inputs, gradient, dtype=dtype)
    operands, output_dims = einsum.split("->")
    input_dims, kernel_dims = operands.split(",")
    return jnp.einsum(
        f"{input_dims},{output_dims}->{kernel_dims}",
        inputs,
        gradient,
        preferred_element_type=dtype,
    )


def _is_single_cpu() -> bool:
    """Returns whether the program is for one CPU; on a mesh, flattening tokens gathers them."""
    return current_mesh() is None and target_platform() == "cpu"
