"""What a model thinks of given replies: the log-probability of every token of every assistant turn."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from numpy.typing import NDArray

from stepaudio_jax.config import AudioChannel, ComputeConfig, DataConfig, ModelConfig
from stepaudio_jax.errors import TextError
from stepaudio_jax.generation.prompts import (
    Prompt,
    PromptBatch,
    build_prompt,
    check_prompt_fits,
    embed_prompts,
    stack_prompts,
)
from stepaudio_jax.generation.shardings import on_mesh
from stepaudio_jax.models import Parameters, abstract_model
from stepaudio_jax.parallel import num_batch_shards
from stepaudio_jax.text import Tokenizer, render_training, training_views
from stepaudio_jax.text.dialogue import Message

_LOGPROB_CHUNK = (
    256  # whose logits exist side by side; a divisor of every bucket from twice as long on
)


@dataclasses.dataclass(frozen=True)
class TurnScore:
    """One assistant turn: the tokens the model is to write (reasoning, its end, reply, `<|EOT|>`) and log p of each."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Scorer:
    """Scores dialogues with one model, one turn at a time; every length is padded to a bucket.

    Args:
        config: the model's shape.
        parameters: its tree, the decoder's layers stacked.
        tokenizer: of the model.
        compute: how it is computed.
        mesh: where the parameters lie; None for one device. What of it does not cut the model
        computes the same.
        history_reasoning: whether past turns keep their reasoning; see `render_prompt`.
        channel: what is heard of a clip with several channels; see `load_audio`.
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
        def logprobs(parameters: Parameters, batch: PromptBatch) -> jax.Array:
            """[B,T]: log p of each token given those before it; the first column means nothing."""
            model = nnx.merge(graphdef, parameters)
            tokens = jnp.asarray(batch.tokens)
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            hidden = model.decode(embed_prompts(model, batch), positions, jnp.ones_like(positions))
            following = jnp.roll(tokens, -1, axis=1)

            def of_part(part: tuple[jax.Array, jax.Array]) -> jax.Array:
                log_probs = jax.nn.log_softmax(model.logits(part[0]), axis=-1)
                return jnp.take_along_axis(log_probs, part[1][:, :, None], axis=-1)[:, :, 0]

            picked = _join_chunks_of_tokens(
                jax.lax.map(
                    of_part, (_split_chunks_of_tokens(hidden), _split_chunks_of_tokens(following))
                )
            )
            return jnp.roll(picked, 1, axis=1)

        self._logprobs = logprobs

    def score(self, messages: Sequence[Message]) -> list[TurnScore]:
        """Scores every assistant turn that answers something, each after the history that the model would have seen before it.

        Raises:
            TextError, AudioError, GenerationError: the dialogue cannot be rendered, a clip
                cannot be read, or the model's positions do not hold it.
        """
        heard = False
        asked: list[list[Message]] = []
        for turn, message in enumerate(messages):
            heard |= message.role == "user"
            if message.role == "assistant" and heard:
                asked.append(
                    [
                        dataclasses.replace(one, in_loss=index == turn)
                        for index, one in enumerate(messages)
                    ]
                )
        if not asked:
            raise TextError("no assistant turn comes after a user's: there is nothing to score")
        return [
            self._score_view(view)
            for one in asked
            for view in training_views(one, history_reasoning=self._history_reasoning)
        ]

    def logprobs(self, prompt: Prompt) -> NDArray[np.float32]:
        """Log p of each of a dialogue's tokens given those before it, in one pass over all: [T]; the first means nothing.

        Raises:
            GenerationError: the model's positions do not hold it.
        """
        check_prompt_fits(prompt, self._config)
        batch = stack_prompts([prompt], self._config, rows=self._rows)
        with on_mesh(self._mesh):
            return np.asarray(self._logprobs(self._parameters, batch))[0, : prompt.length]

    def _score_view(self, view: Sequence[Message]) -> TurnScore:
        segments = render_training(view, self._tokenizer, history_reasoning=self._history_reasoning)
        prompt = build_prompt(
            segments, self._tokenizer, self._config.length_convention, channel=self._channel
        )
        logprobs = self.logprobs(prompt)
        return TurnScore(
            token_ids=tuple(int(token) for token in prompt.tokens[prompt.in_loss]),
            logprobs=tuple(float(logprob) for logprob in logprobs[prompt.in_loss]),
        )


def _split_chunks_of_tokens(x: jax.Array) -> jax.Array:
    """[B,T,..] -> [parts, B, T / parts, ..]."""
    size = x.shape[1] if x.shape[1] < 2 * _LOGPROB_CHUNK else _LOGPROB_CHUNK
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _join_chunks_of_tokens(parts: jax.Array) -> jax.Array:
    """[parts, B, T / parts] -> [B,T]."""
    return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1)
