"""Tests that the Pallas kernels compile for each kind of chip, by the real compiler."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.config import ComputeConfig
from stepaudio_jax.kernels.attention import attention
from stepaudio_jax.kernels.decode_attention import paged_decode_attention
from stepaudio_jax.kernels.kv_cache import LayerCache
from stepaudio_jax.planning.compile import compile_only_devices
from stepaudio_jax.planning.hlo import HloModule
from stepaudio_jax.planning.step_time import attention_kernels
from stepaudio_jax.planning.topology import parse_topology

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is for Linux on x86-64"
)
CHIPS = pytest.mark.parametrize(
    "machine", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]
)
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 128


def compile_for(machine: str, function, *shapes) -> str:
    """Returns the optimised HLO of a function for one device of a machine."""
    mesh = Mesh(np.array(compile_only_devices(parse_topology(machine))[:1]), "x")
    abstract = functools.partial(
        jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec())
    )
    arguments = [abstract(shape, dtype) for shape, dtype in shapes]
    return (
        jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text()
    )


@CHIPS
def test_splash_attention_and_its_gradients_compile(machine: str) -> None:
    rows, tokens = 2, 256

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        ids = {"query_segment_ids": segments, "key_segment_ids": segments}
        out = attention(
            query, key, value, **ids, compute=ComputeConfig(attention="splash"), causal=True
        )
        return out.astype(jnp.float32).sum()

    heads = [
        ((rows, tokens, count, HEAD_DIM), jnp.bfloat16) for count in (HEADS, KV_HEADS, KV_HEADS)
    ]
    text = compile_for(
        machine, jax.grad(loss, argnums=(0, 1, 2)), *heads, ((rows, tokens), jnp.int32)
    )
    kernels = attention_kernels(HloModule(text))
    assert sorted(kernel.products for kernel in kernels) == [2, 3, 4]  # forward, dq, dk and dv
    product = 2 * rows * HEADS * tokens**2 * HEAD_DIM
    assert (
        sum(kernel.flops * kernel.rows * kernel.times for kernel in kernels)
        == (2 + 3 + 4) * product / 2
    )


@CHIPS
def test_attention_over_a_paged_cache_compiles(machine: str) -> None:
    rows, slots = 2, 512

    def decode(query: jax.Array, keys: jax.Array, values: jax.Array, last: jax.Array) -> jax.Array:
        return paged_decode_attention(query, LayerCache(keys, values), last)

    query = ((rows, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM), jnp.float32)
    cache = ((rows, KV_HEADS, slots, HEAD_DIM), jnp.bfloat16)
    text = compile_for(machine, decode, query, cache, cache, ((rows,), jnp.int32))
    assert text.count('custom_call_target="tpu_custom_call"') == 1
