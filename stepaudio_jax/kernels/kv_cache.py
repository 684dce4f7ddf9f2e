"""The keys and values that a decoder layer keeps of the tokens before."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from stepaudio_jax.config import DecoderConfig, ShardingRules
from stepaudio_jax.kernels.partitioning import LogicalAxes, constrain

CacheDtype = Literal["float32", "bfloat16", "int8"]
CACHE_AXES: LogicalAxes = ("batch", "kv_heads", None, None)
"""Logical axes of a cache's arrays [B, K, cache_len, D]; of its scales, the first three."""

_MAX_INT8 = 127.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer's cache: the token at position p of row b stands at cache position p.

    Cache positions behind a row's newest token hold anything: a query at position p attends to 0 to
    p, and p is written before it is read.

    Attributes:
        keys: in a float dtype or int8.
        values: as the keys.
        key_scales: fp32, one for each head of each token, where the cache is int8; else None.
        value_scales: as the key_scales.
    """

    keys: Shaped[Array, "B K cache_len D"]
    values: Shaped[Array, "B K cache_len D"]
    key_scales: Float[Array, "B K cache_len"] | None = None
    value_scales: Float[Array, "B K cache_len"] | None = None

    @classmethod
    def zeros(
        cls, config: DecoderConfig, rows: int, cache_len: int, dtype: CacheDtype
    ) -> "LayerCache":
        """Returns an empty cache for `rows` dialogues of at most `cache_len` tokens each."""
        shape = (rows, config.kv_heads, cache_len, config.head_dim)
        keys, values = (jnp.zeros(shape, jnp.dtype(dtype)) for _ in range(2))
        if dtype != "int8":
            return cls(keys, values)
        return cls(keys, values, *(jnp.zeros(shape[:-1], jnp.float32) for _ in range(2)))

    def write(
        self, key: Float[Array, "B T K D"], value: Float[Array, "B T K D"], start: Int[Array, " B"]
    ) -> "LayerCache":
        """Returns the cache with the tokens' keys and values in row b from position start[b] on.

        Where they do not fit behind `start`, it is moved back. The cache may have more than B rows,
        of which the others stay as they are; a token each is written then.
        """
        return jax.tree.map(
            lambda cached, new: _write_rows(cached, new, start), self, self.cast_kv(key, value)
        )

    def insert_row(
        self,
        other: "LayerCache",
        row: Int[Array, ""],
        start: Int[Array, ""] | int = 0,
        size: int | None = None,
    ) -> "LayerCache":
        """Returns the cache with the first row of another one, no longer than it, in row `row`.

        Of that row `size` positions from `start` on are written, to the same positions; None for
        all of them.
        """

        def put(cached: jax.Array, new: jax.Array) -> jax.Array:
            part = new[:1]
            if size is not None:
                part = jax.lax.dynamic_slice_in_dim(part, start, size, axis=2)
            rest = (0,) * (cached.ndim - 3)
            return jax.lax.dynamic_update_slice(cached, part, (row, 0, start, *rest))

        return jax.tree.map(put, self, other)

    def cast_kv(self, key: Float[Array, "B T K D"], value: Float[Array, "B T K D"]) -> "LayerCache":
        """Returns the tokens' keys and values in this cache's layout and dtype."""
        key, value = (x.swapaxes(1, 2) for x in (key, value))
        if self.key_scales is None:
            return LayerCache(key.astype(self.keys.dtype), value.astype(self.values.dtype))
        (keys, key_scales), (values, value_scales) = _quantize(key), _quantize(value)
        return LayerCache(keys, values, key_scales, value_scales)

    def constrain_sharding(self, rules: ShardingRules) -> "LayerCache":
        """Returns the cache with the sharding that the rules give it on the current mesh."""
        return jax.tree.map(lambda x: constrain(x, CACHE_AXES[: x.ndim], rules), self)


def cache_bytes(config: DecoderConfig, tokens: int, dtype: CacheDtype) -> int:
    """Returns the bytes that a number of tokens takes in the caches of all layers, with scales."""
    heads = 2 * config.layers * config.kv_heads * tokens
    return heads * (config.head_dim * jnp.dtype(dtype).itemsize + (4 if dtype == "int8" else 0))


def _quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds [.., D] to int8; also returns the fp32 scales [..] to multiply it by."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / _MAX_INT8
    rounded = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)[..., None])
    return rounded.astype(jnp.int8), scale


def _write_rows(cached: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new [B,K,T,..] into cached [..,K,cache_len,..], row b from position start[b] on."""
    rows = new.shape[0]
    if rows < cached.shape[0]:  # a scatter in place; slicing the rows would copy them
        assert new.shape[2] == 1
        at = jnp.minimum(start, cached.shape[2] - 1)
        return cached.at[jnp.arange(rows), :, at].set(new[:, :, 0])

    def write_row(row: jax.Array, update: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, update, (0, offset, *(0,) * (row.ndim - 2)))

    return jax.vmap(write_row)(cached, new, start)
