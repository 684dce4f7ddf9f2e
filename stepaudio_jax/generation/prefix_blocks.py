"""Names of a prompt's blocks: equal where two prompts agree up to the end of the block."""

import hashlib

import numpy as np

from stepaudio_jax.generation.prompts import Prompt


def block_keys(prompt: Prompt, size: int) -> list[bytes]:
    """Returns a key for each block of `size` tokens that ends before the prompt's last token.

    The key of a block depends on all tokens and sounds up to its end, and on nothing behind it. The
    last token is in no block: its logits are always computed.
    """
    starts = audio_chunk_starts(prompt)
    key, keys, chunk = b"", [], 0
    for end in range(size, prompt.length, size):
        digest = hashlib.sha256(key)
        digest.update(np.ascontiguousarray(prompt.tokens[end - size : end]).tobytes())
        while chunk < len(starts) and starts[chunk] < end:
            digest.update(prompt.chunk_digests[chunk])
            chunk += 1
        key = digest.digest()
        keys.append(key)
    return keys


def audio_chunk_starts(prompt: Prompt) -> list[int]:
    """Returns the index of the first audio token of each chunk of sound."""
    positions = np.flatnonzero(prompt.is_audio)
    starts = np.cumsum([0, *prompt.chunk_tokens])[:-1]
    return [int(positions[start]) for start in starts]
