"""The Qwen2-family decoder."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from stepaudio_jax.config import ComputeConfig, DecoderConfig
from stepaudio_jax.kernels.attention import attention
from stepaudio_jax.kernels.decode_attention import decode_attention
from stepaudio_jax.kernels.kv_cache import LayerCache
from stepaudio_jax.kernels.partitioning import constrain
from stepaudio_jax.models.layers import (
    Projection,
    RMSNorm,
    apply_rope,
    fused_dense,
    normal,
    parameter,
    rope_cos_sin,
    scan_layers,
)


class DecoderAttention(nnx.Module):
    """Causal grouped-query attention with rotary positions; q, k, v have biases, the output has none."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        compute: ComputeConfig,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        layers = config.layers
        self.compute = compute
        sizes = {"H": config.hidden, "N": config.heads, "K": config.kv_heads, "D": config.head_dim}
        options: dict[str, Any] = {
            "sizes": sizes,
            "stack": layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.query = Projection("BTH,HND->BTND", use_bias=True, **options)
        self.key = Projection("BTH,HKD->BTKD", use_bias=True, **options)
        self.value = Projection("BTH,HKD->BTKD", use_bias=True, **options)
        self.output = Projection(
            "BTND,NDH->BTH", use_bias=False, init_scale=1 / math.sqrt(2 * layers), **options
        )

    def __call__(
        self,
        x: jax.Array,
        segment_ids: jax.Array,
        prefix_ids: jax.Array | None,
        rope: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attention over x itself; returns its output and the keys and values [B,T,K,D]."""
        query, key, value = self._project(x, rope)
        out = attention(
            query,
            key,
            value,
            query_segment_ids=segment_ids,
            key_segment_ids=segment_ids,
            query_prefix_ids=prefix_ids,
            compute=self.compute,
            causal=True,
        )
        return checkpoint_name(self.output(out), "attn_proj"), (key, value)

    def decode_step(
        self,
        x: jax.Array,
        positions: jax.Array,
        last: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        cache: LayerCache,
    ) -> tuple[jax.Array, LayerCache]:
        """One more token a row, written into the cache at `positions` [B]: attention over its slots up to `last` [B]."""
        query, key, value = self._project(x, rope)
        cache = cache.write(key, value, positions).constrain_sharding(self.compute.rules)
        return self.output(decode_attention(query, cache, last, self.compute)), cache

    def _project(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        rules = self.compute.rules
        query = checkpoint_name(constrain(apply_rope(self.query(x), rope), "BTND", rules), "query")
        key = checkpoint_name(constrain(apply_rope(self.key(x), rope), "BTKD", rules), "key")
        return query, key, checkpoint_name(constrain(self.value(x), "BTKD", rules), "value")


class DecoderLayer(nnx.Module):
    """Pre-norm block: attention, then a SwiGLU MLP (Shazeer 2020)."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        compute: ComputeConfig,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        stack: dict[str, Any] = {"stack": config.layers, "param_dtype": param_dtype, "rngs": rngs}
        self.compute = compute
        self.attention_norm = RMSNorm(config.hidden, eps=config.norm_eps, **stack)
        self.attention = DecoderAttention(
            config, compute=compute, param_dtype=param_dtype, rngs=rngs
        )
        self.mlp_norm = RMSNorm(config.hidden, eps=config.norm_eps, **stack)
        self.mlp = GatedMLP(config, compute=compute, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        segment_ids: jax.Array,
        prefix_ids: jax.Array | None,
        rope: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        attn_out, seen = self.attention(
            self.attention_norm(x, self.compute.dtype), segment_ids, prefix_ids, rope
        )
        return self._rest(x + attn_out), seen

    def decode_step(
        self,
        x: jax.Array,
        positions: jax.Array,
        last: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        cache: LayerCache,
    ) -> tuple[jax.Array, LayerCache]:
        """See `DecoderAttention.decode_step`."""
        attn_out, cache = self.attention.decode_step(
            self.attention_norm(x, self.compute.dtype), positions, last, rope, cache
        )
        return self._rest(x + attn_out), cache

    def _rest(self, x: jax.Array) -> jax.Array:
        return constrain(
            x + self.mlp(self.mlp_norm(x, self.compute.dtype)), "BTH", self.compute.rules
        )


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        compute: ComputeConfig,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        sizes = {"E": config.hidden, "F": config.ffn}
        self.compute = compute
        options: dict[str, Any] = {
            "sizes": sizes,
            "use_bias": False,
            "stack": config.layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.gate = Projection("BTE,EF->BTF", **options)
        self.up = Projection("BTE,EF->BTF", **options)
        self.down = Projection(
            "BTF,FE->BTE", init_scale=1 / math.sqrt(2 * config.layers), **options
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = fused_dense(x, self.gate, self.up)
        gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
        return self.down(constrain(jax.nn.silu(gate) * up, "BTF", self.compute.rules))


class Decoder(nnx.Module):
    """Token embedding, a stack of layers, final norm, and the language-model head."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        compute: ComputeConfig,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        sizes = {"V": config.vocab_size, "H": config.hidden}
        self.config = config
        self.compute = compute
        self.embedding = parameter(rngs, "VH", sizes, normal(0.02), param_dtype)
        self.layers = DecoderLayer(config, compute=compute, param_dtype=param_dtype, rngs=rngs)
        self.norm = RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype, rngs=rngs)
        self.head = (
            None
            if config.tied_embeddings
            else Projection(
                "BTH,HV->BTV", sizes, use_bias=False, param_dtype=param_dtype, rngs=rngs
            )
        )

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B,T] i32 -> embeddings [B,T,H] in the compute dtype."""
        return constrain(
            self.embedding[...].astype(self.compute.dtype)[tokens], "BTH", self.compute.rules
        )

    def __call__(
        self,
        embeddings: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        prefix_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Embeddings [B,T,H] -> hidden states after the final norm [B,T,H].

        Args:
            embeddings: [B,T,H].
            positions, segment_ids: [B,T] i32.
            prefix_ids: [B,T] i32, the segment that a token's own continues, -1 for none. It stands
                earlier in the row.
        """
        rope = self._rope(positions)

        def apply(layer: DecoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return layer(x, segment_ids, prefix_ids, rope)[0], None

        hidden, _ = scan_layers(
            self.layers, apply, self._residual(embeddings), compute=self.compute
        )
        return self.norm(hidden, self.compute.dtype)

    def prefill(
        self,
        layers: Sequence[DecoderLayer],
        embeddings: jax.Array,
        positions: jax.Array,
        empty: LayerCache,
    ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """The same, keeping what every layer has seen, for rows of one dialogue each.

        Args:
            layers: of this decoder, apart (see `models.unstacked`).
            embeddings: [B,T,H]. What pads a row stands behind its tokens, which do not see it.
            positions: [B,T] i32.
            empty: says in which dtype the cache is kept.

        Returns:
            Hidden states [B,T,H], and a cache of T slots for each layer.
        """
        rope, one_dialogue = self._rope(positions), jnp.ones_like(positions)
        x, caches = self._residual(embeddings), []
        for layer in layers:
            x, seen = layer(x, one_dialogue, None, rope)
            caches.append(empty.cast_kv(*seen))
        return self.norm(x, self.compute.dtype), tuple(caches)

    def decode_step(
        self,
        layers: Sequence[DecoderLayer],
        embeddings: jax.Array,
        positions: jax.Array,
        caches: Sequence[LayerCache],
        active: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """One more token a row: embeddings [B,1,H] at positions [B] -> hidden states [B,1,H], and caches that hold it.

        A row that is not `active` [B] gets hidden states that mean nothing, and costs little.
        """
        rope = self._rope(positions[:, None])
        last = positions if active is None else jnp.where(active, positions, 0)
        x, extended = self._residual(embeddings), []
        for layer, cache in zip(layers, caches, strict=True):
            x, cache = layer.decode_step(x, positions, last, rope, cache)
            extended.append(cache)
        return self.norm(x, self.compute.dtype), tuple(extended)

    def _residual(self, embeddings: jax.Array) -> jax.Array:
        return embeddings.astype(self.compute.residual_dtype or self.compute.dtype)

    def _rope(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return rope_cos_sin(positions, self.config.head_dim, self.config.rope_theta)

    def lm_head_kernel(self) -> jax.Array:
        """The language-model head [H,V], in the dtype of the parameters."""
        return self.embedding[...].T if self.head is None else self.head.kernel[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., T, H] -> logits [..., T, V] in fp32."""
        kernel = self.lm_head_kernel().astype(hidden.dtype)
        return jnp.einsum("...TH,HV->...TV", hidden, kernel, preferred_element_type=jnp.float32)
