"""Batched generation with a KV cache.

Prompts of similar length form a batch of fixed size; their tokens and their audio are padded to buckets, so the number of
compiled programs is bounded by the buckets and not by the prompts.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.generation.prompt import GenerationError, Prompt, PromptBatch, embed_prompts, require_fit, stack_prompts
from stepaudio_jax.generation.sampling import sample
from stepaudio_jax.models import KVCache, Parameters, StepAudio, abstract_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request is answered.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: mass of the nucleus.
        max_new_tokens: the reply is cut there, with finish_reason "length".
        seed: of this request; the same seed gives the same tokens whatever shares the batch.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise GenerationError(f"temperature={self.temperature} must be 0 or more, and finite")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p={self.top_p} must lie in (0, 1]")
        if self.max_new_tokens <= 0:
            raise GenerationError(f"max_new_tokens={self.max_new_tokens} must be positive")
        if not 0 <= self.seed < 2**32:
            raise GenerationError(f"seed={self.seed} must lie between 0 and 2**32 - 1")


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated: tokens (the stop token not among them), their log-probabilities under the model, and why it ended.

    `logprobs` are those of the un-tempered distribution. `finish_reason` is "stop" or "length".
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class _Program:
    """What a compiled program depends on beside the shapes of its arguments."""

    config: ModelConfig
    compute: ComputeConfig
    stop_token: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Decoding:
    """The loop's state; B rows, N new tokens at most."""

    count: jax.Array  # i32, tokens generated so far in every row
    logits: jax.Array  # [B,V] of the next token
    cache: KVCache
    tokens: jax.Array  # [B,N]
    logprobs: jax.Array  # [B,N]
    lengths: jax.Array  # [B] generated tokens, the stop token included
    finished: jax.Array  # [B] bool


class Engine:
    """Answers prompts with one model.

    Args:
        config: the model's shape.
        parameters: its tree.
        compute: dtype of the computation and of the cache.
        stop_token: ends a reply.
        rows: prompts answered side by side.

    Raises:
        GenerationError: rows is not positive.
    """

    def __init__(self, config: ModelConfig, parameters: Parameters, *, compute: ComputeConfig, stop_token: int, rows: int):
        if rows <= 0:
            raise GenerationError(f"{rows} prompts cannot be answered side by side; at least 1 is needed")
        self._config = config
        self._program = _Program(config, dataclasses.replace(compute, remat="none"), stop_token)
        self._parameters = parameters
        self._stop_token = stop_token
        self._rows = rows

    def generate(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> Iterator[tuple[int, Completion]]:
        """Answers every prompt; yields (index of the prompt, completion) as batches finish, longest prompts first.

        Raises:
            GenerationError: a prompt and its new tokens do not fit the model's positions.
        """
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            try:
                require_fit(prompt, self._config, new_tokens=sampling.max_new_tokens)
            except GenerationError as error:
                raise GenerationError(f"prompt {index}: {error}") from None
        order = sorted(range(len(prompts)), key=lambda index: _size(prompts[index]), reverse=True)
        for start in range(0, len(order), self._rows):
            indices = order[start : start + self._rows]
            group = [samplings[index] for index in indices]
            batch = stack_prompts([prompts[index] for index in indices], self._config, rows=self._rows)
            new_tokens = max(sampling.max_new_tokens for sampling in group)
            group += [dataclasses.replace(group[-1], max_new_tokens=1)] * (self._rows - len(group))
            tokens, logprobs, lengths, finished = jax.device_get(
                _answer_batch(self._program, self._parameters, batch, _arrays(group), new_tokens)
            )
            for row, index in enumerate(indices):
                count = int(lengths[row])
                stopped = bool(finished[row]) and int(tokens[row, count - 1]) == self._stop_token
                kept = count - 1 if stopped else count
                yield (
                    index,
                    Completion(
                        tokens=tuple(int(token) for token in tokens[row, :kept]),
                        logprobs=tuple(float(logprob) for logprob in logprobs[row, :kept]),
                        finish_reason="stop" if stopped else "length",
                    ),
                )


# Jitted once for the module, not for each engine: engines of one shape (a model before and after training) share programs.
@functools.partial(jax.jit, static_argnames=("program", "new_tokens"))
def _answer_batch(
    program: _Program, parameters: Parameters, batch: PromptBatch, sampling: dict[str, jax.Array], new_tokens: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Prefills the prompts and decodes until every row has ended: tokens, logprobs [B,N], lengths, finished [B]."""
    graphdef, _ = abstract_model(program.config, program.compute)
    model = nnx.merge(graphdef, parameters)
    rows, prompt_tokens = batch.tokens.shape
    cache = KVCache.zeros(program.config.decoder, rows, prompt_tokens + new_tokens, jnp.dtype(program.compute.dtype))
    logits, cache = _prefill(model, batch, cache)
    keys = jax.vmap(jax.random.key)(sampling["seed"])
    start = _Decoding(
        count=jnp.zeros((), jnp.int32),
        logits=logits,
        cache=cache,
        tokens=jnp.zeros((rows, new_tokens), jnp.int32),
        logprobs=jnp.zeros((rows, new_tokens), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        finished=jnp.zeros(rows, bool),
    )

    def decode_step(state: _Decoding) -> _Decoding:
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.count)
        token = sample(state.logits, step_keys, temperature=sampling["temperature"], top_p=sampling["top_p"])
        logprob = jnp.take_along_axis(jax.nn.log_softmax(state.logits, axis=-1), token[:, None], axis=-1)[:, 0]
        lengths = jnp.where(state.finished, state.lengths, state.lengths + 1)
        finished = state.finished | (token == program.stop_token) | (lengths >= sampling["max_new_tokens"])
        position = (jnp.asarray(batch.lengths) + state.count)[:, None]
        hidden, cache = model.decode(model.embed(token[:, None]), position, jnp.ones_like(position), state.cache)
        assert cache is not None  # one was given
        return _Decoding(
            count=state.count + 1,
            logits=model.logits(hidden)[:, 0],
            cache=cache,
            tokens=state.tokens.at[:, state.count].set(token),
            logprobs=state.logprobs.at[:, state.count].set(logprob),
            lengths=lengths,
            finished=finished,
        )

    end = jax.lax.while_loop(lambda state: ~jnp.all(state.finished), decode_step, start)
    return end.tokens, end.logprobs, end.lengths, end.finished


def _prefill(model: StepAudio, batch: PromptBatch, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Reads the prompts into the cache; returns the logits [B,V] after each prompt's last token."""
    positions = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    hidden, filled = model.decode(embed_prompts(model, batch), positions, jnp.ones_like(positions), cache)
    assert filled is not None  # a cache was given
    last = jnp.take_along_axis(hidden, (jnp.asarray(batch.lengths) - 1)[:, None, None], axis=1)
    return model.logits(last)[:, 0], filled


def _size(prompt: Prompt) -> tuple[int, int, int]:
    """Prompts that are neighbours in this order need the least padding."""
    return len(prompt.chunks), prompt.longest_chunk, prompt.length


def _arrays(samplings: Sequence[Sampling]) -> dict[str, NDArray[Any]]:
    return {
        "temperature": np.array([sampling.temperature for sampling in samplings], np.float32),
        "top_p": np.array([sampling.top_p for sampling in samplings], np.float32),
        "max_new_tokens": np.array([sampling.max_new_tokens for sampling in samplings], np.int32),
        "seed": np.array([sampling.seed for sampling in samplings], np.uint32),
    }
