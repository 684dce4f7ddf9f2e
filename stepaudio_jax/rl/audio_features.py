"""Audio features of a step's prompts: each clip is encoded once, for rollouts and updates alike."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32
from numpy.typing import NDArray

from stepaudio_jax.config import ComputeConfig, DataConfig, ModelConfig
from stepaudio_jax.generation import Prompt
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


class AudioFeatureEncoder:
    """Encodes prompts' audio by encoder and adaptor, each a compiled program of one shape.

    Args:
        model: its shape.
        compute: of the model.
        data: `mel_frames_per_chunk` is the length that chunks are padded to.
        mesh: of the devices; the few chunks of a group are replicated.

    Attributes:
        num_encoded: number of chunks encoded so far.
    """

    def __init__(self, model: ModelConfig, compute: ComputeConfig, data: DataConfig, mesh: Mesh):
        self._mel_frames = data.mel_frames_per_chunk
        self.num_encoded = 0
        unsharded_rules = dataclasses.replace(compute.rules, batch=())
        compute = dataclasses.replace(compute, remat="none", rules=unsharded_rules)
        graphdef, _ = abstract_model(model, compute)

        def encode(params: Parameters, mel: jax.Array, mel_lengths: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).encoder(mel, mel_lengths)

        def adapt(params: Parameters, features: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).adaptor(features)

        self._encode = jax.jit(encode, out_shardings=replicated(mesh))
        self._adapt = jax.jit(adapt, out_shardings=replicated(mesh))

    def __call__(self, params: Parameters, prompts: Sequence[Prompt]) -> AudioFeatures:
        """Encodes the chunks of all prompts."""
        by_prompt = self.encode(params, prompts)
        return AudioFeatures(by_prompt, self._embed(params, prompts, by_prompt))

    def encode(
        self, params: Parameters, prompts: Sequence[Prompt]
    ) -> list[Float32[np.ndarray, "_C _audio_frames _encoder_hidden"]]:
        """Returns the encoder's output for each prompt, see `AudioFeatures.by_prompt`."""
        chunks = [chunk for prompt in prompts for chunk in prompt.chunks]
        self.num_encoded += len(chunks)
        encoded = _map_in_groups(functools.partial(self._encode_group, params), chunks)
        ends = np.cumsum([0, *(len(prompt.chunks) for prompt in prompts)])
        no_features = np.zeros((0, 0, 0), np.float32)
        return [
            encoded[start:end] if end > start else no_features
            for start, end in itertools.pairwise(ends)
        ]

    def _embed(
        self,
        params: Parameters,
        prompts: Sequence[Prompt],
        by_prompt: Sequence[NDArray[np.float32]],
    ) -> list[Prompt]:
        """Returns the prompts with the audio embeddings of their chunks, end to end."""
        chunks = [chunk for of_prompt in by_prompt for chunk in of_prompt]
        outputs = iter(
            _map_in_groups(
                lambda group: np.asarray(self._adapt(params, np.stack(group)), np.float32), chunks
            )
        )
        embedded = []
        for prompt in prompts:
            embeddings = [next(outputs)[:count] for count in prompt.chunk_tokens]
            if embeddings:
                prompt = dataclasses.replace(prompt, audio_embeddings=np.concatenate(embeddings))
            embedded.append(prompt)
        return embedded

    def _encode_group(
        self, params: Parameters, group: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        mel = np.zeros((len(group), group[0].shape[0], self._mel_frames), np.float32)
        for row, chunk in enumerate(group):
            mel[row, :, : chunk.shape[1]] = chunk
        lengths = np.array([chunk.shape[1] for chunk in group], np.int32)
        return np.asarray(self._encode(params, mel, lengths), np.float32)


def _map_in_groups(
    apply: Callable[[list[NDArray[np.float32]]], NDArray[np.float32]],
    items: Sequence[NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Applies a program to `CHUNKS_PER_GROUP` items at a time; the last group repeats an item."""
    outputs = []
    for start in range(0, len(items), CHUNKS_PER_GROUP):
        group = list(items[start : start + CHUNKS_PER_GROUP])
        padding = [group[0]] * (CHUNKS_PER_GROUP - len(group))
        outputs.append(apply([*group, *padding])[: len(group)])
    return np.concatenate(outputs) if outputs else np.zeros((0, 0, 0), np.float32)
