"""Rollouts: several replies of the policy to each prompt, by the generation engine."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import RolloutConfig
from stepaudio_jax.data import Record
from stepaudio_jax.generation import Completion, Engine, Prompt, Sampling
from stepaudio_jax.text import ParsedReply, Tokenizer, parse_reply


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One reply of the policy to one prompt.

    Attributes:
        group: index of the prompt in the step.
        record: the record that the prompt comes from.
        prompt_tokens: [prompt_tokens] int32.
        is_audio: [prompt_tokens] bool, where an audio embedding replaces the token's.
        chunk_tokens: number of audio tokens of each of the prompt's chunks.
        completion_tokens: [completion_tokens] int32, all that the policy wrote, with the token that
            ended it.
        sampler_logprobs: [completion_tokens] fp32, by the engine, of the distribution that it
            sampled from.
        parsed: the reply, split into reasoning and answer.
        truncated: whether the reply did not end by itself: it reached the limit of tokens, or the
            engine ended a repetition.
    """

    group: int
    record: Record
    prompt_tokens: NDArray[np.int32]
    is_audio: NDArray[np.bool_]
    chunk_tokens: tuple[int, ...]
    completion_tokens: NDArray[np.int32]
    sampler_logprobs: NDArray[np.float32]
    parsed: ParsedReply
    truncated: bool


def generate_rollouts(
    engine: Engine,
    prompts: Sequence[Prompt],
    records: Sequence[Record],
    config: RolloutConfig,
    tokenizer: Tokenizer,
    seed: int,
) -> Iterator[tuple[int, Rollout]]:
    """Generates `config.num_generations` replies to every prompt.

    Yields (index, rollout) as each ends; indices count the rollouts of a prompt one after the
    other.

    Args:
        engine: an idle engine with the policy's weights.
        prompts: with `Prompt.audio_embeddings`; the engine encodes the audio where they lack it.
        records: the record of each prompt.
        config: number of replies, and how they are sampled.
        tokenizer: the model's tokenizer.
        seed: of the step; the draws of sample j of prompt p depend on (seed, p, j) alone.

    Raises:
        GenerationError: a prompt and its reply do not fit a slot.
    """
    indices: dict[int, tuple[int, int]] = {}
    for group, prompt in enumerate(prompts):
        sampling = Sampling(
            temperature=config.temperature,
            top_p=1.0,
            max_new_tokens=config.max_new_tokens,
            repetition_detection=config.repetition_detection,
        )
        samplings = [
            dataclasses.replace(sampling, seed=_derive_seed(seed, group, sample))
            for sample in range(config.num_generations)
        ]
        for sample, request in enumerate(engine.submit(prompt, samplings)):
            indices[request] = (group, sample)
    for output in engine.run():
        if output.completion is None:
            continue
        group, sample = indices.pop(output.request)
        rollout = _make_rollout(group, records[group], prompts[group], output.completion, tokenizer)
        yield group * config.num_generations + sample, rollout


def _make_rollout(
    group: int, record: Record, prompt: Prompt, completion: Completion, tokenizer: Tokenizer
) -> Rollout:
    tokens, logprobs = [*completion.tokens], [*completion.sampling_logprobs]
    if completion.stop_token is not None:
        tokens.append(completion.stop_token.token)
        logprobs.append(completion.stop_token.sampling_logprob)
    ended = completion.stop_token is not None
    return Rollout(
        group=group,
        record=record,
        prompt_tokens=prompt.tokens,
        is_audio=prompt.is_audio,
        chunk_tokens=prompt.chunk_tokens,
        completion_tokens=np.asarray(tokens, np.int32),
        sampler_logprobs=np.asarray(logprobs, np.float32),
        parsed=parse_reply(completion.tokens, tokenizer, ended=ended),
        truncated=completion.finish_reason in ("length", "repetition"),
    )


def _derive_seed(seed: int, group: int, sample: int) -> int:
    return int(np.random.SeedSequence([seed, group, sample]).generate_state(1)[0])
