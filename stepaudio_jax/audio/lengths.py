"""Audio-length arithmetic, all in one place: samples -> 25 s chunks -> mel frames -> audio tokens.

What one chunk passes through, and how many values a second each step has:

    waveform           16 000   samples
    log-mel               100   mel_frame_count: 479 zeros on the right, then a hop of 160 samples
    2nd convolution        50   conv_frame_count: stride 2, rounded up (one position each)
    encoder                25   encoder_frame_count: average pool of 2, rounded down
    adaptor              12.5   audio_embeddings_per_chunk: convolution of stride 2, rounded up

A chunk is padded to a bucket of mel frames, so the adaptor returns
`audio_embeddings_per_chunk(bucket)` embeddings for it; the first `chunk_token_count(its own mel
frames)` of them stand for its audio tokens.

The functions of frames take and return Python ints, NumPy arrays and (traced) JAX arrays alike.
"""

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import LengthConvention

if TYPE_CHECKING:
    import jax

SAMPLE_RATE = 16_000
HOP_SAMPLES = 160
MEL_FRAMES_PER_SECOND = SAMPLE_RATE // HOP_SAMPLES
PAD_SAMPLES = 479  # zeros that the log-mel puts on the right of each chunk
CHUNK_SAMPLES = 25 * SAMPLE_RATE
MAX_CHUNK_SAMPLES = 479_680  # 3000 mel frames: all that the released encoder's table holds

Count = TypeVar("Count", int, NDArray[np.integer], "jax.Array")


class ChunkSize(NamedTuple):
    """Holds the size of one chunk in samples, mel frames and audio tokens."""

    samples: int
    mel_frames: int
    tokens: int


def clip_chunks(samples: int, length_convention: LengthConvention = "hf") -> list[ChunkSize]:
    """Returns the size of each chunk of a clip; see `split_chunks`.

    Only the last chunk can have no token: one of at most 320 samples under "hf".

    Args:
        samples: of the whole clip, at 16 kHz.
        length_convention: "hf" or "vllm", as in the model's configuration.

    Raises:
        ValueError: the number of samples is negative, or the convention is unknown.
    """
    sizes = []
    for length in chunk_lengths(samples):
        frames = mel_frame_count(length)
        sizes.append(ChunkSize(length, frames, chunk_token_count(frames, length_convention)))
    return sizes


def audio_token_count(samples: int, length_convention: LengthConvention = "hf") -> int:
    """Returns the number of `<audio_patch>` tokens of a clip: the sum over its chunks.

    `<audio_start>` and `<audio_end>`, two more tokens a chunk, are not counted. Arguments and
    errors are those of `clip_chunks`.
    """
    return sum(chunk.tokens for chunk in clip_chunks(samples, length_convention))


def max_clip_samples(
    tokens: int, chunks: int, mel_frames: int, length_convention: LengthConvention = "hf"
) -> int:
    """Returns the longest clip, in samples, that a row has room for; 0 if it has none.

    Args:
        tokens: that the clip may take, with `<audio_start>` and `<audio_end>` of each chunk.
        chunks: that it may have.
        mel_frames: that each of them may have.
        length_convention: as of `clip_chunks`.
    """
    longest_chunk = max_chunk_samples(mel_frames)
    # Only the last chunk of a clip is shorter than 25 s.
    is_full = longest_chunk >= CHUNK_SAMPLES
    longest = chunks * CHUNK_SAMPLES if is_full else min(chunks, 1) * longest_chunk

    def count_tokens(samples: int) -> int:
        return sum(size.tokens + 2 for size in clip_chunks(samples, length_convention))

    return max(bisect.bisect_right(range(longest + 1), tokens, key=count_tokens) - 1, 0)


def split_chunks(waveform: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Cuts a clip into consecutive chunks of 25 s; the last one is what remains.

    An exact multiple of 25 s has no empty last chunk, and an empty clip has no chunk. A last chunk
    of at most 320 samples (20 ms) is kept, as in the released code, although it has no audio token
    under "hf": it is `<audio_start><audio_end>` then.

    Args:
        waveform: [samples] at 16 kHz.

    Returns:
        Views of the waveform, [<= 400000] each.
    """
    starts = range(0, len(waveform), CHUNK_SAMPLES)
    return [waveform[start : start + CHUNK_SAMPLES] for start in starts]


def chunk_lengths(samples: int) -> list[int]:
    """Returns the samples in each chunk of a clip of `samples` samples; see `split_chunks`."""
    if samples < 0:
        raise ValueError(f"a clip cannot have {samples} samples")
    return [min(CHUNK_SAMPLES, samples - start) for start in range(0, samples, CHUNK_SAMPLES)]


def mel_frame_count(samples: Count) -> Count:
    """Returns the log-mel frames (10 ms each) of one chunk of `samples` samples at 16 kHz."""
    return (samples + PAD_SAMPLES) // HOP_SAMPLES


def conv_frame_count(mel_frames: Count) -> Count:
    """Returns the frames (20 ms each) behind the encoder's second convolution: ceil(mel / 2)."""
    return (mel_frames + 1) // 2


def encoder_frame_count(mel_frames: Count) -> Count:
    """Returns the encoder's output frames (40 ms each) for a chunk: ceil(mel / 2) // 2."""
    return conv_frame_count(mel_frames) // 2


def audio_embeddings_per_chunk(mel_frames: Count) -> Count:
    """Returns the adaptor's outputs (80 ms each) for a chunk padded to `mel_frames` frames.

    A chunk's own tokens are at most as many: under "hf" its last two frames do not count.
    """
    return (encoder_frame_count(mel_frames) + 1) // 2


def chunk_token_count(mel_frames: Count, length_convention: LengthConvention = "hf") -> Count:
    """Returns the number of audio tokens (80 ms each) of one chunk of `mel_frames` frames.

    Args:
        mel_frames: of the chunk, without padding; 0 gives 0.
        length_convention: "hf" counts all frames but two, as the released Hugging Face code does;
            "vllm" counts all, as the released server does.

    Raises:
        ValueError: the convention is neither.
    """
    if length_convention not in get_args(LengthConvention):
        raise ValueError(f"length_convention={length_convention!r} is not one of 'hf', 'vllm'")
    # Floor division makes 0 of 0 and of 1 frame under "hf" too: (-2 + 1) // 2 // 2 = -1.
    return audio_embeddings_per_chunk(mel_frames - 2 if length_convention == "hf" else mel_frames)


def min_token_samples(tokens: int, length_convention: LengthConvention = "hf") -> int:
    """Returns the fewest samples of one chunk that has at least `tokens` audio tokens.

    The inverse of `chunk_token_count` behind `mel_frame_count`: n tokens need 8 n - 5 mel frames,
    and under "hf" two more.
    """
    if tokens <= 0:
        return 0
    mel_frames = 8 * tokens - 5 + (2 if length_convention == "hf" else 0)
    return max(HOP_SAMPLES * mel_frames - PAD_SAMPLES, 1)


def max_mel_frames(encoder_positions: int) -> int:
    """Returns the longest chunk, in mel frames, that a positional table of that size holds."""
    return 2 * encoder_positions


def max_chunk_samples(mel_frames: int) -> int:
    """Returns the longest chunk, in samples, of at most `mel_frames` frames."""
    return HOP_SAMPLES * (mel_frames + 1) - 1 - PAD_SAMPLES


def audio_indices(
    chunk_tokens: Sequence[int], embeddings_per_chunk: int, first_chunk: int = 0
) -> NDArray[np.int32]:
    """Returns which of a row's audio embeddings stands for each audio token of some chunks.

    Args:
        chunk_tokens: the audio tokens of each chunk, in order.
        embeddings_per_chunk: the adaptor's outputs for each padded chunk of the row.
        first_chunk: the index within the row of the first of these chunks.

    Returns:
        [sum(chunk_tokens)] i32: index of the chunk * embeddings_per_chunk + offset in the chunk.
    """
    counts = np.asarray(chunk_tokens, np.int32)
    starts = embeddings_per_chunk * np.arange(
        first_chunk, first_chunk + len(counts), dtype=np.int32
    )
    offsets = np.arange(counts.sum(), dtype=np.int32) - np.repeat(counts.cumsum() - counts, counts)
    return (np.repeat(starts, counts) + offsets).astype(np.int32)
