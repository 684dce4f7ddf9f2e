"""The layers that encoder, adaptor and decoder share.

A parameter is declared once, by dimension letters: `Projection("BTH,HND->BTND", ...)` fixes the
kernel's shape [H,N,D], its bias's shape [N,D] and the logical axes of both. Everything derived from
the parameters (initial values, shardings, checkpoint layout) follows from that declaration.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from stepaudio_jax.config import ComputeConfig
from stepaudio_jax.kernels.partitioning import current_mesh

# Rotary position embedding in the rotate-half form of Qwen2 (Su et al. 2021, section 3.4).


def rope_cos_sin(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of position * theta^(-2i / D): positions [B,T] -> two fp32 arrays [B,T,1,D/2]."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim

    def waves(exponents: jax.Array) -> tuple[jax.Array, jax.Array]:
        angles = positions.astype(jnp.float32)[:, :, None, None] * theta**-exponents
        return jnp.cos(angles), jnp.sin(angles)

    # In a loop of two rounds, since the compiler fuses what is outside of loops into all that uses
    # it: it would compute cosines and sines again in every layer for every head, which takes a CPU
    # longer than all rotations together.
    halves = jax.lax.map(waves, exponents.reshape(math.gcd(2, exponents.size), -1))
    cos, sin = (jnp.concatenate(list(half), axis=-1) for half in halves)
    return cos, sin


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair (x[i], x[i + D/2]) of x [B,T,N,D] by its angle, in fp32; returns x's dtype."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


# What each dimension letter of a parameter means; rules map these names to mesh axes.
LOGICAL_AXES: Mapping[str, str] = {
    "L": "layers",
    "V": "vocab",
    "H": "embed",
    "N": "heads",
    "A": "encoder_heads",
    "K": "kv_heads",
    "D": "head_dim",
    "E": "ffn_embed",  # the model's hidden size beside the feed-forward width
    "F": "ffn_kernel",
    "M": "mel_bins",
    "P": "positions",
    "W": "conv_width",
    "I": "conv_input",
    "R": "rank",
    "O": "embed",  # the model's hidden size where it is an output beside an input of the same size
}

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]
Sizes = Mapping[str, int]


def parameter(
    rngs: nnx.Rngs,
    letters: str,
    sizes: Sizes,
    initializer: Initializer,
    dtype: jnp.dtype,
    *,
    contracting_dims: str = "",
) -> nnx.Param:
    """A parameter of shape `[sizes[letter] for letter in letters]`.

    Its metadata says what it is: `axes`, the logical name of each dimension, and
    `contracting_dims`, the dimensions that a matrix product with it sums over (none for biases,
    norms and tables).
    """
    shape = tuple(sizes[letter] for letter in letters)
    axes = tuple(LOGICAL_AXES[letter] for letter in letters)
    summed = tuple(letters.index(letter) for letter in contracting_dims)
    return nnx.Param(initializer(rngs.params(), shape, dtype), axes=axes, contracting_dims=summed)


def normal(stddev: float) -> Initializer:
    """Normal distribution with mean 0."""
    return jax.nn.initializers.normal(stddev)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """All ones."""
    return jnp.ones(shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """All zeros."""
    return jnp.zeros(shape, dtype)


class Projection(nnx.Module):
    """A linear map written as an einsum, with a bias over its output dimensions where asked.

    Args:
        einsum: "inputs,kernel->outputs" in dimension letters, for example "BTH,HND->BTND".
        sizes: the size of every letter of the kernel.
        stack: number of layers stacked in front of the kernel (0: not stacked). A stacked
            projection is applied after its layer's slice has been taken, so the einsum never
            mentions L.
        init_scale: multiplies the initial standard deviation, 1 / sqrt(fan in).
    """

    def __init__(
        self,
        einsum: str,
        sizes: Sizes,
        *,
        use_bias: bool,
        stack: int = 0,
        init_scale: float = 1.0,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        inputs, outputs = einsum.split("->")
        kernel = inputs.split(",")[1]
        bias = "".join(letter for letter in kernel if letter in outputs)
        prefix, sizes = _stacked(stack, sizes)
        contracting_dims = "".join(letter for letter in kernel if letter not in outputs)
        initial = normal(
            init_scale / math.sqrt(math.prod(sizes[letter] for letter in contracting_dims))
        )
        self.einsum = einsum
        self.kernel = parameter(
            rngs, prefix + kernel, sizes, initial, param_dtype, contracting_dims=contracting_dims
        )
        self.bias = parameter(rngs, prefix + bias, sizes, zeros, param_dtype) if use_bias else None

    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel: Any = self.kernel[...]
        if isinstance(kernel, LoRAKernel):
            outputs = kernel.project(self.einsum, inputs)
        else:
            outputs = dense(self.einsum, inputs, kernel.astype(inputs.dtype))
        return self.add_bias(outputs)

    def add_bias(self, outputs: jax.Array) -> jax.Array:
        """What the kernel has made of the inputs, and the bias where there is one."""
        return outputs if self.bias is None else outputs + self.bias[...].astype(outputs.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRAKernel:
    """A projection's kernel that is a sum: kernel + down up (see `models.low_rank`).

    Attributes:
        kernel: as the projection has it, its inputs' dimensions in front of its outputs'.
        down: the inputs' dimensions, then the rank.
        up: the rank, then the outputs' dimensions; the product's scale is part of it.
    """

    kernel: jax.Array
    down: jax.Array
    up: jax.Array

    @property
    def ndim(self) -> int:
        """Dimensions of the kernel."""
        return self.kernel.ndim

    def __getitem__(self, index: Any) -> "LoRAKernel":
        if index is not Ellipsis:
            raise TypeError("only the whole of a LoRAKernel can be taken")
        return self

    def project(self, einsum: str, inputs: jax.Array) -> jax.Array:
        """The projection of inputs, without the product ever being formed."""
        operands, outputs = einsum.split("->")
        given, kernel = operands.split(",")
        summed = "".join(letter for letter in kernel if letter not in outputs)
        kept = "".join(letter for letter in given if letter not in summed)
        dtype = inputs.dtype
        down_outputs = dense(f"{given},{summed}R->{kept}R", inputs, self.down.astype(dtype))
        added = dense(
            f"{kept}R,R{kernel.removeprefix(summed)}->{outputs}",
            down_outputs,
            self.up.astype(dtype),
        )
        return dense(einsum, inputs, self.kernel.astype(dtype)) + added


def fused_dense(inputs: jax.Array, *projections: Projection) -> tuple[jax.Array, ...]:
    """What projections of one einsum make of the same inputs; see `dense_each` for why together."""
    kernels: list[Any] = [projection.kernel[...] for projection in projections]
    if any(isinstance(kernel, LoRAKernel) for kernel in kernels):
        return tuple(projection(inputs) for projection in projections)
    outputs = dense_each(
        projections[0].einsum, inputs, tuple(kernel.astype(inputs.dtype) for kernel in kernels)
    )
    return tuple(
        projection.add_bias(output) for projection, output in zip(projections, outputs, strict=True)
    )


def dense(einsum: str, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """An einsum of activations and a kernel: "batch inner,inner outer->batch outer", each any number of letters."""
    return dense_each(einsum, inputs, (kernel,))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense_each(
    einsum: str, inputs: jax.Array, kernels: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """`dense` with each of several kernels.

    It and its gradients are single matrix products of arrays as they lie. `jnp.einsum` sums over
    dimensions in the order of their letters, for which the CPU backend turns both operands around.
    What JAX derives gives the kernel's gradient with its dimensions in another order and turns it,
    and the activations besides, in a pass that computes whatever led to them again. On a mesh, the
    gradient to the inputs is made first: kernels that were gathered for it are let go before their
    gradients, as large, are made.
    """
    given, _ = einsum.split("->")
    left, right = given.split(",")
    return tuple(_dot_shared_dims(inputs, left, kernel, right) for kernel in kernels)


def _dot_shared_dims(
    one: jax.Array, letters: str, other: jax.Array, other_letters: str
) -> jax.Array:
    """The product summed over the letters that both have: what `one` has left in front of what `other` has left."""
    both = [letter for letter in other_letters if letter in letters]
    dimensions = (
        [letters.index(letter) for letter in both],
        [other_letters.index(letter) for letter in both],
    )
    return jax.lax.dot_general(one, other, (dimensions, ((), ())))


_Kernels = tuple[jax.Array, ...]


def _dense_forward(
    einsum: str, inputs: jax.Array, kernels: _Kernels
) -> tuple[_Kernels, tuple[jax.Array, _Kernels]]:
    return dense_each(einsum, inputs, kernels), (inputs, kernels)


def _dense_backward(
    einsum: str, saved: tuple[jax.Array, _Kernels], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, _Kernels]:
    inputs, kernels = saved
    given, out = einsum.split("->")
    _, right = given.split(",")
    first, *others = (
        _dot_shared_dims(gradient, out, kernel, right)
        for gradient, kernel in zip(gradients, kernels, strict=True)
    )
    to_inputs = sum(others, first)
    if current_mesh() is not None:
        gradients, to_inputs = jax.lax.optimization_barrier((gradients, to_inputs))
    return to_inputs, tuple(dense_kernel_grad(einsum, inputs, gradient) for gradient in gradients)


def dense_kernel_grad(
    einsum: str, inputs: jax.Array, gradient: jax.Array, *, dtype: Any = None
) -> jax.Array:
    """The gradient to the kernel of `dense`, from that to its result, as one product of two matrices.

    It is computed in `dtype`, where one is given, and else in that of its operands.
    """
    given, out = einsum.split("->")
    left, right = given.split(",")
    if current_mesh() is not None:  # laying tokens end to end would gather those cut over a mesh
        return jnp.einsum(f"{left},{out}->{right}", inputs, gradient, preferred_element_type=dtype)
    batch = sum(letter in out for letter in left)
    rows = math.prod(inputs.shape[:batch])
    operands = inputs.reshape(rows, -1), gradient.reshape(rows, -1)
    flat = jnp.einsum("TI,TO->IO", *operands, preferred_element_type=dtype)
    return flat.reshape(*inputs.shape[batch:], *gradient.shape[batch:])


dense_each.defvjp(_dense_forward, _dense_backward)


class Conv(nnx.Module):
    """One-dimensional convolution of width 3, one frame of zeros on each side: [B,F,I] -> [B, ceil(F / stride), O].

    Written as three shifted matrix products: the same arithmetic as a convolution, and faster on
    CPU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        letters: str,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        sizes = {"W": 3, letters[1]: inputs, letters[2]: outputs}
        self.stride = stride
        initial = normal(1 / math.sqrt(3 * inputs))
        self.kernel = parameter(
            rngs, letters, sizes, initial, param_dtype, contracting_dims=letters[:2]
        )
        self.bias = parameter(rngs, letters[2], sizes, zeros, param_dtype)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        frames = -(-inputs.shape[1] // self.stride)
        last = (frames - 1) * self.stride + 1
        padded = jnp.pad(inputs, ((0, 0), (1, 1), (0, 0)))
        windows = jnp.stack(
            [padded[:, shift : shift + last : self.stride] for shift in range(3)], axis=2
        )
        outputs = dense("BFWI,WIO->BFO", windows, self.kernel[...].astype(inputs.dtype))
        return outputs + self.bias[...].astype(inputs.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in fp32 (Zhang and Sennrich 2019, eq. 4); called with the dtype of the result."""

    def __init__(
        self, size: int, *, eps: float, stack: int = 0, param_dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        prefix, sizes = _stacked(stack, {"H": size})
        self.eps = eps
        self.scale = parameter(rngs, prefix + "H", sizes, ones, param_dtype)

    def __call__(self, inputs: jax.Array, dtype: Any) -> jax.Array:
        x = inputs.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        # The scale is applied in the compute dtype, as Qwen2 does.
        return x.astype(dtype) * self.scale[...].astype(dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / std * scale + bias over the last axis, in fp32."""

    def __init__(
        self, size: int, *, eps: float, stack: int = 0, param_dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        prefix, sizes = _stacked(stack, {"H": size})
        self.eps = eps
        self.scale = parameter(rngs, prefix + "H", sizes, ones, param_dtype)
        self.bias = parameter(rngs, prefix + "H", sizes, zeros, param_dtype)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = inputs.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        x = x * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return x.astype(inputs.dtype)


def _stacked(stack: int, sizes: Sizes) -> tuple[str, Sizes]:
    return ("L", {**sizes, "L": stack}) if stack else ("", sizes)


# Applying a stack of layers, whose parameters carry a leading layer axis, as a scan.

LayerT = TypeVar("LayerT", bound=nnx.Module)


def scan_layers(
    layers: LayerT,
    apply: Callable[[LayerT, jax.Array, Any], tuple[jax.Array, Any]],
    x: jax.Array,
    per_layer: Any = None,
    *,
    compute: ComputeConfig,
) -> tuple[jax.Array, Any]:
    """Runs x through every layer in turn.

    Compile time is that of one layer. (nnx.scan is not used: the split is explicit here, so the
    parameters stay plain arrays.)

    Args:
        layers: one module whose parameters are stacked [L, ...].
        apply: (layer, x, its slice of per_layer) -> (x, its output).
        x: the activations that flow through.
        per_layer: a pytree of [L, ...] arrays, one slice for each layer, or None.
        compute: `remat` says what is kept for the backward pass beside each layer's input, `unroll`
            how many layers the loop's body has.

    Returns:
        The last layer's x, and the outputs stacked [L, ...].
    """
    graphdef, parameters = nnx.split(layers)
    length = jax.tree.leaves(parameters)[0].shape[0]

    def body(x: jax.Array, inputs: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        layer_parameters, layer_inputs = inputs
        return apply(nnx.merge(graphdef, layer_parameters), x, layer_inputs)

    if compute.remat != "none":
        body = jax.checkpoint(body, prevent_cse=False, policy=_policy(compute))
    return jax.lax.scan(body, x, (parameters, per_layer), unroll=compute.unroll or length)


def _policy(compute: ComputeConfig) -> Any:
    """Which intermediate results, by the names that layers give them (`checkpoint_name`), are not computed again."""
    policies = jax.checkpoint_policies
    match compute.remat:
        case "save":
            named = policies.save_only_these_names(*compute.remat_names)
            return (
                policies.save_from_both_policies(named, is_cudnn_attention)
                if "attn_out" in compute.remat_names
                else named
            )
        case "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=list(compute.remat_names),
                offload_src="device",
                offload_dst="pinned_host",
            )
        case _:
            return policies.nothing_saveable


def is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether it is cuDNN's attention, whose result is "attn_out" too: JAX calls it where it cannot be given that name."""
    return bool(primitive.name.startswith("dot_product_attention_fwd"))
