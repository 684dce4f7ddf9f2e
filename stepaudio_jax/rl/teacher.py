"""A teacher's log-probabilities of the policy's own replies."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32
from numpy.typing import NDArray

from stepaudio_jax.config import Config, DataConfig
from stepaudio_jax.generation import Prompt
from stepaudio_jax.models import Parameters
from stepaudio_jax.parallel import replicated
from stepaudio_jax.rl.audio_features import AudioFeatureEncoder
from stepaudio_jax.rl.packing import PackedRollouts, RolloutBatch
from stepaudio_jax.rl.policy_update import token_logprobs
from stepaudio_jax.training.teacher import TeacherDef, read_teacher


class TeacherScorer:
    """Scores the policy's replies by a teacher, which hears by its own encoder.

    Args:
        config: of the run.
        teacher: its static side.
        data: the sizes of a row.
        temperature: of the policy; the teacher's distribution is tempered alike.
        mesh: of the devices.
        place: puts host arrays [rows, ..] on the mesh, in batches.
    """

    def __init__(
        self,
        config: Config,
        teacher: TeacherDef,
        data: DataConfig,
        temperature: float,
        mesh: Mesh,
        place: Callable[[Any], list[Any]],
    ):
        self._params = read_teacher(config, teacher, mesh)
        self._encoder = AudioFeatureEncoder(teacher.config, config.compute, data, mesh)
        self._place = place

        def logprobs(params: Parameters, batch: RolloutBatch) -> jax.Array:
            return token_logprobs(teacher.merge(params), batch, temperature)[0]

        self._logprobs = jax.jit(logprobs, out_shardings=replicated(mesh))

    def encode(self, prompts: Sequence[Prompt]) -> list[NDArray[np.float32]]:
        """Returns the output of the teacher's encoder for each prompt."""
        return self._encoder.encode(self._params, prompts)

    def __call__(
        self,
        packed: PackedRollouts,
        features: Sequence[NDArray[np.float32]],
        pad_token: int,
        spoken: Sequence[Sequence[NDArray[np.float32]]],
    ) -> Float32[np.ndarray, "rows T"]:
        """Returns the log-probability of each token that the policy wrote, where it is a target.

        Args:
            packed: rollouts in rows.
            features: of each prompt, by `encode`.
            pad_token: where there is no token.
            spoken: of each user's turn of each rollout, by `encode`.
        """
        batches = self._place(packed.batch(features, pad_token, spoken))
        return np.concatenate(
            [np.asarray(self._logprobs(self._params, batch)) for batch in batches]
        )
