"""Each clip of a step is encoded once: rollouts and all later passes take the frozen encoder's features from here."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from numpy.typing import NDArray

from stepaudio_jax.config import ComputeConfig, DataConfig, ModelConfig
from stepaudio_jax.generation import Prompt
from stepaudio_jax.models import Parameters, abstract_model
from stepaudio_jax.parallel import replicated

CHUNKS_PER_GROUP = 8  # chunks encoded together


class AudioFeatureCache:
    """Encoder and adaptor of one model, each a program of its own.

    Attributes:
        encoded: chunks that the encoder has heard so far.
    """

    def __init__(self, model: ModelConfig, compute: ComputeConfig, data: DataConfig, mesh: Mesh):
        self._frames = data.mel_frames_per_chunk
        self.num_encoded = 0
        alone = dataclasses.replace(
            compute, remat="none", rules=dataclasses.replace(compute.rules, batch=())
        )  # too few to cut
        graphdef, _ = abstract_model(model, alone)
        whole = replicated(mesh)

        def encode(parameters: Parameters, mel: jax.Array, mel_lengths: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, parameters).encoder(mel, mel_lengths)

        def adapt(parameters: Parameters, features: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, parameters).adaptor(features)

        self._encode, self._adapt = (
            jax.jit(encode, out_shardings=whole),
            jax.jit(adapt, out_shardings=whole),
        )

    def encode(
        self, parameters: Parameters, prompts: Sequence[Prompt]
    ) -> list[NDArray[np.float32]]:
        """Of each prompt [C,E,H_encoder] f32, on the host: the features of its chunks, zero beyond each."""
        chunks = [chunk for prompt in prompts for chunk in prompt.chunks]
        self.num_encoded += len(chunks)
        encoded = self._map_in_groups(functools.partial(self._encode_group, parameters), chunks)
        ends = np.cumsum([0, *(len(prompt.chunks) for prompt in prompts)])
        nothing = np.zeros((0, 0, 0), np.float32)
        return [
            encoded[start:end] if end > start else nothing
            for start, end in itertools.pairwise(ends)
        ]

    def embed(
        self,
        parameters: Parameters,
        prompts: Sequence[Prompt],
        features: Sequence[NDArray[np.float32]],
    ) -> list[Prompt]:
        """The prompts with the adaptor's outputs of their chunks, end to end, by these parameters."""
        every = [chunk for of_prompt in features for chunk in of_prompt]
        outputs = iter(
            self._map_in_groups(
                lambda group: np.asarray(self._adapt(parameters, np.stack(group)), np.float32),
                every,
            )
        )
        prompts_heard = []
        for prompt in prompts:
            own = [next(outputs)[:count] for count in prompt.chunk_tokens]
            prompts_heard.append(
                dataclasses.replace(prompt, audio_embeddings=np.concatenate(own)) if own else prompt
            )
        return prompts_heard

    def _encode_group(
        self, parameters: Parameters, group: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        mel = np.zeros((len(group), group[0].shape[0], self._frames), np.float32)
        for row, chunk in enumerate(group):
            mel[row, :, : chunk.shape[1]] = chunk
        lengths = np.array([chunk.shape[1] for chunk in group], np.int32)
        return np.asarray(self._encode(parameters, mel, lengths), np.float32)

    def _map_in_groups(self, apply, items: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
        """`apply` to a fixed number of items at a time, the last group filled up with its first item."""
        results = []
        for start in range(0, len(items), CHUNKS_PER_GROUP):
            group = list(items[start : start + CHUNKS_PER_GROUP])
            count = len(group)
            results.append(apply([*group, *[group[0]] * (CHUNKS_PER_GROUP - count)])[:count])
        return np.concatenate(results) if results else np.zeros((0, 0, 0), np.float32)
