"""How long a clip is: in chunks, in log-mel frames, in audio tokens. Everything here is integer arithmetic."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
CHUNK_SAMPLES = 25 * SAMPLE_RATE
HOP_SAMPLES = 160
PAD_SAMPLES = 479  # zeros that the log-mel puts on the right of each chunk
MAX_CHUNK_SAMPLES = 479_680  # 3000 log-mel frames: all that the encoder's positional table holds

# Which frames of a chunk count when its tokens are counted: all but two (the released Hugging Face
# code), or all (its server).
LengthConvention = Literal["hf", "vllm"]


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
    return [
        waveform[start : start + CHUNK_SAMPLES] for start in range(0, len(waveform), CHUNK_SAMPLES)
    ]


def chunk_lengths(samples: int) -> list[int]:
    """The number of samples in each chunk of a clip of `samples` samples at 16 kHz; see `split_chunks`."""
    if samples < 0:
        raise ValueError(f"a clip cannot have {samples} samples")
    return [min(CHUNK_SAMPLES, samples - start) for start in range(0, samples, CHUNK_SAMPLES)]


def mel_frames(samples: int) -> int:
    """The number of log-mel frames (10 ms each) of one chunk of `samples` samples at 16 kHz."""
    return (samples + PAD_SAMPLES) // HOP_SAMPLES


def chunk_token_count(frames: int, length_convention: LengthConvention = "hf") -> int:
    """The number of audio tokens (80 ms each) of one chunk of `frames` log-mel frames.

    The encoder halves the frames twice (its second convolution rounds up, its pooling down), the
    adaptor once more (up).
    """
    if length_convention not in ("hf", "vllm"):
        raise ValueError(f"length_convention={length_convention!r} is not one of 'hf', 'vllm'")
    counted = max(frames - 2, 0) if length_convention == "hf" else frames
    encoded = (counted + 1) // 2 // 2
    return (encoded + 1) // 2


def audio_token_count(samples: int, length_convention: LengthConvention = "hf") -> int:
    """The number of `<audio_patch>` tokens of a clip of any length: the sum over its chunks.

    `<audio_start>` and `<audio_end>`, two more tokens a chunk, are not counted.

    Args:
        samples: of the whole clip, at 16 kHz.
        length_convention: "hf" or "vllm", as the model's configuration has it.
    """
    return sum(
        chunk_token_count(mel_frames(chunk), length_convention) for chunk in chunk_lengths(samples)
    )


def audio_embeddings_per_chunk(frames: int) -> int:
    """Adaptor outputs of a chunk padded to `frames` mel frames: the encoder makes ceil(F/2) // 2, the adaptor half, rounded up.

    A chunk's own tokens are at most as many (fewer under the "hf" length convention, which does not
    count its last frames).
    """
    return -(-(-(-frames // 2) // 2) // 2)
