"""Audio features of a step's prompts: each clip is encoded once, for rollouts and updates alike."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32
from numpy.typing import NDArray

from stepaudio_jax.config import ComputeConfig, DataConfig, ModelConfig
from stepaudio_jax.generation import Prompt
from stepaudio_jax.generation.audio_encoder import AudioEncoder, fixed_groups
from stepaudio_jax.models import Parameters, abstract_model
from stepaudio_jax.parallel import replicated

CHUNKS_PER_GROUP = 8  # encoded together


@dataclasses.dataclass(frozen=True)
class AudioFeatures:
    """The audio of a step's prompts, on the host.

    Attributes:
        by_prompt: for each prompt the encoder's output of its chunks, 0 beyond the end of each; the
            encoder is frozen, so updates start from here.
        prompts: with the adaptor's output, `Prompt.audio_embeddings`: rollouts start from here.
    """

    by_prompt: list[Float32[np.ndarray, "_C _audio_frames _encoder_hidden"]]
    prompts: list[Prompt]

    @property
    def by_chunk(self) -> dict[bytes, Float32[np.ndarray, "audio_frames encoder_hidden"]]:
        """Returns the encoder's output by the digest of each chunk's log-mel, without copies."""
        return {
            digest: features
            for prompt, of_prompt in zip(self.prompts, self.by_prompt, strict=True)
            for digest, features in zip(prompt.chunk_digests, of_prompt, strict=True)
        }


class AudioFeatureEncoder:
    """Encodes prompts' audio by encoder and adaptor, each a compiled program of one shape.

    Args:
        model: its shape.
        compute: how the model is computed.
        data: `mel_frames_per_chunk` is the length that chunks are padded to.
        mesh: the mesh of the devices; the few chunks of a group are replicated.
    """

    def __init__(self, model: ModelConfig, compute: ComputeConfig, data: DataConfig, mesh: Mesh):
        unsharded_rules = dataclasses.replace(compute.rules, batch=())
        compute = dataclasses.replace(compute, remat="none", rules=unsharded_rules)
        graphdef, _ = abstract_model(model, compute)

        def encode(params: Parameters, mel: jax.Array, mel_lengths: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).encoder(mel, mel_lengths)

        def adapt(params: Parameters, features: jax.Array, _: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).adaptor(features)

        self._encoder, self._adaptor = (
            AudioEncoder(
                jax.jit(program, out_shardings=replicated(mesh)),
                functools.partial(fixed_groups, rows=CHUNKS_PER_GROUP, frames=size),
            )
            for program, size in (
                (encode, data.mel_frames_per_chunk),
                (adapt, model.encoder.hidden),  # features [audio_frames, hidden]: no padding
            )
        )

    @property
    def num_encoded(self) -> int:
        """Returns the number of chunks encoded so far."""
        return self._encoder.num_encoded

    def __call__(self, params: Parameters, prompts: Sequence[Prompt]) -> AudioFeatures:
        """Encodes the chunks of all prompts."""
        by_prompt = self.encode(params, prompts)
        return AudioFeatures(by_prompt, self._embed(params, prompts, by_prompt))

    def encode(
        self, params: Parameters, prompts: Sequence[Prompt]
    ) -> list[Float32[np.ndarray, "_C _audio_frames _encoder_hidden"]]:
        """Returns the encoder's output for each prompt, see `AudioFeatures.by_prompt`."""
        chunks = [chunk for prompt in prompts for chunk in prompt.chunks]
        features = iter(self._encoder.encode(params, chunks))
        no_features = np.zeros((0, 0, 0), np.float32)
        return [
            np.stack(list(itertools.islice(features, len(prompt.chunks))))
            if prompt.chunks
            else no_features
            for prompt in prompts
        ]

    def _embed(
        self,
        params: Parameters,
        prompts: Sequence[Prompt],
        by_prompt: Sequence[NDArray[np.float32]],
    ) -> list[Prompt]:
        """Returns the prompts with the audio embeddings of their chunks, end to end."""
        chunks = [chunk for of_prompt in by_prompt for chunk in of_prompt]
        outputs = iter(self._adaptor.encode(params, chunks))
        embedded = []
        for prompt in prompts:
            embeddings = [next(outputs)[:count] for count in prompt.chunk_tokens]
            if embeddings:
                prompt = dataclasses.replace(prompt, audio_embeddings=np.concatenate(embeddings))
            embedded.append(prompt)
        return embedded
