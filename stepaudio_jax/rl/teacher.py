"""A teacher's log-probabilities of the policy's own replies.

The teacher is a model on the same mesh, or behind a server (see `endpoint_teacher`). It is given
the dialogue as the policy has it, or with the transcript of each clip in its place; the reply's
tokens are the same in both, and only they are scored.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from stepaudio_jax.config import PolicyGradient
from stepaudio_jax.data import Record, record_error_context
from stepaudio_jax.errors import DataError
from stepaudio_jax.generation import Prompt
from stepaudio_jax.models import Parameters
from stepaudio_jax.parallel import replicated
from stepaudio_jax.rl.advantages import TokenValues
from stepaudio_jax.rl.audio_features import AudioFeatureEncoder
from stepaudio_jax.rl.endpoint_teacher import EndpointTeacher
from stepaudio_jax.rl.packing import Minibatch, PackedRollouts, RolloutBatch
from stepaudio_jax.rl.policy_update import token_logprobs
from stepaudio_jax.rl.rollouts import Rollout
from stepaudio_jax.text import render_prompt, with_transcripts
from stepaudio_jax.training.stage_context import StageContext
from stepaudio_jax.training.teacher import TeacherDef, read_teacher


class TeacherScorer:
    """Scores the policy's replies by the teacher of a stage.

    Args:
        context: the stage, which has a teacher.
        place: puts host arrays [rows, ..] on the mesh, in batches.
        shares_prompts: whether the replies to a prompt share it in a row.

    Raises:
        CheckpointError: a file of the teacher cannot be read.
        ConfigError: a server cannot be asked, or has another tokenizer.
    """

    def __init__(
        self, context: StageContext, place: Callable[[Any], list[Any]], *, shares_prompts: bool
    ):
        self._objective, self._data = context.stage.policy_gradient, context.stage.data
        self._tokenizer = context.tokenizer
        self._place, self._shares_prompts = place, shares_prompts
        self._reads = self._objective.teacher_inputs == "transcripts"
        self._folder: _FolderTeacher | None = None
        self._endpoint: EndpointTeacher | None = None
        teacher = context.define_teacher()
        if teacher is not None:
            self._folder = _FolderTeacher(context, teacher)
        else:
            self._endpoint = EndpointTeacher(self._objective.teacher_endpoint, self._tokenizer)
            self._endpoint.connect()

    def __call__(
        self,
        rollouts: Sequence[Rollout],
        minibatches: Sequence[Minibatch],
        prompts: Sequence[Prompt],
    ) -> TokenValues:
        """Returns the log-probability of each token of each rollout's reply.

        Args:
            rollouts: of the step.
            minibatches: the same, packed.
            prompts: of the step, by `Rollout.group`.

        Raises:
            DataError: a clip has no transcript, where the teacher reads.
            EndpointError: the server does not answer.
        """
        if self._reads:
            rollouts = [self._with_transcripts(rollout) for rollout in rollouts]
        if self._endpoint is not None:
            return self._by_endpoint(rollouts)
        assert self._folder is not None
        features: Sequence[NDArray[np.float32]] = ()
        spoken: list[list[NDArray[np.float32]]] = [[] for _ in rollouts]
        if not self._reads:
            sounds = [[turn.sound for turn in rollout.user_turns] for rollout in rollouts]
            encoded = self._folder.encode([*prompts, *itertools.chain.from_iterable(sounds)])
            features, of_users = encoded[: len(prompts)], iter(encoded[len(prompts) :])
            spoken = [list(itertools.islice(of_users, len(turns))) for turns in sounds]
        values: TokenValues = []
        for minibatch in minibatches:
            packed = minibatch.packed
            if self._reads:
                packed = PackedRollouts(
                    rollouts[minibatch.indices], self._data, shared=self._shares_prompts
                )
            batches = self._place(
                packed.batch(features, self._tokenizer.special.pad, spoken[minibatch.indices])
            )
            values.extend(packed.gather(self._folder.logprobs(batches)))
        return values

    def _by_endpoint(self, rollouts: Sequence[Rollout]) -> TokenValues:
        """Returns the same by a server, which scores each reply in its own context."""
        assert self._endpoint is not None
        turns = [turn for rollout in rollouts for turn in rollout.turns]
        scores = iter(
            self._endpoint.logprobs(
                [turn.prompt_tokens for turn in turns], [turn.completion_tokens for turn in turns]
            )
        )
        return [
            np.concatenate(list(itertools.islice(scores, len(rollout.turns))))
            for rollout in rollouts
        ]

    def _with_transcripts(self, rollout: Rollout) -> Rollout:
        """Returns a rollout with contexts in which transcripts stand for the clips."""
        turns = []
        for number, turn in enumerate(rollout.turns):
            messages = (*rollout.record.messages, *rollout.continuation[: 2 * number])
            prompt = transcript_prompt(
                dataclasses.replace(rollout.record, messages=messages),
                self._tokenizer,
                history_reasoning=self._data.history_reasoning,
            )
            turns.append(
                dataclasses.replace(
                    turn,
                    prompt_tokens=prompt,
                    is_audio=np.zeros(prompt.size, np.bool_),
                    chunk_tokens=(),
                )
            )
        written = [
            dataclasses.replace(turn, sound=dataclasses.replace(turn.sound, chunk_tokens=()))
            for turn in rollout.user_turns
        ]
        return dataclasses.replace(rollout, turns=tuple(turns), user_turns=tuple(written))


def transcript_prompt(
    record: Record, tokenizer: Any, *, history_reasoning: bool
) -> NDArray[np.int32]:
    """Returns the tokens of a record's prompt with the transcript of each clip in its place.

    Raises:
        DataError: a clip has no transcript; names file and line.
    """
    with record_error_context(record):
        segments = render_prompt(
            with_transcripts(record.messages), tokenizer, history_reasoning=history_reasoning
        )
    return np.array([token for segment in segments for token in segment.tokens], np.int32)


def teacher_check(objective: PolicyGradient, context: StageContext) -> Callable[[Record], None]:
    """Returns a check of whether the teacher of a stage can be given a record.

    It raises a DataError that names file and line.
    """
    data, tokenizer = context.stage.data, context.tokenizer

    def check(record: Record) -> None:
        if not objective.has_teacher:
            return
        if objective.teacher_inputs == "audio":
            if objective.teacher is None and any(message.audio for message in record.messages):
                raise DataError(
                    f"{record.origin}: the dialogue has sound, and a teacher behind a server reads:"
                    " set objective.teacher_inputs='transcripts', or take the record out"
                )
            return
        prompt = transcript_prompt(record, tokenizer, history_reasoning=data.history_reasoning)
        size = prompt.size + objective.rollout.max_new_tokens
        if objective.teacher is not None and size > data.seq_len:
            raise DataError(
                f"{record.origin}: with transcripts in place of its clips the prompt takes "
                f"{prompt.size} tokens, and {size} with a reply, more than "
                f"seq_len={data.seq_len}; raise it",
                kind="too_long",
            )

    return check


class _FolderTeacher:
    """A teacher on the mesh, which hears by its own encoder."""

    def __init__(self, context: StageContext, teacher: TeacherDef):
        config, mesh = context.config, context.mesh
        temperature = context.stage.policy_gradient.rollout.temperature
        self._params = read_teacher(config, teacher, mesh)
        self._encoder = AudioFeatureEncoder(
            teacher.config, config.compute, context.stage.data, mesh
        )

        def logprobs(params: Parameters, batch: RolloutBatch) -> jax.Array:
            return token_logprobs(teacher.merge(params), batch, temperature)[0]

        self._logprobs = jax.jit(logprobs, out_shardings=replicated(mesh))

    def encode(self, prompts: Sequence[Prompt]) -> list[NDArray[np.float32]]:
        """Returns the output of the teacher's encoder for each prompt."""
        return self._encoder.encode(self._params, prompts)

    def logprobs(self, batches: Sequence[RolloutBatch]) -> Float32[np.ndarray, "rows T"]:
        """Returns the log-probability of each target of batches on the mesh."""
        return np.concatenate(
            [np.asarray(self._logprobs(self._params, batch)) for batch in batches]
        )
