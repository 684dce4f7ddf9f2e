"""Scores replies: the log-probability of every token of every assistant turn of a dialogue."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from numpy.typing import NDArray

from stepaudio_jax import hub
from stepaudio_jax.config import AudioChannel, ComputeConfig, DataConfig, FloatDtype, ModelConfig
from stepaudio_jax.data import Record, read_records
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import AudioError, DataError, GenerationError, TextError
from stepaudio_jax.generation.journal import Journal, check_output_paths, describe_job
from stepaudio_jax.generation.loaded_model import LoadedModel, default_dtype
from stepaudio_jax.generation.prompts import (
    AudioReader,
    Prompt,
    PromptBatch,
    build_prompt,
    check_prompt_fits,
    embed_prompts,
    stack_prompts,
)
from stepaudio_jax.generation.shardings import on_mesh
from stepaudio_jax.models import Parameters, abstract_model
from stepaudio_jax.models.logprobs import chunked_logprobs
from stepaudio_jax.parallel import num_batch_shards
from stepaudio_jax.storage import PathLike, expand_home, is_finished_output_of, to_path
from stepaudio_jax.text import Tokenizer, render_training, training_views
from stepaudio_jax.text.dialogue import Message

# Tokens whose logits are in memory together. It divides every bucket above but 384, which is one
# chunk.
_LOGPROB_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class TurnScore:
    """The score of one assistant turn.

    Attributes:
        token_ids: what the model is to generate: reasoning, its end, reply, `<|EOT|>`.
        logprobs: of each of them given all tokens before it, natural logarithm.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """The log-probability of the turn: the sum over its tokens."""
        return sum(self.logprobs)


def score_file(model: LoadedModel, input_path: PathLike, output_path: PathLike) -> int:
    """Scores every assistant turn of every dialogue of a JSONL file.

    A line of the output holds id and turns, each with token_ids and logprobs. Finished lines are
    kept in `OUTPUT.partial`: the same call resumes after an interruption. The output appears when
    it is complete, and replaces what was there.

    Returns:
        The number of dialogues.

    Raises:
        DataError: the file has no line, or one that cannot be used (names file and line; nothing is
            written); or there is an `OUTPUT.partial` of another job, or a damaged one.
        OutputError: the output is the input or a folder, or another job is writing it.
    """
    input_path, output_path = (expand_home(os.fspath(path)) for path in (input_path, output_path))
    check_output_paths(output_path, input_path)
    records = _read_records(input_path)
    job = _score_job(
        *(input_path, model.folder, model.config, model.compute.dtype),
        history_reasoning=model.history_reasoning,
        channel=model.channel,
    )
    scorer = Scorer(
        model.config,
        model.parameters,
        model.tokenizer,
        compute=model.compute,
        mesh=model.mesh,
        history_reasoning=model.history_reasoning,
        channel=model.channel,
    )
    journal = Journal(output_path, job, len(records))
    with contextlib.closing(journal):
        for index, record in enumerate(records):
            if index in journal:
                continue
            try:
                turns = scorer.score(record.messages, read=model.read_clip)
            except (AudioError, TextError, GenerationError) as error:
                journal.discard()
                raise DataError(f"{record.origin}: {error}") from None
            journal.write(
                index, {"id": record.id, "turns": [dataclasses.asdict(turn) for turn in turns]}
            )
        journal.finish()
    return len(records)


def is_scoring_finished(
    folder: PathLike,
    input_path: PathLike,
    output_path: PathLike,
    dtype: FloatDtype | None = None,
    *,
    history_reasoning: bool = False,
    channel: AudioChannel = DataConfig.channel,
) -> bool:
    """Returns whether the output of a `score_file` job is there already, without loading the model.

    Raises:
        OutputError: an output is there, and not of this job.
    """
    folder, input_path, output_path = (
        expand_home(os.fspath(path)) for path in (folder, input_path, output_path)
    )
    if not to_path(output_path).exists():
        return False
    config = hub.read_model_config(folder)
    job = _score_job(
        *(input_path, folder, config, default_dtype(dtype)),
        history_reasoning=history_reasoning,
        channel=channel,
    )
    return is_finished_output_of(output_path, job)


class Scorer:
    """Scores dialogues with one model, one turn at a time, each padded to a bucket of lengths.

    Args:
        config: the model's shape.
        parameters: its tree, the decoder's layers stacked.
        tokenizer: the model's tokenizer.
        compute: dtypes, kernels and sharding rules of the computation.
        mesh: the devices that hold the parameters; None for one device. Axes that shard the batch
            compute the same dialogue.
        history_reasoning: whether past turns keep their reasoning; see `render_prompt`.
        channel: which channel of a multichannel clip is used; see `load_audio`.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Parameters,
        tokenizer: Tokenizer,
        *,
        compute: ComputeConfig,
        mesh: Mesh | None = None,
        history_reasoning: bool = False,
        channel: AudioChannel = DataConfig.channel,
    ):
        self._config = config
        self._history_reasoning = history_reasoning
        self._channel = channel
        self._mesh = mesh
        self._rows = 1 if mesh is None else num_batch_shards(compute.rules, mesh)
        self._parameters = parameters
        self._tokenizer = tokenizer
        graphdef, _ = abstract_model(config, dataclasses.replace(compute, remat="none"))

        @jax.jit
        def logprobs(parameters: Parameters, batch: PromptBatch) -> Float[Array, "B T"]:
            """Computes log p of each token given those before it; column 0 is undefined."""
            model = nnx.merge(graphdef, parameters)
            tokens = jnp.asarray(batch.tokens)
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            hidden = model.decode(embed_prompts(model, batch), positions, jnp.ones_like(positions))
            of_next_token, _ = chunked_logprobs(
                hidden,
                model.decoder.lm_head_kernel(),
                jnp.roll(tokens, -1, axis=1),
                chunks=max(tokens.shape[1] // _LOGPROB_CHUNK, 1),
                rules=compute.rules,
            )
            return jnp.roll(of_next_token, 1, axis=1)

        self._logprobs = logprobs

    def score(
        self, messages: Sequence[Message], *, read: AudioReader = load_clip
    ) -> list[TurnScore]:
        """Scores every assistant turn that comes after a user's.

        Each is conditioned on the history that the model would have seen before generating it.

        Args:
            messages: of one dialogue.
            read: gives the waveform of a clip.

        Raises:
            TextError, AudioError, GenerationError: the dialogue cannot be rendered, a clip
                cannot be read, or the model's positions do not hold it.
        """
        roles = [message.role for message in messages]
        turns = [
            turn
            for turn, role in enumerate(roles)
            if role == "assistant" and "user" in roles[:turn]
        ]
        if not turns:
            raise TextError("no assistant turn comes after a user's: there is nothing to score")
        return [
            self._score_view(view, read)
            for turn in turns
            for view in training_views(
                _with_one_turn_in_loss(messages, turn), history_reasoning=self._history_reasoning
            )
        ]

    def logprobs(self, prompt: Prompt) -> NDArray[np.float32]:
        """Computes log p of each token of a dialogue given those before it, in one forward pass.

        Returns:
            [T] f32, T tokens of the prompt; the first value is undefined.

        Raises:
            GenerationError: the model's positions do not hold the dialogue.
        """
        check_prompt_fits(prompt, self._config)
        batch = stack_prompts([prompt], self._config, rows=self._rows)
        with on_mesh(self._mesh):
            return np.asarray(self._logprobs(self._parameters, batch))[0, : prompt.length]

    def _score_view(self, view: Sequence[Message], read: AudioReader) -> TurnScore:
        segments = render_training(view, self._tokenizer, history_reasoning=self._history_reasoning)
        prompt = build_prompt(
            segments,
            self._tokenizer,
            self._config.length_convention,
            channel=self._channel,
            read=read,
        )
        logprobs = self.logprobs(prompt)
        return TurnScore(
            token_ids=tuple(int(token) for token in prompt.tokens[prompt.loss_mask]),
            logprobs=tuple(float(logprob) for logprob in logprobs[prompt.loss_mask]),
        )


def _with_one_turn_in_loss(messages: Sequence[Message], turn: int) -> list[Message]:
    return [
        dataclasses.replace(message, in_loss=index == turn)
        for index, message in enumerate(messages)
    ]


def _read_records(path: PathLike) -> list[Record]:
    """Reads all records of a file, so that a mistake in its last line is found before any work."""
    records = list(read_records(path))
    if not records:
        raise DataError(f"{path}: has no records; give at least one dialogue")
    return records


def _score_job(
    input_path: PathLike, folder: PathLike, config: ModelConfig, dtype: FloatDtype, **settings: Any
) -> dict[str, Any]:
    return describe_job("score", input_path, folder, config, dtype=dtype, **settings)
