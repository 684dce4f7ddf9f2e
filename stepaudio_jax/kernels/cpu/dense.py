"""Matrix products and convolutions in the form that XLA's CPU backend runs fastest.

What JAX derives from `jnp.einsum` transposes both operands where two dimensions are summed, since
an einsum sums over dimensions in the order of their letters; and the gradient with respect to a
kernel comes with its dimensions in another order, and is transposed in a pass that recomputes
whatever the activations were made of. Here the product and both gradients are single matrix
products of arrays as they lie.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense(
    einsum: str, inputs: Float[Array, "..."], kernel: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Multiplies activations by a kernel; see `kernels.dense.dense`."""
    operands, _ = einsum.split("->")
    input_dims, kernel_dims = operands.split(",")
    return _dot_shared_dims(inputs, input_dims, kernel, kernel_dims)


def _forward(
    einsum: str, inputs: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return dense(einsum, inputs, kernel), (inputs, kernel)


def _backward(
    einsum: str, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = residuals
    operands, output_dims = einsum.split("->")
    _, kernel_dims = operands.split(",")
    d_inputs = _dot_shared_dims(gradient, output_dims, kernel, kernel_dims)
    return d_inputs, dense_kernel_grad(einsum, inputs, gradient)


dense.defvjp(_forward, _backward)


def dense_kernel_grad(
    einsum: str, inputs: Float[Array, "..."], gradient: Float[Array, "..."], *, dtype: Any = None
) -> Float[Array, "..."]:
    """Computes the gradient with respect to a kernel as one product of two matrices.

    See `kernels.dense.dense_kernel_grad`.
    """
    operands, output_dims = einsum.split("->")
    input_dims, _ = operands.split(",")
    num_batch_dims = sum(letter in output_dims for letter in input_dims)
    rows = math.prod(inputs.shape[:num_batch_dims])
    flat_inputs, flat_gradient = inputs.reshape(rows, -1), gradient.reshape(rows, -1)
    flat = jnp.einsum("TI,TO->IO", flat_inputs, flat_gradient, preferred_element_type=dtype)
    return flat.reshape(*inputs.shape[num_batch_dims:], *gradient.shape[num_batch_dims:])


def conv1d(
    x: Float[Array, "B frames inputs"], kernel: Float[Array, "3 inputs outputs"], stride: int
) -> Float[Array, "B out_frames outputs"]:
    """Computes `models.layers.conv1d` as the product of three shifted copies with the kernel."""
    out_frames = -(-x.shape[1] // stride)
    end = (out_frames - 1) * stride + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    windows = jnp.stack([padded[:, shift : shift + end : stride] for shift in range(3)], axis=2)
    return dense("BFWI,WIO->BFO", windows, kernel)


def _dot_shared_dims(
    left: jax.Array, left_dims: str, right: jax.Array, right_dims: str
) -> jax.Array:
    """Sums over the dimensions whose letters both have; returns left's others, then right's."""
    shared = [letter for letter in right_dims if letter in left_dims]
    dimensions = (
        [left_dims.index(letter) for letter in shared],
        [right_dims.index(letter) for letter in shared],
    )
    return jax.lax.dot_general(left, right, (dimensions, ((), ())))
