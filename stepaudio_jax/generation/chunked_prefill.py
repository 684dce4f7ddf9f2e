"""Prefills prompts piece by piece between calls of `decode`, so that no running request waits long.

A prompt is cut at multiples of a fixed number of tokens, wherever its beginning comes from: what is
computed for a block depends on nothing but the tokens and sounds up to its end. So a block that was
kept from an earlier prompt is bit for bit what computing it again would give.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation.audio_encoder import AudioEncoder
from stepaudio_jax.generation.bounded_cache import BoundedCache
from stepaudio_jax.generation.prefill_programs import (
    EngineSpec,
    Prefix,
    empty_prefix_caches,
    prefill_chunk,
    read_prefix_block,
    write_prefix_block,
)
from stepaudio_jax.generation.prefix_blocks import audio_chunk_starts, block_keys
from stepaudio_jax.generation.prompts import Prompt, bucket
from stepaudio_jax.kernels.partitioning import target_platform
from stepaudio_jax.models import LayerCache, Parameters

MIN_CHUNK_TOKENS = 32
_FINE_SHAPES_TOKENS = 128
_FINER_SHAPES_TOKENS_CPU, _FINER_STEP_CPU = 96, 16
PrefixBlock = tuple[LayerCache, ...]


@dataclasses.dataclass(frozen=True)
class ChunkedPrefillOptions:
    """How prompts are prefilled while other requests run.

    Attributes:
        chunk_tokens: of a prompt, between two calls of `decode`: a power of two, 32 at least.
        prefix_cache_bytes: of the keys and values of prompts' beginnings that are kept; 0 for none.
        audio_cache_bytes: of encoded sound that is kept, on the host; 0 for none.
    """

    chunk_tokens: int = 256
    prefix_cache_bytes: int = 0
    audio_cache_bytes: int = 0

    def __post_init__(self) -> None:
        size = self.chunk_tokens
        if size < MIN_CHUNK_TOKENS or size & (size - 1):
            raise GenerationError(
                f"chunk_tokens={size} must be a power of two, {MIN_CHUNK_TOKENS} or more"
            )
        for name in ("prefix_cache_bytes", "audio_cache_bytes"):
            if getattr(self, name) < 0:
                raise GenerationError(f"{name}={getattr(self, name)} must be 0 or more")


@dataclasses.dataclass
class _Work:
    """A prompt that is being prefilled.

    Attributes:
        prompt: the prompt.
        keys: of its whole blocks.
        position: tokens that are in the caches already.
        reused: tokens of blocks that were kept from earlier prompts.
        audio: the adaptor's outputs of each chunk of sound; None where not computed yet.
    """

    prompt: Prompt
    keys: list[bytes]
    position: int
    reused: int
    audio: list[NDArray[np.float32] | None]


class ChunkedPrefill:
    """Prefills one prompt at a time, a step a call.

    Args:
        spec: which model.
        encoder: encodes chunks of sound.
        chunk_tokens: of a step, a power of two and `MIN_CHUNK_TOKENS` at least.
        cache_len: tokens of the caches, a multiple of `chunk_tokens`.
        prefix_cache_bytes: of the keys and values that are kept of prompts' beginnings.
        audio_cache_bytes: of encoded sound that is kept, on the host.

    Attributes:
        chunk_tokens: as above.
        blocks: the kept keys and values.
        features: the kept encoded sound.
        prompt_tokens, reused_tokens: of all prompts so far; those that were kept from others.
        shapes: a name for each program that was used.
    """

    def __init__(
        self,
        spec: EngineSpec,
        encoder: AudioEncoder,
        *,
        chunk_tokens: int,
        cache_len: int,
        prefix_cache_bytes: int,
        audio_cache_bytes: int,
    ):
        self._spec, self._encoder = spec, encoder
        self.chunk_tokens, self._cache_len = chunk_tokens, cache_len
        self._caches: tuple[LayerCache, ...] = empty_prefix_caches(spec, cache_len)
        self.blocks: BoundedCache[PrefixBlock] = BoundedCache(prefix_cache_bytes)
        self.features: BoundedCache[NDArray[np.float32]] = BoundedCache(audio_cache_bytes)
        self._work: _Work | None = None
        self.prompt_tokens = 0
        self.reused_tokens = 0
        self.shapes: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether a prompt is being prefilled."""
        return self._work is not None

    @property
    def reused(self) -> int:
        """Tokens of the current prompt that were kept from earlier ones."""
        return 0 if self._work is None else self._work.reused

    def begin(self, prompt: Prompt) -> None:
        """Takes up a prompt, and copies the blocks of it that are kept."""
        keys = block_keys(prompt, self.chunk_tokens)
        position = 0
        for key in keys:
            block = self.blocks.get(key)
            if block is None:
                break
            self._caches = write_prefix_block(self._spec, self._caches, block, np.int32(position))
            position += self.chunk_tokens
        # Used from the last to the first: the beginning of a prompt outlives what follows it.
        for key in reversed(keys[: position // self.chunk_tokens]):
            self.blocks.touch(key)
        audio: list[NDArray[np.float32] | None] = [None] * len(prompt.chunks)
        if prompt.audio_embeddings is not None:
            ends = np.cumsum(prompt.chunk_tokens)[:-1]
            audio = list(np.split(prompt.audio_embeddings, ends))
        self._work = _Work(prompt, keys, position, position, audio)
        self.prompt_tokens += prompt.length
        self.reused_tokens += position

    def abandon(self) -> None:
        """Gives up the current prompt."""
        self._work = None

    def advance(self, parameters: Parameters) -> tuple[int, Prefix | None]:
        """Encodes a chunk of sound or computes a chunk of tokens.

        Returns:
            The tokens that take as long, at most `chunk_tokens`; and after the last chunk the
            prefilled prompt, valid until the next prompt begins.
        """
        work = self._work
        assert work is not None
        prompt, start = work.prompt, work.position
        size = min(self.chunk_tokens, prompt.length - start)
        missing = [
            index
            for index, (first, tokens) in enumerate(
                zip(audio_chunk_starts(prompt), prompt.chunk_tokens, strict=True)
            )
            if work.audio[index] is None and first < start + size and first + tokens > start
        ]
        if missing:
            work.audio[missing[0]], was_kept = self._encode(parameters, prompt, missing[0])
            return 0 if was_kept else self.chunk_tokens, None
        padded, logits = self._compute_chunk(parameters, work, start, size)
        work.position += size
        if size == self.chunk_tokens and start // size < len(work.keys):
            self._keep(work.keys[start // size], start)
        if work.position < prompt.length:
            return padded, None
        self._work = None
        seen = np.zeros((1, self._spec.config.decoder.vocab_size), bool)
        seen[0, prompt.tokens] = True
        length = np.array([prompt.length], np.int32)
        return padded, Prefix(self._caches, logits, seen, length)

    def forget(self) -> None:
        """Drops what is kept, as when the weights change."""
        self.blocks.clear()
        self.features.clear()

    def reset_counters(self) -> None:
        """Forgets what was counted so far."""
        self.prompt_tokens = self.reused_tokens = 0

    def warm_up(self, parameters: Parameters, frames: Sequence[int]) -> Iterator[str]:
        """Compiles every program, one after the other; yields the name of each.

        Args:
            parameters: in decode layout.
            frames: lengths of chunks of sound, one for each shape.
        """
        for length in frames:
            self._encoder.encode(
                parameters, [np.zeros((self._spec.config.encoder.mel_bins, length), np.float32)]
            )
            yield f"encode_audio {length}"
        for size in chunk_shapes(self.chunk_tokens):
            prompt = Prompt(
                np.zeros(size, np.int32), np.zeros(size, bool), np.zeros(size, bool), (), ()
            )
            self._compute_chunk(parameters, _Work(prompt, [], 0, 0, []), 0, size)
            yield f"prefill_chunk {size}"
        block = read_prefix_block(self._spec, self._caches, np.int32(0), self.chunk_tokens)
        self._caches = write_prefix_block(self._spec, self._caches, block, np.int32(0))
        yield f"prefix_block {self.chunk_tokens}"

    def _encode(
        self, parameters: Parameters, prompt: Prompt, index: int
    ) -> tuple[NDArray[np.float32], bool]:
        """Returns the adaptor's outputs [audio tokens, H] f32 of a chunk, and if they were kept."""
        key = prompt.chunk_digests[index]
        known = self.features.get(key)
        if known is not None:
            return known, True
        (output,) = self._encoder.encode(parameters, [prompt.chunks[index]])
        features = output[: prompt.chunk_tokens[index]].copy()
        self.features.put(key, features, features.nbytes)
        return features, False

    def _compute_chunk(
        self, parameters: Parameters, work: _Work, start: int, size: int
    ) -> tuple[int, Any]:
        """Computes `size` tokens from `start` on.

        Returns:
            The tokens with their padding, and the logits [1, V] after them.
        """
        prompt = work.prompt
        padded = next(shape for shape in chunk_shapes(self.chunk_tokens) if size <= shape)
        tokens, is_audio = np.zeros(padded, np.int32), np.zeros(padded, bool)
        tokens[:size] = prompt.tokens[start : start + size]
        is_audio[:size] = prompt.is_audio[start : start + size]
        audio = np.zeros((padded, self._spec.config.decoder.hidden), np.float32)
        if is_audio.any():
            audio[is_audio] = self._audio_between(work, start, start + size)
        self._caches, logits = prefill_chunk(
            self._spec,
            parameters,
            self._caches,
            tokens,
            np.int32(start),
            np.int32(size),
            audio,
            is_audio,
        )
        self.shapes.add(f"prefill_chunk {padded}")
        return padded, logits

    def _audio_between(self, work: _Work, start: int, end: int) -> NDArray[np.float32]:
        """Returns the adaptor's outputs of the audio tokens from `start` to `end`."""
        pieces = []
        starts = audio_chunk_starts(work.prompt)
        for first, tokens, features in zip(
            starts, work.prompt.chunk_tokens, work.audio, strict=True
        ):
            if first < end and first + tokens > start:
                assert features is not None
                pieces.append(features[max(start - first, 0) : end - first])
        return np.concatenate(pieces)

    def _keep(self, key: bytes, start: int) -> None:
        block = read_prefix_block(self._spec, self._caches, np.int32(start), self.chunk_tokens)
        self.blocks.put(key, block, sum(leaf.nbytes for leaf in jax.tree.leaves(block)))


def chunk_shapes(chunk_tokens: int) -> list[int]:
    """Returns the lengths to which chunks are padded: where that costs most, two a doubling.

    On a CPU, where padding costs as much as tokens, there is one more.
    """
    shapes = [MIN_CHUNK_TOKENS]
    while shapes[-1] < chunk_tokens:
        last = shapes[-1]
        if last >= _FINE_SHAPES_TOKENS:
            shapes.append(2 * last)
        elif last < _FINER_SHAPES_TOKENS_CPU and target_platform() == "cpu":
            shapes.append(last + _FINER_STEP_CPU)
        else:
            shapes.append(bucket(last + 1))
    return shapes
