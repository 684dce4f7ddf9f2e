"""The forms for CPUs against the plain ones, and which of them a program gets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from stepaudio_jax.kernels import dense
from stepaudio_jax.kernels.cpu import dense as cpu_dense
from stepaudio_jax.kernels.cpu import elementwise as cpu_elementwise
from stepaudio_jax.kernels.partitioning import target_platform
from stepaudio_jax.models import layers

TPU_MESH = AbstractMesh(
    (1,),
    ("data",),
    axis_types=(AxisType.Auto,),
    abstract_device=AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu"),
)
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
EINSUMS = [
    ("BTH,HF->BTF", (2, 5, 12), (12, 7)),
    ("BTH,HND->BTND", (2, 5, 12), (12, 3, 4)),
    ("BTND,NDH->BTH", (2, 5, 3, 4), (3, 4, 12)),
]


@DTYPES
@pytest.mark.parametrize(("einsum", "input_shape", "kernel_shape"), EINSUMS)
def test_dense_equals_an_einsum(einsum, input_shape, kernel_shape, dtype, tolerance):
    inputs, kernel = normal(dtype, input_shape, kernel_shape)
    plain = on_tpu(functools.partial(dense.dense, einsum))
    cpu = functools.partial(cpu_dense.dense, einsum)
    expected = value_and_gradients(plain, inputs, kernel)
    assert_close(value_and_gradients(cpu, inputs, kernel), expected, tolerance)


@pytest.mark.parametrize(("einsum", "input_shape", "kernel_shape"), EINSUMS)
def test_einsums_on_a_mesh_have_the_plain_gradients(einsum, input_shape, kernel_shape):
    operands = normal(jnp.float32, input_shape, kernel_shape, kernel_shape)

    def plain(inputs, *kernels):
        return tuple(jnp.einsum(einsum, inputs, kernel) for kernel in kernels)

    def on_mesh(inputs, *kernels):
        return dense._einsum_freeing_kernels(einsum, inputs, kernels)

    expected = value_and_gradients(plain, *operands)
    assert_close(value_and_gradients(on_mesh, *operands), expected, 1e-5)


@pytest.mark.parametrize(("einsum", "input_shape", "kernel_shape"), EINSUMS)
def test_a_kernels_gradient_is_given_in_the_dtype_asked_for(einsum, input_shape, kernel_shape):
    (inputs, kernel) = normal(jnp.bfloat16, input_shape, kernel_shape)
    (gradient,) = normal(jnp.bfloat16, jnp.einsum(einsum, inputs, kernel).shape)
    result = cpu_dense.dense_kernel_grad(einsum, inputs, gradient, dtype=jnp.float32)
    plain = on_tpu(dense.dense_kernel_grad)(einsum, inputs, gradient, dtype=jnp.float32)
    assert result.dtype == plain.dtype == jnp.float32
    assert_close(result, plain, 1e-5)


@DTYPES
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 9, 10])
def test_conv1d_equals_xlas_convolution(frames, stride, dtype, tolerance):
    x, kernel = normal(dtype, (2, frames, 6), (3, 6, 4))
    plain = on_tpu(functools.partial(layers.conv1d, stride=stride))
    cpu = functools.partial(cpu_dense.conv1d, stride=stride)
    expected = value_and_gradients(plain, x, kernel)
    assert expected[0].shape == (2, -(-frames // stride), 4)
    assert_close(value_and_gradients(cpu, x, kernel), expected, tolerance)


@DTYPES
def test_gelu_equals_jax_nn(dtype, tolerance):
    x = jnp.linspace(-6, 6, 101, dtype=dtype)
    expected = value_and_gradients(on_tpu(layers.gelu), x)
    assert_close(value_and_gradients(cpu_elementwise.gelu, x), expected, tolerance)


def test_programs_for_a_tpu_get_the_plain_forms():
    """Plans compile for a TPU on a machine with CPUs, and must say what a TPU runs."""
    assert target_platform() == jax.default_backend() == "cpu"
    assert on_tpu(target_platform)() == "tpu"
    x, kernel = normal(jnp.float32, (2, 9, 6), (3, 6, 4))
    functions = {
        "conv_general_dilated": lambda: layers.conv1d(x, kernel, 2),
        "erfc": lambda: layers.gelu(x),
    }
    for name, function in functions.items():
        on_cpu = str(jax.make_jaxpr(function)())
        for_tpu = str(jax.make_jaxpr(on_tpu(function))())
        assert name not in on_cpu
        assert name in for_tpu


def on_tpu(function):
    """The function, traced as a part of a program for a TPU."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(TPU_MESH):
            return function(*args, **kwargs)

    return traced


def normal(dtype, *shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(
        jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)
    )


def value_and_gradients(function, *arguments):
    """The function's outputs, and their gradients for a fixed random cotangent."""
    outputs, pull_back = jax.vjp(function, *arguments)
    cotangents = jax.tree.map(lambda x: normal(x.dtype, x.shape)[0], outputs)
    return outputs, pull_back(cotangents)


def assert_close(actual, expected, tolerance):
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(
            np.asarray(ours, np.float32),
            np.asarray(theirs, np.float32),
            rtol=tolerance,
            atol=tolerance * max(1, float(np.abs(np.asarray(theirs, np.float32)).max())),
        )
