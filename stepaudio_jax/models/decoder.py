"""The Qwen2-family decoder."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from stepaudio_jax.config import ComputeConfig, DecoderConfig
from stepaudio_jax.models.attention import attention
from stepaudio_jax.models.constraints import constrain
from stepaudio_jax.models.layers import Projection, RMSNorm, normal, parameter
from stepaudio_jax.models.rotary import rotary_angles, rotate
from stepaudio_jax.models.stack import scan_layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens seen so far: [L,B,S,K,D] each; the token at position p of row b stands in slot p.

    Slots at and after a row's length hold anything: a query at position p sees slots 0..p only, and slot p is written before
    it is read. Right padding of a prompt therefore needs no mask.
    """

    keys: jax.Array
    values: jax.Array

    @classmethod
    def zeros(cls, config: DecoderConfig, rows: int, slots: int, dtype: jnp.dtype) -> "KVCache":
        """An empty cache for `rows` dialogues of at most `slots` tokens each."""
        shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
        return cls(keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype))


class DecoderAttention(nnx.Module):
    """Causal grouped-query attention with rotary positions; q, k, v have biases, the output has none."""

    def __init__(self, config: DecoderConfig, *, compute: ComputeConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        layers = config.layers
        self.compute = compute
        sizes = {"H": config.hidden, "N": config.heads, "K": config.kv_heads, "D": config.head_dim}
        options: dict[str, Any] = {"sizes": sizes, "stack": layers, "param_dtype": param_dtype, "rngs": rngs}
        self.query = Projection("BTH,HND->BTND", use_bias=True, **options)
        self.key = Projection("BTH,HKD->BTKD", use_bias=True, **options)
        self.value = Projection("BTH,HKD->BTKD", use_bias=True, **options)
        self.output = Projection("BTND,NDH->BTH", use_bias=False, init_scale=1 / math.sqrt(2 * layers), **options)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        cache: KVCache | None,
    ) -> tuple[jax.Array, KVCache | None]:
        rules = self.compute.rules
        query = checkpoint_name(constrain(rotate(self.query(x), angles), "BTND", rules), "query")
        key = checkpoint_name(constrain(rotate(self.key(x), angles), "BTKD", rules), "key")
        value = checkpoint_name(constrain(self.value(x), "BTKD", rules), "value")
        if cache is None:
            out = attention(
                query,
                key,
                value,
                query_segments=segment_ids,
                key_segments=segment_ids,
                compute=self.compute,
                causal=True,
            )
            return self.output(out), None
        cache = KVCache(keys=_write(cache.keys, key, positions[:, 0]), values=_write(cache.values, value, positions[:, 0]))
        rows, slots = cache.keys.shape[:2]
        out = attention(
            query,
            cache.keys.astype(x.dtype),
            cache.values.astype(x.dtype),
            query_segments=jnp.ones_like(positions),
            key_segments=jnp.ones((rows, slots), jnp.int32),
            compute=self.compute,
            causal=True,
            first_slot=positions[:, 0],
        )
        return self.output(out), cache


class DecoderLayer(nnx.Module):
    """Pre-norm block: attention, then a SwiGLU MLP (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig, *, compute: ComputeConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        stack: dict[str, Any] = {"stack": config.layers, "param_dtype": param_dtype, "rngs": rngs}
        self.compute = compute
        self.attention_norm = RMSNorm(config.hidden, eps=config.norm_eps, **stack)
        self.attention = DecoderAttention(config, compute=compute, param_dtype=param_dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden, eps=config.norm_eps, **stack)
        self.mlp = GatedMLP(config, compute=compute, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        cache: KVCache | None,
    ) -> tuple[jax.Array, KVCache | None]:
        attended, cache = self.attention(self.attention_norm(x), positions, segment_ids, angles, cache)
        x = x + attended
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "BTH", self.compute.rules), cache


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, *, compute: ComputeConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        sizes = {"H": config.hidden, "F": config.ffn}
        self.compute = compute
        options: dict[str, Any] = {
            "sizes": sizes,
            "use_bias": False,
            "stack": config.layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.gate = Projection("BTH,HF->BTF", **options)
        self.up = Projection("BTH,HF->BTF", **options)
        self.down = Projection("BTF,FH->BTH", init_scale=1 / math.sqrt(2 * config.layers), **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = checkpoint_name(self.gate(x), "gate"), checkpoint_name(self.up(x), "up")
        return self.down(constrain(jax.nn.silu(gate) * up, "BTF", self.compute.rules))


class Decoder(nnx.Module):
    """Token embedding, a stack of layers, final norm, and the language-model head."""

    def __init__(self, config: DecoderConfig, *, compute: ComputeConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        sizes = {"V": config.vocab_size, "H": config.hidden}
        self.config = config
        self.compute = compute
        self.embedding = parameter(rngs, "VH", sizes, normal(0.02), param_dtype)
        self.layers = DecoderLayer(config, compute=compute, param_dtype=param_dtype, rngs=rngs)
        self.norm = RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype, rngs=rngs)
        self.head = (
            None
            if config.tied_embeddings
            else Projection("BTH,HV->BTV", sizes, use_bias=False, param_dtype=param_dtype, rngs=rngs)
        )

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B,T] i32 -> embeddings [B,T,H] in the compute dtype."""
        return constrain(self.embedding[...].astype(self.compute.dtype)[tokens], "BTH", self.compute.rules)

    def __call__(
        self, embeddings: jax.Array, positions: jax.Array, segment_ids: jax.Array, cache: KVCache | None = None
    ) -> tuple[jax.Array, KVCache | None]:
        """Embeddings [B,T,H] -> hidden states after the final norm [B,T,H], and the cache with these tokens written.

        Args:
            embeddings: [B,T,H].
            positions: [B,T] i32. With a cache a row's positions are consecutive: its keys go to slots positions[b, 0] onwards.
            segment_ids: [B,T] i32. Without a cache, tokens see only their own segment; with one, a row is one dialogue.
            cache: what earlier calls have seen, or None.
        """
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)

        def apply(layer: DecoderLayer, x: jax.Array, layer_cache: KVCache | None) -> tuple[jax.Array, KVCache | None]:
            return layer(x, positions, segment_ids, angles, layer_cache)

        hidden, cache = scan_layers(self.layers, apply, embeddings, cache, compute=self.compute)
        return self.norm(hidden), cache

    def head_kernel(self) -> jax.Array:
        """The language-model head [H,V], in the dtype of the parameters."""
        return self.embedding[...].T if self.head is None else self.head.kernel[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., T, H] -> logits [..., T, V] in fp32."""
        kernel = self.head_kernel().astype(hidden.dtype)
        return jnp.einsum("...TH,HV->...TV", hidden, kernel, preferred_element_type=jnp.float32)


def _write(slots: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new [B,T,K,D] into slots [B,S,K,D], row b from slot start[b] on."""

    def write_row(row: jax.Array, update: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, update.astype(row.dtype), (offset, 0, 0))

    return jax.vmap(write_row)(slots, new, start)
