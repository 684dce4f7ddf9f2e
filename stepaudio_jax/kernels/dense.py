"""Matrix products of activations with kernels.

They are plain einsums, except where another form was measured to be better: on a mesh, where it
takes less memory (`_einsum_freeing_kernels`), and on a CPU, where it is faster (`cpu.dense`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from stepaudio_jax.kernels.cpu import dense as cpu_dense
from stepaudio_jax.kernels.partitioning import current_mesh, target_platform

Kernels = tuple[jax.Array, ...]


def dense(einsum: str, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies activations by a kernel.

    Args:
        einsum: "batch inner,inner outer->batch outer", each of them any number of letters, for
            example "BTH,HND->BTND".
        inputs: the activations.
        kernel: in the dtype of the inputs.
    """
    return dense_each(einsum, inputs, (kernel,))[0]


def dense_each(einsum: str, inputs: jax.Array, kernels: Kernels) -> tuple[jax.Array, ...]:
    """Multiplies the same activations by each of several kernels of one shape; see `dense`."""
    if current_mesh() is not None:
        return _einsum_freeing_kernels(einsum, inputs, kernels)
    if target_platform() == "cpu":
        return cpu_dense.dense_each(einsum, inputs, kernels)
    return tuple(jnp.einsum(einsum, inputs, kernel) for kernel in kernels)


def dense_kernel_grad(
    einsum: str, inputs: jax.Array, gradient: jax.Array, *, dtype: Any = None
) -> jax.Array:
    """Computes the gradient of `dense` with respect to its kernel.

    Args:
        einsum: that of the product.
        inputs: the activations that were multiplied.
        gradient: that with respect to the product's result.
        dtype: of the gradient; that of the operands if None.
    """
    if current_mesh() is None and target_platform() == "cpu":
        return cpu_dense.dense_kernel_grad(einsum, inputs, gradient, dtype=dtype)
    operands, output_dims = einsum.split("->")
    input_dims, kernel_dims = operands.split(",")
    return jnp.einsum(
        f"{input_dims},{output_dims}->{kernel_dims}",
        inputs,
        gradient,
        preferred_element_type=dtype,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_freeing_kernels(einsum: str, inputs: jax.Array, kernels: Kernels) -> Kernels:
    """Computes `dense_each` such that its backward pass frees gathered kernels early.

    Kernels are cut over the mesh and gathered for the gradient with respect to the inputs. The
    barrier makes that gradient first, so that the gathered kernels are freed before the gradients
    with respect to the kernels, which are as large, are computed. Without it the compiler holds
    both: for the 32 B decoder on v5p:4x4x4 (libtpu 0.0.42.1) 0.2 GB more a chip, and where the two
    kernels of a gated feed-forward layer are not in one call, another 0.4 GB.
    """
    return tuple(jnp.einsum(einsum, inputs, kernel) for kernel in kernels)


def _forward(
    einsum: str, inputs: jax.Array, kernels: Kernels
) -> tuple[Kernels, tuple[jax.Array, Kernels]]:
    return _einsum_freeing_kernels(einsum, inputs, kernels), (inputs, kernels)


def _backward(
    einsum: str, residuals: tuple[jax.Array, Kernels], gradients: Kernels
) -> tuple[jax.Array, Kernels]:
    inputs, kernels = residuals
    operands, output_dims = einsum.split("->")
    input_dims, kernel_dims = operands.split(",")
    first, *others = (
        jnp.einsum(f"{output_dims},{kernel_dims}->{input_dims}", gradient, kernel)
        for gradient, kernel in zip(gradients, kernels, strict=True)
    )
    d_inputs = sum(others, first)
    gradients, d_inputs = jax.lax.optimization_barrier((gradients, d_inputs))
    return d_inputs, tuple(dense_kernel_grad(einsum, inputs, gradient) for gradient in gradients)


_einsum_freeing_kernels.defvjp(_forward, _backward)
