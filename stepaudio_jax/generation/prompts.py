"""Prompts as arrays: a dialogue with its sound, and several of them padded to one batch.

In shapes, B is the prompts of a batch, T tokens, C audio chunks.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from stepaudio_jax.audio import clip_chunks, log_mel, split_chunks
from stepaudio_jax.audio.lengths import (
    audio_embeddings_per_chunk,
    audio_indices,
    max_mel_frames,
)
from stepaudio_jax.config import AudioChannel, DataConfig, LengthConvention, ModelConfig
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import GenerationError
from stepaudio_jax.models import StepAudio
from stepaudio_jax.text import AudioPart, Segment, Tokenizer, tokenize_dialogue

_MIN_BUCKET = 32
_BUCKETS_PER_DOUBLING = 2


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A rendered dialogue with its sound: T tokens, audio tokens included.

    Attributes:
        tokens: [T] i32.
        is_audio: [T] bool, where an adaptor output replaces the token's embedding.
        loss_mask: [T] bool, the tokens to be generated (none in a prompt that is to be answered).
        chunks: log-mel [128, mel frames] f32 of each audio chunk that has tokens, in order.
        chunk_tokens: number of audio tokens of each of them.
        audio_embeddings: [audio tokens, H] f32, the adaptor's outputs where they are known already;
            None for the engine to compute them.
    """

    tokens: NDArray[np.int32]
    is_audio: NDArray[np.bool_]
    loss_mask: NDArray[np.bool_]
    chunks: tuple[NDArray[np.float32], ...]
    chunk_tokens: tuple[int, ...]
    audio_embeddings: NDArray[np.float32] | None = None

    @property
    def length(self) -> int:
        """The number of tokens, audio tokens included."""
        return len(self.tokens)

    @functools.cached_property
    def chunk_digests(self) -> tuple[bytes, ...]:
        """A name for the sound of each chunk, equal where the sound is."""
        return tuple(map(digest_chunk, self.chunks))

    @property
    def longest_chunk(self) -> int:
        """The mel frames of the longest chunk; 0 without audio."""
        return max((chunk.shape[1] for chunk in self.chunks), default=0)


def digest_chunk(chunk: NDArray[np.float32]) -> bytes:
    """Returns a name for the sound of a chunk of log-mel, equal where the sound is."""
    return hashlib.sha256(np.ascontiguousarray(chunk).tobytes()).digest()


class AudioReader(Protocol):
    """Reads the waveform of a clip, [samples] f32 at 16 kHz, as `data.clips.load_clip` does."""

    def __call__(
        self, part: AudioPart, /, *, length_convention: LengthConvention, channel: AudioChannel
    ) -> NDArray[np.float32]: ...


def build_prompt(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    convention: LengthConvention,
    *,
    channel: AudioChannel = DataConfig.channel,
    read: AudioReader = load_clip,
) -> Prompt:
    """Reads the clips of rendered segments, and builds tokens and log-mel chunks.

    Args:
        segments: of one dialogue.
        tokenizer: the model's tokenizer.
        convention: how the audio tokens of a clip are counted.
        channel: which channel of a multichannel clip is used; see `load_audio`.
        read: reads a clip; another reader lets the model hear something else than the
            file.

    Raises:
        AudioError: a clip cannot be read.
    """

    def features(part: AudioPart) -> ClipFeatures:
        return clip_features(read(part, length_convention=convention, channel=channel), convention)

    return build_prompt_of_features(segments, tokenizer, features)


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """What a prompt has of a clip.

    Attributes:
        chunk_tokens: number of audio tokens of each chunk of the clip.
        chunks: log-mel [128, mel frames] f32 of each chunk that has tokens, in order.
    """

    chunk_tokens: tuple[int, ...]
    chunks: tuple[NDArray[np.float32], ...]


def clip_features(waveform: NDArray[np.float32], convention: LengthConvention) -> ClipFeatures:
    """Cuts a clip [samples] f32 at 16 kHz into chunks, and computes the log-mel of each."""
    counts = tuple(size.tokens for size in clip_chunks(len(waveform), convention))
    samples = zip(split_chunks(waveform), counts, strict=True)
    return ClipFeatures(counts, tuple(log_mel(chunk) for chunk, count in samples if count))


def build_prompt_of_features(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    features: Callable[[AudioPart], ClipFeatures],
) -> Prompt:
    """Builds a prompt as `build_prompt` does, from clips whose features are known.

    Args:
        segments: of one dialogue.
        tokenizer: the model's tokenizer.
        features: returns the features of a clip; called once for every place of it, in order.
    """
    chunks: list[NDArray[np.float32]] = []
    chunk_tokens: list[int] = []

    def add_clip(part: AudioPart) -> Sequence[int]:
        clip = features(part)
        chunks.extend(clip.chunks)
        chunk_tokens.extend(filter(None, clip.chunk_tokens))
        return clip.chunk_tokens

    dialogue = tokenize_dialogue(segments, add_clip, tokenizer)
    is_audio = dialogue.tokens == tokenizer.special.audio_patch
    return Prompt(dialogue.tokens, is_audio, dialogue.loss_mask, tuple(chunks), tuple(chunk_tokens))


def check_prompt_fits(
    prompt: Prompt, config: ModelConfig, *, new_tokens: int = 0, slot_tokens: int | None = None
) -> None:
    """Checks that a slot holds a prompt and its reply, and the encoder each of its chunks.

    Args:
        prompt: to be answered or scored.
        config: the model's shape.
        new_tokens: most tokens of the reply.
        slot_tokens: tokens of a slot; None for the model's positions.

    Raises:
        GenerationError: one does not; says by how much.
    """
    positions = config.decoder.max_positions
    limit = positions if slot_tokens is None else min(slot_tokens, positions)
    excess = prompt.length + new_tokens - limit
    if excess > 0:
        whose = "the model's" if limit == positions else "a slot's"
        raise GenerationError(
            f"the dialogue has {prompt.length} tokens and may get {new_tokens} new ones, {excess}"
            f" more than {whose} {limit} positions;"
            f" {'lower max_new_tokens or ' if new_tokens else ''}shorten the dialogue"
        )
    frames = max_mel_frames(config.encoder.positions)
    if prompt.longest_chunk > frames:
        raise GenerationError(
            f"the dialogue has an audio chunk of {prompt.longest_chunk} mel frames, more than the"
            f" {frames} that the model's encoder.positions={config.encoder.positions} hold; cut the"
            " clip"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Prompts padded to one shape.

    Attributes:
        tokens: of each prompt.
        audio_index: index of the adaptor's output that replaces a token's embedding, among those of
            all chunks of the row; -1 for text.
        lengths: tokens of each prompt without padding.
        mel: log-mel of each chunk.
        mel_lengths: frames of each chunk, 0 where there is none.
    """

    tokens: Int[Array | np.ndarray, "B T"]
    audio_index: Int[Array | np.ndarray, "B T"]
    lengths: Int[Array | np.ndarray, " B"]
    mel: Float[Array | np.ndarray, "B C mel_bins mel_frames"]
    mel_lengths: Int[Array | np.ndarray, "B C"]


def stack_prompts(prompts: Sequence[Prompt], config: ModelConfig, *, rows: int) -> PromptBatch:
    """Pads prompts that fit the model to buckets, and adds one-token prompts up to `rows` rows."""
    tokens_bucket = bucket(max(prompt.length for prompt in prompts))
    chunk_count = max(len(prompt.chunks) for prompt in prompts)
    longest_chunk = max(prompt.longest_chunk for prompt in prompts)
    longest_bucket = max_mel_frames(config.encoder.positions)
    frames_bucket = min(bucket(longest_chunk), longest_bucket) if chunk_count else 0
    per_chunk = audio_embeddings_per_chunk(frames_bucket)
    batch = PromptBatch(
        tokens=np.zeros((rows, tokens_bucket), np.int32),
        audio_index=np.full((rows, tokens_bucket), -1, np.int32),
        lengths=np.ones(rows, np.int32),
        mel=np.zeros((rows, chunk_count, config.encoder.mel_bins, frames_bucket), np.float32),
        mel_lengths=np.zeros((rows, chunk_count), np.int32),
    )
    for row, prompt in enumerate(prompts):
        batch.tokens[row, : prompt.length] = prompt.tokens
        batch.lengths[row] = prompt.length
        indices = audio_indices(prompt.chunk_tokens, per_chunk)
        batch.audio_index[row, : prompt.length][prompt.is_audio] = indices
        for index, chunk in enumerate(prompt.chunks):
            batch.mel[row, index, :, : chunk.shape[1]] = chunk
            batch.mel_lengths[row, index] = chunk.shape[1]
    return batch


def embed_prompts(model: StepAudio, batch: PromptBatch) -> Float[Array, "B T H"]:
    """Computes the embeddings of prompts, with the adaptor's outputs at their audio tokens."""
    audio = None
    if batch.mel.shape[1]:
        audio = model.encode_audio(jnp.asarray(batch.mel), jnp.asarray(batch.mel_lengths))
    return model.embed(jnp.asarray(batch.tokens), audio, jnp.asarray(batch.audio_index))


def bucket(size: int) -> int:
    """Returns the smallest bucket that holds `size`: 32, 48, 64, 96, 128, .. (two a doubling).

    Padding then adds at most a half, and few programs are compiled.
    """
    base = _MIN_BUCKET
    while True:
        for part in range(_BUCKETS_PER_DOUBLING):
            candidate = base + base * part // _BUCKETS_PER_DOUBLING
            if size <= candidate:
                return candidate
        base *= 2
