"""What the policy writes: several replies to each prompt, by the generation engine, its sound encoded once for all of them."""

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
    """One reply of the policy to one prompt (P tokens of the prompt, R of the reply).

    Attributes:
        group: which prompt of the step.
        record: that the prompt comes from.
        prompt_tokens: [P] i32.
        is_audio: [P] bool, where an adaptor output replaces the token's embedding.
        chunk_tokens: how many audio tokens each of the prompt's chunks has.
        completion_tokens: [R] i32, all that the policy wrote, the token that ended it included.
        sampler_logprobs: [R] f32, of the engine, under the distribution that it drew from.
        parsed: the reply taken apart.
        truncated: whether it did not end by itself: it was cut at its limit of tokens, or because
            it was a loop.
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
    """Writes `config.num_generations` replies to every prompt; yields (index, rollout) as each ends, a prompt's side by side.

    Args:
        engine: with the policy's weights, and nothing else to do.
        prompts: with their sound heard (`Prompt.audio_embeddings`), or to be heard by the engine.
        records: of the prompts.
        config: how many, and how they are drawn.
        tokenizer: of the model.
        seed: of the step; what sample j of prompt p draws follows from (seed, p, j) alone.

    Raises:
        GenerationError: a prompt and its reply do not fit a slot.
    """
    places: dict[int, tuple[int, int]] = {}
    for group, prompt in enumerate(prompts):
        asked = Sampling(
            temperature=config.temperature,
            top_p=1.0,
            max_new_tokens=config.max_new_tokens,
            repetition_detection=config.repetition_detection,
        )
        samplings = [
            dataclasses.replace(asked, seed=_seed(seed, group, sample))
            for sample in range(config.num_generations)
        ]
        places |= {
            request: (group, sample)
            for sample, request in enumerate(engine.submit(prompt, samplings))
        }
    for output in engine.run():
        if output.completion is None:
            continue
        group, sample = places.pop(output.request)
        rollout = _make_rollout(group, records[group], prompts[group], output.completion, tokenizer)
        yield group * config.num_generations + sample, rollout


def _make_rollout(
    group: int, record: Record, prompt: Prompt, completion: Completion, tokenizer: Tokenizer
) -> Rollout:
    ended = completion.stop_token is not None
    tokens = [*completion.tokens, *([completion.stop_token.token] if completion.stop_token else [])]
    logprobs = [
        *completion.sampling_logprobs,
        *([completion.stop_token.sampling_logprob] if completion.stop_token else []),
    ]
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


def _seed(seed: int, group: int, sample: int) -> int:
    return int(np.random.SeedSequence([seed, group, sample]).generate_state(1)[0])
