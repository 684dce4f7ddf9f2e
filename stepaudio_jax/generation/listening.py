"""Hearing a prompt's chunks: the encoder's own buckets, so that sound compiles few programs whatever the prompts."""

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.generation import slots as device
from stepaudio_jax.generation.prompt import Prompt, bucket
from stepaudio_jax.models import Parameters

_MAX_CHUNKS = 8  # heard at once


class AudioEncoder:
    """Runs encoder and adaptor.

    Attributes:
        shapes: of the programs that it has needed.
    """

    def __init__(self, program: device.EngineSpec):
        self._program = program
        self.shapes: set[str] = set()

    def encode(self, parameters: Parameters, prompt: Prompt) -> NDArray[np.float32]:
        """The adaptor's outputs of all chunks, end to end: [audio tokens of the prompt, H] f32, on the host.

        Chunks of one bucket of lengths are heard together, in groups of 1, 2, 4 or 8.
        """
        longest = 2 * self._program.config.encoder.positions
        sizes = [min(bucket(chunk.shape[1]), longest) for chunk in prompt.chunks]
        outputs: dict[int, NDArray[np.float32]] = {}
        for size in sorted(set(sizes)):
            places = [place for place, of_chunk in enumerate(sizes) if of_chunk == size]
            while places:
                count = min(1 << (len(places) - 1).bit_length(), _MAX_CHUNKS)
                together, places = places[:count], places[count:]
                mel = np.zeros((count, self._program.config.encoder.mel_bins, size), np.float32)
                lengths = np.zeros(count, np.int32)
                for row, place in enumerate(together):
                    chunk = prompt.chunks[place]
                    mel[row, :, : chunk.shape[1]], lengths[row] = chunk, chunk.shape[1]
                self.shapes.add(f"encode_audio {count} x {size}")
                heard = np.asarray(
                    device.encode_audio(self._program, parameters, mel, lengths), np.float32
                )
                outputs |= {
                    place: heard[row, : prompt.chunk_tokens[place]]
                    for row, place in enumerate(together)
                }
        return np.concatenate([outputs[place] for place in range(len(sizes))])
