"""The device side of prefilling: encoding sound, and the keys and values of a prompt.

All shapes are static. A prompt is a single row, which all replicas of a mesh compute. `prefill`
computes it at once, padded to a bucket; `prefill_chunk` a piece of it, behind what is there.

In shapes, T is the tokens of a prompt's bucket or of a chunk, V the vocabulary, H the decoder's
hidden size.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.models import (
    CacheDtype,
    LayerCache,
    Parameters,
    abstract_model,
    constrain,
    merge_per_layer,
)


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """What a compiled program depends on beside the shapes of its arguments."""

    config: ModelConfig
    compute: ComputeConfig
    cache_dtype: CacheDtype
    max_top_logprobs: int = 0  # most alternatives of a token that a request may ask for
    has_masks: bool = False  # whether requests may restrict which tokens come next

    @property
    def mask_words(self) -> int:
        """The 32-bit words that hold one bit for each token of the vocabulary."""
        return -(-self.config.decoder.vocab_size // 32) if self.has_masks else 0

    @property
    def graphdef(self) -> Any:
        """The model's graph definition, for parameters in the layout of `models.unstack_layers`."""
        return abstract_model(self.config, self.compute)[0]

    @property
    def with_replicated_rows(self) -> "EngineSpec":
        """The same spec with the batch axis replicated: one row cannot be sharded."""
        rules = dataclasses.replace(self.compute.rules, batch=())
        return dataclasses.replace(self, compute=dataclasses.replace(self.compute, rules=rules))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """A prefilled prompt.

    Attributes:
        caches: keys and values of each layer, [1, K, T, D].
        logits: logits of the token after the prompt.
        seen: which tokens the prompt has.
        length: tokens of the prompt without padding.
    """

    caches: tuple[LayerCache, ...]
    logits: Float[Array, "1 V"]
    seen: Bool[Array | np.ndarray, "1 V"]
    length: Int[Array | np.ndarray, "1"]


@functools.partial(jax.jit, static_argnames="spec")
def encode_audio(
    spec: EngineSpec,
    parameters: Parameters,
    mel: Float[Array, "C mel_bins mel_frames"],
    mel_lengths: Int[Array, " C"],
) -> Float[Array, "C audio_tokens H"]:
    """Computes the adaptor's outputs of audio chunks, each by itself.

    Args:
        spec: which model.
        parameters: in decode layout.
        mel: log-mel of each chunk, padded to one length.
        mel_lengths: frames of each chunk.
    """
    spec = spec.with_replicated_rows
    model, _ = merge_per_layer(spec.graphdef, parameters)
    return constrain(
        model.encode_chunks(mel[None], mel_lengths[None])[1][0], (), spec.compute.rules
    )


@functools.partial(jax.jit, static_argnames="spec")
def adapt_audio(
    spec: EngineSpec,
    parameters: Parameters,
    features: Float[Array, "C audio_frames enc_hidden"],
) -> Float[Array, "C audio_tokens H"]:
    """Computes the adaptor's outputs of chunks whose encoder's outputs are known."""
    spec = spec.with_replicated_rows
    model, _ = merge_per_layer(spec.graphdef, parameters)
    return constrain(model.adapt_chunks(features[None])[0], (), spec.compute.rules)


@functools.partial(jax.jit, static_argnames="spec")
def prefill(
    spec: EngineSpec,
    parameters: Parameters,
    tokens: Int[Array, " T"],
    length: Int[Array, ""],
    audio: Float[Array, "audio_len H"],
    is_audio: Bool[Array, " T"],
) -> Prefix:
    """Computes keys and values of one prompt, and the logits of the token after it.

    Args:
        spec: which model.
        parameters: in decode layout.
        tokens: the prompt's tokens, padded.
        length: tokens of the prompt without padding.
        audio: the adaptor's outputs, each at the position of its token (audio_len is T), or
            audio_len 0 for a prompt without sound.
        is_audio: which tokens an adaptor's output stands for.
    """
    spec = spec.with_replicated_rows
    model, layers = merge_per_layer(spec.graphdef, parameters)
    embeddings = model.decoder.embed(tokens[None])
    if audio.shape[0]:
        embeddings = jnp.where(
            is_audio[None, :, None], audio[None].astype(embeddings.dtype), embeddings
        )
    empty = LayerCache.zeros(spec.config.decoder, 1, 1, spec.cache_dtype)
    positions = jnp.arange(tokens.shape[0])[None]
    hidden, caches = model.decoder.prefill(layers, embeddings, positions, empty)
    last = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
    seen = jnp.zeros((1, spec.config.decoder.vocab_size), bool)
    seen = seen.at[0, jnp.where(positions[0] < length, tokens, tokens[0])].set(True)
    caches = tuple(cache.constrain_sharding(spec.compute.rules) for cache in caches)
    return Prefix(
        caches, constrain(model.logits(last)[:, 0], (), spec.compute.rules), seen, length[None]
    )


@functools.partial(jax.jit, static_argnames=("spec", "tokens"))
def empty_prefix_caches(spec: EngineSpec, tokens: int) -> tuple[LayerCache, ...]:
    """Returns the caches into which one prompt of at most `tokens` tokens is prefilled."""
    decoder, rules = spec.config.decoder, spec.with_replicated_rows.compute.rules
    return tuple(
        LayerCache.zeros(decoder, 1, tokens, spec.cache_dtype).constrain_sharding(rules)
        for _ in range(decoder.layers)
    )


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="caches")
def prefill_chunk(
    spec: EngineSpec,
    parameters: Parameters,
    caches: tuple[LayerCache, ...],
    tokens: Int[Array, " T"],
    start: Int[Array, ""],
    length: Int[Array, ""],
    audio: Float[Array, "T H"],
    is_audio: Bool[Array, " T"],
) -> tuple[tuple[LayerCache, ...], Float[Array, "1 V"]]:
    """Computes keys and values of a prompt's next tokens, which attend to those before them.

    Args:
        spec: which model.
        parameters: in decode layout.
        caches: of the prompt, [1, K, cache_len, D], up to `start`; donated. They must hold
            `start` + T tokens.
        tokens: the chunk's tokens, padded.
        start: position of the first of them.
        length: tokens of the chunk without padding.
        audio: the adaptor's outputs, each at the place of its token.
        is_audio: which tokens an adaptor's output stands for.

    Returns:
        The caches, and the logits of the token after the chunk.
    """
    spec = spec.with_replicated_rows
    model, layers = merge_per_layer(spec.graphdef, parameters)
    embeddings = model.decoder.embed(tokens[None])
    embeddings = jnp.where(
        is_audio[None, :, None], audio[None].astype(embeddings.dtype), embeddings
    )
    hidden, caches = model.decoder.prefill_chunk(layers, embeddings, start, caches)
    last = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
    logits = constrain(model.logits(last)[:, 0], (), spec.compute.rules)
    rules = spec.compute.rules
    return tuple(cache.constrain_sharding(rules) for cache in caches), logits


@functools.partial(jax.jit, static_argnames=("spec", "size"))
def read_prefix_block(
    spec: EngineSpec, caches: tuple[LayerCache, ...], start: Int[Array, ""], size: int
) -> tuple[LayerCache, ...]:
    """Returns `size` positions of a prompt's caches from `start` on, as caches of that length."""
    rules = spec.with_replicated_rows.compute.rules
    return tuple(
        jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=2), cache
        ).constrain_sharding(rules)
        for cache in caches
    )


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="caches")
def write_prefix_block(
    spec: EngineSpec,
    caches: tuple[LayerCache, ...],
    block: tuple[LayerCache, ...],
    start: Int[Array, ""],
) -> tuple[LayerCache, ...]:
    """Returns a prompt's caches with a block of `read_prefix_block` from `start` on."""
    rules = spec.with_replicated_rows.compute.rules
    return tuple(
        jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=2), cache, part
        ).constrain_sharding(rules)
        for cache, part in zip(caches, block, strict=True)
    )
