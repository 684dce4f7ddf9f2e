"""The Qwen2-family decoder."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.config import ComputeConfig, DecoderConfig
from stepaudio_jax.kernels.attention import attention
from stepaudio_jax.kernels.chunk_attention import chunk_attention
from stepaudio_jax.kernels.decode_attention import decode_attention
from stepaudio_jax.kernels.kv_cache import LayerCache
from stepaudio_jax.kernels.partitioning import constrain
from stepaudio_jax.models.layers import (
    Projection,
    RMSNorm,
    Rope,
    apply_rope,
    fused_dense,
    normal,
    parameter,
    rope_cos_sin,
    scan_layers,
)

KeysValues = tuple[Float[Array, "B T K D"], Float[Array, "B T K D"]]


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
        self.config = config
        self.compute = compute
        self.embedding = parameter(
            (config.vocab_size, config.hidden),
            ("vocab", "embed"),
            normal(0.02),
            dtype=param_dtype,
            rngs=rngs,
        )
        self.layers = DecoderLayer(config, compute=compute, param_dtype=param_dtype, rngs=rngs)
        self.norm = RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype, rngs=rngs)
        self.lm_head = (
            None
            if config.tied_embeddings
            else Projection(
                "BTH,HV->BTV",
                axes=("embed", "vocab"),
                dim_sizes={"H": config.hidden, "V": config.vocab_size},
                use_bias=False,
                param_dtype=param_dtype,
                rngs=rngs,
            )
        )

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T H"]:
        """Returns the embeddings of tokens in the compute dtype."""
        embeddings = self.embedding[...].astype(self.compute.dtype)[tokens]
        return constrain(embeddings, ("batch", "tokens", None), self.compute.rules)

    def __call__(
        self,
        embeddings: Float[Array, "B T H"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        prefix_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T H"]:
        """Computes the hidden states of packed rows after the final norm.

        Args:
            embeddings: of the tokens, and of audio in their place.
            positions: position of each token in its dialogue.
            segment_ids: the dialogue of each token; 0 is padding.
            prefix_ids: the segment, earlier in the row, that a token's own continues; -1 for none.
        """
        rope = self._rope(positions)

        def apply(layer: DecoderLayer, x: Float[Array, "B T H"], _: None) -> tuple[jax.Array, None]:
            return layer(x, segment_ids, prefix_ids, rope)[0], None

        x = self._to_residual(embeddings)
        hidden, _ = scan_layers(self.layers, apply, x, compute=self.compute)
        return self.norm(hidden, self.compute.dtype)

    def logits(self, hidden: Float[Array, "*B T H"]) -> Float[Array, "*B T V"]:
        """Computes the logits of hidden states, in fp32."""
        kernel = self.lm_head_kernel().astype(hidden.dtype)
        return jnp.einsum("...TH,HV->...TV", hidden, kernel, preferred_element_type=jnp.float32)

    def lm_head_kernel(self) -> Float[Array, "H V"]:
        """Returns the language-model head, in the dtype of the parameters."""
        return self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]

    def prefill(
        self,
        layers: Sequence["DecoderLayer"],
        embeddings: Float[Array, "B T H"],
        positions: Int[Array, "B T"],
        empty: LayerCache,
    ) -> tuple[Float[Array, "B T H"], tuple[LayerCache, ...]]:
        """Computes the hidden states of rows of one dialogue each, and keeps keys and values.

        Args:
            layers: of this decoder, unstacked (see `models.quantization`).
            embeddings: padding stands behind a row's tokens, which do not attend to it.
            positions: position of each token.
            empty: says in which dtype the cache is kept.

        Returns:
            The hidden states, and a cache of T positions for each layer.
        """
        rope, one_dialogue = self._rope(positions), jnp.ones_like(positions)
        x, caches = self._to_residual(embeddings), []
        for layer in layers:
            x, keys_values = layer(x, one_dialogue, None, rope)
            caches.append(empty.cast_kv(*keys_values))
        return self.norm(x, self.compute.dtype), tuple(caches)

    def prefill_chunk(
        self,
        layers: Sequence["DecoderLayer"],
        embeddings: Float[Array, "1 T H"],
        start: Int[Array, ""],
        caches: Sequence[LayerCache],
    ) -> tuple[Float[Array, "1 T H"], tuple[LayerCache, ...]]:
        """Computes the hidden states of a dialogue's next T tokens, and the caches with them.

        Args:
            layers: of this decoder, unstacked.
            embeddings: padding stands behind the tokens, which do not attend to it.
            start: position of the first token; the caches hold those before it.
            caches: of each layer, long enough for `start` + T tokens.
        """
        rope = self._rope(start + jnp.arange(embeddings.shape[1])[None])
        x, new_caches = self._to_residual(embeddings), []
        for layer, cache in zip(layers, caches, strict=True):
            x, cache = layer.prefill_chunk(x, start, rope, cache)
            new_caches.append(cache)
        return self.norm(x, self.compute.dtype), tuple(new_caches)

    def decode_step(
        self,
        layers: Sequence["DecoderLayer"],
        embeddings: Float[Array, "B 1 H"],
        positions: Int[Array, " B"],
        caches: Sequence[LayerCache],
        active: Bool[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B 1 H"], tuple[LayerCache, ...]]:
        """Computes the hidden state of one more token a row, and the caches that hold it.

        Rows that are not `active` return undefined hidden states, and cost little: they attend to
        one cache position.
        """
        rope = self._rope(positions[:, None])
        last_position = positions if active is None else jnp.where(active, positions, 0)
        x, new_caches = self._to_residual(embeddings), []
        for layer, cache in zip(layers, caches, strict=True):
            x, cache = layer.decode_step(x, positions, last_position, rope, cache)
            new_caches.append(cache)
        return self.norm(x, self.compute.dtype), tuple(new_caches)

    def _to_residual(self, embeddings: jax.Array) -> jax.Array:
        return embeddings.astype(self.compute.residual_dtype or self.compute.dtype)

    def _rope(self, positions: jax.Array) -> Rope:
        return rope_cos_sin(positions, self.config.head_dim, self.config.rope_theta)


class DecoderLayer(nnx.Module):
    """A pre-norm block: attention, then a SwiGLU MLP (Shazeer 2020)."""

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
        x: Float[Array, "B T H"],
        segment_ids: Int[Array, "B T"],
        prefix_ids: Int[Array, "B T"] | None,
        rope: Rope,
    ) -> tuple[Float[Array, "B T H"], KeysValues]:
        """Applies the block; also returns the keys and values of its attention."""
        attn_out, keys_values = self.attention(
            self.attention_norm(x, self.compute.dtype), segment_ids, prefix_ids, rope
        )
        return self._apply_mlp(x + attn_out), keys_values

    def decode_step(
        self,
        x: Float[Array, "B 1 H"],
        positions: Int[Array, " B"],
        last_position: Int[Array, " B"],
        rope: Rope,
        cache: LayerCache,
    ) -> tuple[Float[Array, "B 1 H"], LayerCache]:
        """Applies the block to one more token a row; see `DecoderAttention.decode_step`."""
        attn_out, cache = self.attention.decode_step(
            self.attention_norm(x, self.compute.dtype), positions, last_position, rope, cache
        )
        return self._apply_mlp(x + attn_out), cache

    def prefill_chunk(
        self, x: Float[Array, "1 T H"], start: Int[Array, ""], rope: Rope, cache: LayerCache
    ) -> tuple[Float[Array, "1 T H"], LayerCache]:
        """Applies the block to a dialogue's next tokens, which attend to those before them."""
        attn_out, cache = self.attention.prefill_chunk(
            self.attention_norm(x, self.compute.dtype), start, rope, cache
        )
        return self._apply_mlp(x + attn_out), cache

    def _apply_mlp(self, x: jax.Array) -> jax.Array:
        x = x + self.mlp(self.mlp_norm(x, self.compute.dtype))
        return constrain(x, ("batch", "tokens", None), self.compute.rules)


class DecoderAttention(nnx.Module):
    """Causal grouped-query attention with rotary positions.

    Query, key and value have biases, the output has none.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        compute: ComputeConfig,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {
            "dim_sizes": {
                "H": config.hidden,
                "N": config.heads,
                "K": config.kv_heads,
                "D": config.head_dim,
            },
            "stack": config.layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        to_kv_heads = ("embed", "kv_heads", "head_dim")
        self.compute = compute
        self.query = Projection(
            "BTH,HND->BTND", axes=("embed", "heads", "head_dim"), use_bias=True, **options
        )
        self.key = Projection("BTH,HKD->BTKD", axes=to_kv_heads, use_bias=True, **options)
        self.value = Projection("BTH,HKD->BTKD", axes=to_kv_heads, use_bias=True, **options)
        self.output = Projection(
            "BTND,NDH->BTH",
            axes=("heads", "head_dim", "embed"),
            use_bias=False,
            init_scale=1 / math.sqrt(2 * config.layers),
            **options,
        )

    def __call__(
        self,
        x: Float[Array, "B T H"],
        segment_ids: Int[Array, "B T"],
        prefix_ids: Int[Array, "B T"] | None,
        rope: Rope,
    ) -> tuple[Float[Array, "B T H"], KeysValues]:
        """Attends to the tokens of x itself; also returns their keys and values."""
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
        x: Float[Array, "B 1 H"],
        positions: Int[Array, " B"],
        last_position: Int[Array, " B"],
        rope: Rope,
        cache: LayerCache,
    ) -> tuple[Float[Array, "B 1 H"], LayerCache]:
        """Writes one more token a row into the cache, and attends up to `last_position`.

        `positions` are the cache positions to write.
        """
        query, key, value = self._project(x, rope)
        cache = cache.write(key, value, positions).constrain_sharding(self.compute.rules)
        return self.output(decode_attention(query, cache, last_position, self.compute)), cache

    def prefill_chunk(
        self, x: Float[Array, "1 T H"], start: Int[Array, ""], rope: Rope, cache: LayerCache
    ) -> tuple[Float[Array, "1 T H"], LayerCache]:
        """Writes T tokens into a row's cache from `start` on, and attends to all up to each."""
        query, key, value = self._project(x, rope)
        cache = cache.write(key, value, start[None]).constrain_sharding(self.compute.rules)
        return self.output(chunk_attention(query, cache, start, self.compute)), cache

    def _project(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns query [B,T,N,D] and key [B,T,K,D], both rotated, and value [B,T,K,D]."""
        rules = self.compute.rules
        heads = ("batch", "tokens", "heads", None)
        kv_heads = ("batch", "tokens", "kv_heads", None)
        query = constrain(apply_rope(self.query(x), rope), heads, rules)
        query = checkpoint_name(query, "query")
        key = constrain(apply_rope(self.key(x), rope), kv_heads, rules)
        key = checkpoint_name(key, "key")
        return query, key, checkpoint_name(constrain(self.value(x), kv_heads, rules), "value")


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
        options: dict[str, Any] = {
            "dim_sizes": {"H": config.hidden, "F": config.ffn},
            "use_bias": False,
            "stack": config.layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.compute = compute
        self.gate = Projection("BTH,HF->BTF", axes=("ffn_embed", "ffn_kernel"), **options)
        self.up = Projection("BTH,HF->BTF", axes=("ffn_embed", "ffn_kernel"), **options)
        self.down = Projection(
            "BTF,FH->BTH",
            axes=("ffn_kernel", "ffn_embed"),
            init_scale=1 / math.sqrt(2 * config.layers),
            **options,
        )

    def __call__(self, x: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
        """Applies the MLP."""
        gate, up = fused_dense(x, self.gate, self.up)
        gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
        hidden = constrain(jax.nn.silu(gate) * up, ("batch", "tokens", "ffn"), self.compute.rules)
        return self.down(hidden)
