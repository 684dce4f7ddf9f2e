"""Matrix products of activations with kernels.

They are plain einsums, except where another form was measured to be better: on a mesh, where it
takes less memory (`_einsum_freeing_kernels`), and on a single CPU, where it is faster.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stepaudio_jax.kernels.cpu import dense as cpu_dense
from stepaudio_jax.kernels.partitioning import current_mesh, target_platform

Kernels = tuple[Float[Array, "..."], ...]


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
    return dense_each(einsum, inputs, (kernel,))[0]


def dense_each(einsum: str, inputs: Float[Array, "..."], kernels: Kernels) -> Kernels:
    """Multiplies the same activations by each of several kernels of one shape; see `dense`."""
    if current_mesh() is not None:
        return _einsum_freeing_kernels(einsum, inputs, kernels)
    if _is_single_cpu():
        return tuple(cpu_dense.dense(einsum, inputs, kernel) for kernel in kernels)
    return tuple(jnp.einsum(einsum, inputs, kernel) for kernel in kernels)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_freeing_kernels(einsum: str, inputs: jax.Array, kernels: Kernels) -> Kernels:
    """Computes `dense_each` such that its backward pass frees gathered kernels early.

    Kernels are sharded over the mesh, and gathered for the gradient with respect to the inputs. A
    barrier has that gradient computed first, so that the gathered kernels can be freed before the
    gradients with respect to the kernels, which are as large. With it a plan of the 32 B decoder
    for v6e:16x16 (256 rows of 4096 tokens, little effort, libtpu 0.0.42.1) takes 9.85 GB a chip,
    and 10.53 GB with einsums as JAX differentiates them. For v5p:4x4x4 and v5e:16x16 the latter
    take less, 22.10 instead of 22.67 GB and 9.66 instead of 9.91 GB; but those have room.
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


def _is_single_cpu() -> bool:
    """Returns whether the program is for one CPU; on a mesh, flattening tokens gathers them."""
    return current_mesh() is None and target_platform() == "cpu"
