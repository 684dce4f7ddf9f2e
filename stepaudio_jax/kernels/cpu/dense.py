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

Kernels = tuple[jax.Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense_each(einsum: str, inputs: jax.Array, kernels: Kernels) -> Kernels:
    """Multiplies activations by each of several kernels; see `kernels.dense.dense`."""
    operands, _ = einsum.split("->")
    input_dims, kernel_dims = operands.split(",")
    return tuple(_dot_shared_dims(inputs, input_dims, kernel, kernel_dims) for kernel in kernels)


def _forward(
    einsum: str, inputs: jax.Array, kernels: Kernels
) -> tuple[Kernels, tuple[jax.Array, Kernels]]:
    return dense_each(einsum, inputs, kernels), (inputs, kernels)


def _backward(
    einsum: str, residuals: tuple[jax.Array, Kernels], gradients: Kernels
) -> tuple[jax.Array, Kernels]:
    inputs, kernels = residuals
    operands, output_dims = einsum.split("->")
    _, kernel_dims = operands.split(",")
    first, *others = (
        _dot_shared_dims(gradient, output_dims, kernel, kernel_dims)
        for gradient, kernel in zip(gradients, kernels, strict=True)
    )
    d_inputs = sum(others, first)
    return d_inputs, tuple(dense_kernel_grad(einsum, inputs, gradient) for gradient in gradients)


dense_each.defvjp(_forward, _backward)


def dense_kernel_grad(
    einsum: str, inputs: jax.Array, gradient: jax.Array, *, dtype: Any = None
) -> jax.Array:
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
    return dense_each("BFWI,WIO->BFO", windows, (kernel,))[0]


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
