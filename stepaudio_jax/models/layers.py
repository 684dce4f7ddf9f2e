"""The layers that encoder, adaptor and decoder share, and the scan over a stack of them.

A parameter is declared once: `Projection("BTH,HND->BTND", axes=("embed", "heads", "head_dim"),
dim_sizes={"H": 5120, "N": 40, "D": 128})` fixes the kernel's shape [H,N,D], its bias's shape [N,D]
and the logical axes of both. Initial values, shardings and the layout of checkpoints follow from
that declaration.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import ComputeConfig
from stepaudio_jax.kernels.cpu import dense as cpu_dense
from stepaudio_jax.kernels.cpu import elementwise as cpu_elementwise
from stepaudio_jax.kernels.cudnn import is_cudnn_attention
from stepaudio_jax.kernels.dense import dense, dense_each
from stepaudio_jax.kernels.partitioning import target_platform

Rope = tuple[Float[Array, "B T 1 half_dim"], Float[Array, "B T 1 half_dim"]]
"""Cosines and sines of the rotary embedding, fp32; half_dim is D / 2."""

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


class Projection(nnx.Module):
    """A linear map written as an einsum, with a bias over its output dimensions where asked.

    Args:
        einsum: "inputs,kernel->outputs", for example "BTH,HND->BTND".
        axes: the logical axis of each of the kernel's dimensions.
        dim_sizes: the size of every letter of the kernel.
        use_bias: whether a bias is added.
        stack: number of layers stacked in front of the kernel (0: not stacked). A stacked
            projection is applied after its layer's slice has been taken, so the einsum never
            mentions the layers.
        init_scale: multiplies the initial standard deviation, 1 / sqrt(fan in).
        param_dtype: dtype of kernel and bias.
        rngs: random numbers for the initial values.
    """

    def __init__(
        self,
        einsum: str,
        *,
        axes: tuple[str, ...],
        dim_sizes: Mapping[str, int],
        use_bias: bool,
        stack: int = 0,
        init_scale: float = 1.0,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        operands, output_dims = einsum.split("->")
        kernel_dims = operands.split(",")[1]
        shape = tuple(dim_sizes[letter] for letter in kernel_dims)
        contracting_dims = tuple(
            index for index, letter in enumerate(kernel_dims) if letter not in output_dims
        )
        fan_in = math.prod(shape[index] for index in contracting_dims)
        options: dict[str, Any] = {"stack": stack, "dtype": param_dtype, "rngs": rngs}
        self.einsum = einsum
        self.kernel = parameter(
            shape,
            axes,
            normal(init_scale / math.sqrt(fan_in)),
            contracting_dims=contracting_dims,
            **options,
        )
        outputs = [index for index in range(len(shape)) if index not in contracting_dims]
        self.bias = (
            parameter(
                tuple(shape[index] for index in outputs),
                tuple(axes[index] for index in outputs),
                zeros,
                **options,
            )
            if use_bias
            else None
        )

    def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel: Any = self.kernel[...]
        if isinstance(kernel, LoRAKernel):
            outputs = kernel.project(self.einsum, inputs)
        else:
            outputs = dense(self.einsum, inputs, kernel.astype(inputs.dtype))
        return self.add_bias(outputs)

    def add_bias(self, outputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """Adds the bias, if there is one, to the product of inputs and kernel."""
        return outputs if self.bias is None else outputs + self.bias[...].astype(outputs.dtype)


def fused_dense(
    inputs: Float[Array, "..."], *projections: Projection
) -> tuple[Float[Array, "..."], ...]:
    """Applies several projections with one einsum to the same inputs.

    On a mesh, their gathered kernels are then freed together; see `kernels.dense`.
    """
    kernels: list[Any] = [projection.kernel[...] for projection in projections]
    if any(isinstance(kernel, LoRAKernel) for kernel in kernels):
        return tuple(projection(inputs) for projection in projections)
    outputs = dense_each(
        projections[0].einsum, inputs, tuple(kernel.astype(inputs.dtype) for kernel in kernels)
    )
    return tuple(
        projection.add_bias(output) for projection, output in zip(projections, outputs, strict=True)
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRAKernel:
    """A projection's kernel with an adapter beside it: kernel + down up (see `models.lora`).

    Attributes:
        kernel: as the projection has it, input dimensions in front of output dimensions; an array,
            or a quantized one.
        down: the input dimensions, then the rank.
        up: the rank, then the output dimensions; the adapter's scale is part of it.
    """

    kernel: Any
    down: Any
    up: Any

    @property
    def ndim(self) -> int:
        """Returns the number of dimensions of the kernel."""
        return self.kernel.ndim

    def __getitem__(self, index: Any) -> "LoRAKernel":
        if index is not Ellipsis:
            raise TypeError("a LoRAKernel cannot be sliced")
        return self

    def project(self, einsum: str, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the projection without ever forming the product of down and up."""
        operands, output_dims = einsum.split("->")
        input_dims, kernel_dims = operands.split(",")
        summed = "".join(letter for letter in kernel_dims if letter not in output_dims)
        batch = "".join(letter for letter in input_dims if letter not in summed)
        dtype = inputs.dtype
        down = dense(f"{input_dims},{summed}R->{batch}R", inputs, self.down.astype(dtype))
        added = dense(
            f"{batch}R,R{kernel_dims.removeprefix(summed)}->{output_dims}",
            down,
            self.up.astype(dtype),
        )
        return dense(einsum, inputs, self.kernel.astype(dtype)) + added


class Conv(nnx.Module):
    """One-dimensional convolution of width 3 with one frame of zeros on each side.

    Args:
        inputs: channels of the inputs.
        outputs: channels of the outputs.
        stride: in frames.
        axes: the logical axis of the input and of the output channels.
        param_dtype: dtype of kernel and bias.
        rngs: random numbers for the initial values.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        axes: tuple[str, str],
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.kernel = parameter(
            (3, inputs, outputs),
            ("conv_width", *axes),
            normal(1 / math.sqrt(3 * inputs)),
            contracting_dims=(0, 1),
            dtype=param_dtype,
            rngs=rngs,
        )
        self.bias = parameter((outputs,), axes[1:], zeros, dtype=param_dtype, rngs=rngs)

    def __call__(
        self, inputs: Float[Array, "B frames inputs"]
    ) -> Float[Array, "B out_frames outputs"]:
        """Convolves frames; out_frames is ceil(frames / stride)."""
        outputs = conv1d(inputs, self.kernel[...].astype(inputs.dtype), self.stride)
        return outputs + self.bias[...].astype(inputs.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in fp32 (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(
        self, size: int, *, eps: float, stack: int = 0, param_dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.eps = eps
        self.scale = parameter((size,), ("embed",), ones, stack=stack, dtype=param_dtype, rngs=rngs)

    def __call__(self, inputs: Float[Array, "... H"], dtype: Any) -> Float[Array, "... H"]:
        """Normalizes the inputs; returns `dtype`, in which the scale is applied, as Qwen2 does."""
        x = inputs.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return x.astype(dtype) * self.scale[...].astype(dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / std * scale + bias over the last axis, in fp32 (Ba et al. 2016)."""

    def __init__(
        self, size: int, *, eps: float, stack: int = 0, param_dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        options: dict[str, Any] = {"stack": stack, "dtype": param_dtype, "rngs": rngs}
        self.eps = eps
        self.scale = parameter((size,), ("embed",), ones, **options)
        self.bias = parameter((size,), ("embed",), zeros, **options)

    def __call__(self, inputs: Float[Array, "... H"]) -> Float[Array, "... H"]:
        """Normalizes the inputs; returns their dtype."""
        x = inputs.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        x = x * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return x.astype(inputs.dtype)


def rope_cos_sin(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Rope:
    """Computes cosines and sines of position * theta^(-2i / D), i from 0 to D/2 - 1, in fp32.

    The two halves of them are computed in a loop. XLA fuses what is outside of loops into all that
    uses it: it would compute cosines and sines again in every layer for every head, which takes a
    CPU longer than all rotations together. On a TPU the loop saves memory: a plan of the 32 B
    decoder (4096 tokens a chip, libtpu 0.0.42.1) takes 10.15 GB a chip of v5e:16x16 with it, and
    10.27 GB without.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim

    def cos_sin(exponents: Float[Array, " half"]) -> tuple[jax.Array, jax.Array]:
        angles = positions.astype(jnp.float32)[:, :, None, None] * theta**-exponents
        return jnp.cos(angles), jnp.sin(angles)

    halves = jax.lax.map(cos_sin, exponents.reshape(math.gcd(2, exponents.size), -1))
    cos, sin = (jnp.concatenate(list(half), axis=-1) for half in halves)
    return cos, sin


def apply_rope(x: Float[Array, "B T N D"], rope: Rope) -> Float[Array, "B T N D"]:
    """Rotates each pair (x[i], x[i + D/2]) by its angle, in fp32; returns x's dtype.

    This is the rotate-half form of Qwen2 (Su et al. 2021, section 3.4).
    """
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes the exact GELU, x / 2 (1 + erf(x / sqrt 2)), in fp32; returns x's dtype.

    Hendrycks and Gimpel 2016, eq. 1.
    """
    if target_platform() == "cpu":
        return cpu_elementwise.gelu(x)
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def conv1d(
    x: Float[Array, "B frames inputs"], kernel: Float[Array, "3 inputs outputs"], stride: int
) -> Float[Array, "B out_frames outputs"]:
    """Convolves frames with a kernel of width 3, one frame of zeros on each side."""
    if target_platform() == "cpu":
        return cpu_dense.conv1d(x, kernel, stride)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
    )


def parameter(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    initializer: Initializer,
    *,
    contracting_dims: tuple[int, ...] = (),
    stack: int = 0,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Param:
    """Returns a new parameter, with metadata that says what its dimensions are.

    Args:
        shape: of one layer's parameter.
        axes: the logical axis of each dimension; rules map these names to mesh axes.
        initializer: draws the initial values.
        contracting_dims: the dimensions that a matrix product with it sums over; none for biases,
            norms and tables.
        stack: number of layers, whose parameters are stacked along a first dimension (0: none).
        dtype: the parameter's dtype.
        rngs: random numbers for the initial values.
    """
    if stack:
        shape, axes = (stack, *shape), ("layers", *axes)
        contracting_dims = tuple(index + 1 for index in contracting_dims)
    values = initializer(rngs.params(), shape, dtype)
    return nnx.Param(values, axes=axes, contracting_dims=contracting_dims)


def normal(stddev: float) -> Initializer:
    """Returns an initializer that draws from the normal distribution with mean 0."""
    return jax.nn.initializers.normal(stddev)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Returns ones; an initializer."""
    return jnp.ones(shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Returns zeros; an initializer."""
    return jnp.zeros(shape, dtype)


LayerT = TypeVar("LayerT", bound=nnx.Module)


def scan_layers(
    layers: LayerT,
    apply: Callable[[LayerT, Float[Array, "..."], Any], tuple[Float[Array, "..."], Any]],
    x: Float[Array, "..."],
    per_layer: Any = None,
    *,
    compute: ComputeConfig,
) -> tuple[Float[Array, "..."], Any]:
    """Runs x through every layer in turn, with the compile time of one layer.

    nnx.scan is not used: the split is explicit here, so the parameters stay plain arrays.

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
        body = jax.checkpoint(body, prevent_cse=False, policy=_remat_policy(compute))
    return jax.lax.scan(body, x, (parameters, per_layer), unroll=compute.unroll or length)


def _remat_policy(compute: ComputeConfig) -> Any:
    """Returns the policy that saves or offloads what layers have named by `checkpoint_name`."""
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
