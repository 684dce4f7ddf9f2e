"""The keys and values that a decoder layer has seen."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from stepaudio_jax.config import DecoderConfig, ShardingRules
from stepaudio_jax.kernels.partitioning import constrain

CacheDtype = Literal["float32", "bfloat16", "int8"]
CACHE_AXES = "BKSD"  # what the rules place

_MAX_INT8 = 127.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer's cache: the token at position p of row b stands in slot p.

    Slots behind a row's newest token hold anything: a query at position p sees slots 0 to p, and
    slot p is written before it is read.

    Attributes:
        keys, values: [B,K,S,D], in a float dtype or int8.
        key_scales, value_scales: [B,K,S] fp32 where the cache is int8, a scale for each head of
            each token; else None.
    """

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array | None = None
    value_scales: jax.Array | None = None

    @classmethod
    def zeros(cls, config: DecoderConfig, rows: int, slots: int, dtype: CacheDtype) -> "LayerCache":
        """An empty cache for `rows` dialogues of at most `slots` tokens each."""
        shape = (rows, config.kv_heads, slots, config.head_dim)
        keys, values = (jnp.zeros(shape, jnp.dtype(dtype)) for _ in range(2))
        if dtype != "int8":
            return cls(keys, values)
        return cls(keys, values, *(jnp.zeros(shape[:-1], jnp.float32) for _ in range(2)))

    def write(self, key: jax.Array, value: jax.Array, start: jax.Array) -> "LayerCache":
        """Writes key and value [B,T,K,D], row b from slot start[b] on; what does not fit behind it moves the start back."""
        return _map(
            lambda slots, new: _write_rows(slots, new, start), self, self.cast_kv(key, value)
        )

    def insert_row(self, other: "LayerCache", row: jax.Array) -> "LayerCache":
        """Writes the first row of another cache, of the same dtype and at most as many slots, over row `row`."""

        def put(slots: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(slots, new[:1], (row, *(0,) * (slots.ndim - 1)))

        return _map(put, self, other)

    def cast_kv(self, key: jax.Array, value: jax.Array) -> "LayerCache":
        """Key and value [B,T,K,D] in this cache's layout and dtype."""
        key, value = (x.swapaxes(1, 2) for x in (key, value))
        if self.key_scales is None:
            return LayerCache(key.astype(self.keys.dtype), value.astype(self.values.dtype))
        (keys, key_scales), (values, value_scales) = _quantize(key), _quantize(value)
        return LayerCache(keys, values, key_scales, value_scales)

    def constrain_sharding(self, rules: ShardingRules) -> "LayerCache":
        """The same, laid out by the rules on the mesh in use."""
        return jax.tree.map(lambda x: constrain(x, CACHE_AXES[: x.ndim], rules), self)


def cache_bytes(config: DecoderConfig, tokens: int, dtype: CacheDtype) -> int:
    """Of so many tokens in every layer, scales included."""
    heads = 2 * config.layers * config.kv_heads * tokens
    return heads * (config.head_dim * jnp.dtype(dtype).itemsize + (4 if dtype == "int8" else 0))


def _quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., D] -> int8 and the scales [...] fp32 that it is to be multiplied by."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / _MAX_INT8
    whole = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)[..., None])
    return whole.astype(jnp.int8), scale


def _write_rows(slots: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new [B,K,T,..] into slots [B,K,S,..], row b from slot start[b] on."""

    def write_row(row: jax.Array, update: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, update, (0, offset, *(0,) * (row.ndim - 2)))

    return jax.vmap(write_row)(slots, new, start)


def _map(function, one: LayerCache, other: LayerCache) -> LayerCache:  # type: ignore[no-untyped-def]
    return jax.tree.map(function, one, other)
