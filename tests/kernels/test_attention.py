"""Every attention kernel against the definition in float64: values, gradients, all masks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

from stepaudio_jax.config import ComputeConfig
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.kernels.attention import attention, supports_shared_prefix
from stepaudio_jax.kernels.attention_mask import AttentionMask
from stepaudio_jax.kernels.cpu.block_sparse_attention import block_sparse_attention
from stepaudio_jax.kernels.cudnn import cudnn_attention, is_cudnn_attention
from stepaudio_jax.kernels.flash_xla import flash_attention_xla

XLA, SPLASH = ComputeConfig(attention="xla"), ComputeConfig(attention="splash_interpreted")
KERNELS = pytest.mark.parametrize("compute", [XLA, SPLASH], ids=lambda compute: compute.attention)
Kernel = Callable[..., jax.Array]
ROWS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 8


def definition(q: Any, k: Any, v: Any, visible: np.ndarray) -> np.ndarray:
    """softmax(q k / sqrt(D)) v over visible keys, by loops in float64; visible is [B,T,kv_len]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(*q.shape[:3]):
        kv_head = n // (HEADS // KV_HEADS)
        (keys,) = np.nonzero(visible[b, t])
        if keys.size:
            scores = k[b, keys, kv_head] @ q[b, t, n] / np.sqrt(HEAD_DIM)
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ v[b, keys, kv_head]
    return out


def random_qkv(tokens: int, kv_len: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(tokens), 3)
    shapes = (
        (ROWS, tokens, HEADS, HEAD_DIM),
        (ROWS, kv_len, KV_HEADS, HEAD_DIM),
        (ROWS, kv_len, KV_HEADS, HEAD_DIM),
    )
    q, k, v = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return q, k, v


def packed_segment_ids(tokens: int) -> np.ndarray:
    """Segment ids [B,T] of rows of four documents, with other boundaries in every row."""
    cuts = np.random.default_rng(tokens).integers(1, tokens, (ROWS, 3))
    return sum(
        (np.arange(tokens) >= cut).astype(np.int32) for cut in np.sort(cuts).T[:, :, None]
    ).astype(np.int32)


# Tokens of less than a block, of one block, of blocks of 64 with a shorter last one, and of blocks
# of 75; where causal, the longest goes to the kernel that skips blocks.
@pytest.mark.parametrize("tokens", [1, 64, 150, 600])
@pytest.mark.parametrize("causal", [True, False])
@KERNELS
def test_packed_rows_equal_the_definition(
    tokens: int, causal: bool, compute: ComputeConfig
) -> None:
    q, k, v = random_qkv(tokens, tokens)
    segments = packed_segment_ids(tokens) if tokens > 1 else np.ones((ROWS, 1), np.int32)
    visible = segments[:, :, None] == segments[:, None, :]
    if causal:
        visible &= np.arange(tokens)[:, None] >= np.arange(tokens)
    ids = jnp.asarray(segments)
    out = jax.jit(functools.partial(attention, compute=compute, causal=causal))(
        q, k, v, query_segment_ids=ids, key_segment_ids=ids
    )
    np.testing.assert_allclose(out, definition(q, k, v, visible), atol=2e-6)


@pytest.mark.parametrize("tokens", [64, 151])
@pytest.mark.parametrize("causal", [True, False])
def test_operands_of_cudnn_equal_the_definition(tokens: int, causal: bool) -> None:
    """They are run by JAX's own implementation, so that the mask is tested without a GPU."""
    q, k, v = random_qkv(tokens, tokens)
    segments = packed_segment_ids(tokens)
    visible = segments[:, :, None] == segments[:, None, :]
    if causal:
        visible &= np.arange(tokens)[:, None] >= np.arange(tokens)
    ids = jnp.asarray(segments)
    out = jax.jit(functools.partial(cudnn_attention, causal=causal, implementation="xla"))(
        q, k, v, AttentionMask(ids, ids)
    )
    np.testing.assert_allclose(out, definition(q, k, v, visible), atol=2e-6)


@pytest.mark.parametrize("padding", [0, 23])
def test_cudnn_gets_no_mask_for_one_document_a_row(padding: int) -> None:
    """The causal mask is the kernel's own then, and the outputs are the same."""
    tokens = 96
    q, k, v = random_qkv(tokens, tokens)
    segments = np.ones((ROWS, tokens), np.int32)
    segments[0], segments[:, tokens - padding :] = 7, 0
    ids = jnp.asarray(segments)
    kernel = jax.jit(functools.partial(cudnn_attention, causal=True, implementation="xla"))
    visible = np.broadcast_to(
        np.arange(tokens)[:, None] >= np.arange(tokens), (ROWS, tokens, tokens)
    )
    out = np.asarray(kernel(q, k, v, AttentionMask(ids, ids)))
    np.testing.assert_allclose(
        out[:, : tokens - padding], definition(q, k, v, visible)[:, : tokens - padding], atol=2e-6
    )
    # Queries of the padding attend to the document: that shows that no mask was used.
    behind = out[:, tokens - padding :]
    np.testing.assert_allclose(
        behind, definition(q, k, v, visible)[:, tokens - padding :], atol=2e-6
    )


def test_remat_saves_the_output_of_cudnn_attention() -> None:
    """Its primitive is known by name, which JAX may change: steps would then run it twice."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    primitives = {value for value in vars(fused).values() if isinstance(value, Primitive)}
    kept = {primitive.name for primitive in primitives if is_cudnn_attention(primitive)}
    assert any(name.endswith("wrapper") for name in kept)
    assert not any("bwd" in name for name in kept)


def test_cudnn_on_a_cpu_is_an_error() -> None:
    q, k, v = random_qkv(4, 4)
    ids = {
        name: jnp.ones((ROWS, 4), jnp.int32) for name in ("query_segment_ids", "key_segment_ids")
    }
    with pytest.raises(
        ConfigError,
        match="'cudnn' runs on a GPU and in bfloat16, not on cpu in float32; write 'xla'",
    ):
        attention(q, k, v, **ids, compute=ComputeConfig(attention="cudnn", dtype="float32"))


def test_queries_with_an_offset_equal_the_definition() -> None:
    tokens, kv_len = 70, 200
    q, k, v = random_qkv(tokens, kv_len)
    first = np.asarray([0, 130], np.int32)
    visible = (first[:, None] + np.arange(tokens))[:, :, None] >= np.arange(kv_len)
    ones = [jnp.ones((ROWS, size), jnp.int32) for size in (tokens, kv_len)]
    for kernel in (flash_attention_xla, functools.partial(cudnn_attention, implementation="xla")):
        out = jax.jit(functools.partial(kernel, causal=True))(
            q, k, v, AttentionMask(*ones, query_offset=jnp.asarray(first))
        )
        np.testing.assert_allclose(out, definition(q, k, v, visible), atol=2e-6)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(
    function: Callable[..., jax.Array], inputs: Any, upstream: jax.Array
) -> tuple[jax.Array, ...]:
    """The function's value, and its gradients with respect to the inputs."""
    out, gradients = jax.vjp(function, *inputs)
    return out, *gradients(upstream)


def plain(visible: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The plain formula, differentiated by JAX."""
    k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
    scores = jnp.einsum("BTND,BSND->BNTS", q, k) / np.sqrt(HEAD_DIM)
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e9), axis=-1)
    weights = jnp.where(visible.any(axis=-1)[:, None, :, None], weights, 0)
    return jnp.einsum("BNTS,BSND->BTND", weights, v)


@pytest.mark.parametrize("causal", [True, False])
@KERNELS
def test_gradients_equal_those_of_the_plain_formula(causal: bool, compute: ComputeConfig) -> None:
    """With XLA's kernel, the queries of the last segment attend to no key at all."""
    tokens = 150
    q, k, v = random_qkv(tokens, tokens)
    query_segment_ids = jnp.asarray(packed_segment_ids(tokens))
    key_segment_ids = (
        jnp.where(query_segment_ids == 3, 9, query_segment_ids)
        if compute == XLA
        else query_segment_ids
    )
    upstream = jax.random.normal(jax.random.key(7), q.shape)

    visible = query_segment_ids[:, :, None] == key_segment_ids[:, None, :]
    if causal:
        visible &= jnp.arange(tokens)[:, None] >= jnp.arange(tokens)

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        ids = {"query_segment_ids": query_segment_ids, "key_segment_ids": key_segment_ids}
        return attention(q, k, v, **ids, compute=compute, causal=causal)

    expected_out, *expected = value_and_gradients(
        functools.partial(plain, visible), (q, k, v), upstream
    )
    out, *gradients = value_and_gradients(ours, (q, k, v), upstream)
    np.testing.assert_allclose(out, expected_out, atol=2e-6)
    for ours_, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours_, theirs, atol=1e-5)


def causal_xla(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask
) -> jax.Array:
    return flash_attention_xla(query, key, value, mask, True)


CAUSAL = pytest.mark.parametrize("kernel", [causal_xla, block_sparse_attention])


def shared_prefix_ids(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment and prefix ids [B,T] of rows with two prompts, the first with two replies."""
    cuts = np.array(
        [[10, tokens // 3, tokens // 2, tokens // 2 + 5, tokens - 7], [1, 2, 90, 99, tokens - 9]]
    )
    index = sum((np.arange(tokens) >= cut).astype(np.int32) for cut in cuts.T[:, :, None])
    segment, prefix = np.array([1, 2, 3, 4, 5, 0]), np.array([-1, 1, 1, -1, 4, -1])
    return segment[index].astype(np.int32), prefix[index].astype(np.int32)


def causal_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask
) -> jax.Array:
    return cudnn_attention(query, key, value, mask, True, implementation="xla")


@pytest.mark.parametrize("kernel", [causal_xla, block_sparse_attention, causal_cudnn])
@pytest.mark.parametrize("tokens", [64, 151, 400])
def test_shared_prefixes_equal_the_definition(tokens: int, kernel: Kernel) -> None:
    q, k, v = random_qkv(tokens, tokens)
    segments, prefixes = shared_prefix_ids(tokens)
    visible = (segments[:, :, None] == segments[:, None, :]) | (
        prefixes[:, :, None] == segments[:, None, :]
    )
    visible &= np.arange(tokens)[:, None] >= np.arange(tokens)
    mask = AttentionMask(jnp.asarray(segments), jnp.asarray(segments), jnp.asarray(prefixes))
    np.testing.assert_allclose(
        jax.jit(kernel)(q, k, v, mask), definition(q, k, v, visible), atol=2e-6
    )


@CAUSAL
def test_gradients_with_shared_prefixes_equal_those_of_the_plain_formula(kernel: Kernel) -> None:
    tokens = 151
    segments, prefixes = (jnp.asarray(x) for x in shared_prefix_ids(tokens))
    q, k, v = random_qkv(tokens, tokens)
    upstream = jax.random.normal(jax.random.key(7), q.shape)

    visible = (segments[:, :, None] == segments[:, None, :]) | (
        prefixes[:, :, None] == segments[:, None, :]
    )
    visible &= jnp.arange(tokens)[:, None] >= jnp.arange(tokens)

    _, *expected = value_and_gradients(functools.partial(plain, visible), (q, k, v), upstream)
    _, *gradients = value_and_gradients(
        functools.partial(kernel, mask=AttentionMask(segments, segments, prefixes)),
        (q, k, v),
        upstream,
    )
    for ours_, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours_, theirs, atol=1e-5)


@CAUSAL
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_many_packed_documents_equal_the_plain_formula(kernel: Kernel, dtype: str) -> None:
    """Values and gradients; most blocks of a row have no document in common."""
    tokens = 700
    q, k, v = (x.astype(dtype) for x in random_qkv(tokens, tokens))
    cuts = np.sort(np.random.default_rng(0).integers(1, tokens, (ROWS, 20)))
    segments = jnp.asarray(
        sum((np.arange(tokens) >= cut).astype(np.int32) for cut in cuts.T[:, :, None])
    )
    # The queries of one document attend to no key.
    key_segments = jnp.where(segments == 7, 99, segments)
    visible = (segments[:, :, None] == key_segments[:, None, :]) & (
        jnp.arange(tokens)[:, None] >= jnp.arange(tokens)
    )
    upstream = jax.random.normal(jax.random.key(7), q.shape)

    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    expected = value_and_gradients(functools.partial(plain, visible), wide, upstream)
    actual = value_and_gradients(
        functools.partial(kernel, mask=AttentionMask(segments, key_segments)),
        (q, k, v),
        upstream.astype(dtype),
    )
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=tolerance, rtol=tolerance)


def test_batches_of_long_causal_rows_skip_blocks_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v = random_qkv(600, 600)
    ids = dict.fromkeys(
        ("query_segment_ids", "key_segment_ids"), jnp.asarray(packed_segment_ids(600))
    )
    calls = []
    monkeypatch.setattr(
        "stepaudio_jax.kernels.attention.block_sparse_attention",
        lambda q, *_: calls.append(q.shape) or q,
    )
    for rows, tokens, causal in ((2, 600, True), (2, 600, False), (1, 600, True), (2, 512, True)):
        part = {name: x[:rows, :tokens] for name, x in ids.items()}
        attend = functools.partial(attention, **part, compute=XLA, causal=causal)
        jax.eval_shape(attend, *(x[:rows, :tokens] for x in (q, k, v)))
    assert calls == [(2, 600, HEADS, HEAD_DIM)]


def test_splash_lets_two_segments_share_a_prefix() -> None:
    """Values and gradients are those of the mask; a second prefix has one continuation."""
    q, k, v = random_qkv(150, 150)
    spans = [(1, -1, 40), (2, 1, 30), (3, 1, 30), (4, -1, 20), (5, 4, 20), (0, -1, 10)]
    segments, prefixes = (
        jnp.asarray(np.tile(np.repeat([span[i] for span in spans], [n for *_, n in spans]), (2, 1)))
        for i in range(2)
    )
    ids = {"query_segment_ids": segments, "key_segment_ids": segments, "query_prefix_ids": prefixes}
    weights = jnp.where(segments > 0, 1.0, 0.0)[:, :, None, None] * jnp.ones_like(q)
    results = [
        value_and_gradients(
            functools.partial(attention, **ids, compute=compute, causal=True), (q, k, v), weights
        )
        for compute in (XLA, SPLASH)
    ]
    (expected, *expected_gradients), (out, *gradients) = results
    np.testing.assert_allclose(out[:, :140], expected[:, :140], atol=2e-6)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, atol=2e-5)


def test_prefixes_without_a_causal_mask_are_an_error_for_splash() -> None:
    q, k, v = random_qkv(4, 4)
    ids = {
        name: jnp.ones((ROWS, 4), jnp.int32)
        for name in ("query_segment_ids", "key_segment_ids", "query_prefix_ids")
    }
    with pytest.raises(ConfigError, match="'splash_interpreted' does not support shared prefixes"):
        attention(q, k, v, **ids, compute=SPLASH)
    assert supports_shared_prefix(SPLASH, 2)
    assert not supports_shared_prefix(SPLASH, 3)
    assert not supports_shared_prefix(SPLASH)
    assert supports_shared_prefix(XLA)


def test_a_query_without_keys_gives_zeros_and_no_gradient() -> None:
    q, k, v = random_qkv(3, 3)
    ids = {"query_segment_ids": jnp.full((ROWS, 3), 1), "key_segment_ids": jnp.full((ROWS, 3), 2)}
    out, *gradients = value_and_gradients(
        functools.partial(attention, **ids, compute=XLA), (q, k, v), jnp.ones_like(q)
    )
    assert not np.any(out)
    assert not any(np.any(leaf) for leaf in gradients)


@KERNELS
def test_bfloat16_keeps_scores_in_fp32(compute: ComputeConfig) -> None:
    """Scores are large here, and a softmax over scores in bf16 would be far off."""
    q, k, v = (x.astype(jnp.bfloat16) for x in random_qkv(128, 128))
    q = q * 8
    segments = jnp.ones((ROWS, 128), jnp.int32)
    out = jax.jit(functools.partial(attention, compute=compute))(
        q, k, v, query_segment_ids=segments, key_segment_ids=segments
    )
    visible = np.ones((ROWS, 128, 128), bool)
    exact = definition(q, k, v, visible)
    assert out.dtype == jnp.bfloat16
    assert np.sqrt(np.mean((np.asarray(out, np.float64) - exact) ** 2)) < 0.006
