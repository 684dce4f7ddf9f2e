"""Rollouts: several replies of the policy to each prompt, by the generation engine."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from stepaudio_jax.config import RolloutConfig
from stepaudio_jax.data import Record
from stepaudio_jax.generation import Completion, Engine, Prompt, Sampling
from stepaudio_jax.text import Message, ParsedReply, TextPart, Tokenizer, parse_reply

DialogueEnd = Literal["turns", "user", "length", "malformed", "failed"]
"""Why a dialogue ended: it has its turns; the simulated user ended it; the next reply would not fit
a row; its last reply cannot be answered; or there were no user's words to answer."""

# What is wrong with a reply that cannot be a turn of a dialogue that goes on.
UNANSWERABLE_PROBLEMS = frozenset(
    ("not_ended", "no_think_end", "several_think_ends", "empty_reply")
)


@dataclasses.dataclass(frozen=True)
class PolicyTurn:
    """One reply of the policy, in exactly the context in which it was sampled.

    Attributes:
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

    prompt_tokens: NDArray[np.int32]
    is_audio: NDArray[np.bool_]
    chunk_tokens: tuple[int, ...]
    completion_tokens: NDArray[np.int32]
    sampler_logprobs: NDArray[np.float32]
    parsed: ParsedReply
    truncated: bool

    @property
    def is_answerable(self) -> bool:
        """Returns whether a dialogue can go on after the reply."""
        return UNANSWERABLE_PROBLEMS.isdisjoint(self.parsed.problems)

    @property
    def message(self) -> Message:
        """Returns the reply as a turn of the dialogue."""
        parsed = self.parsed
        return Message("assistant", (TextPart(parsed.reply),), parsed.reasoning or None)


@dataclasses.dataclass(frozen=True)
class UserTurn:
    """What the simulated user said between two replies of the policy.

    Attributes:
        message: the turn, text or a spoken clip with its words as the transcript.
        sound: what a prompt has of its clips; without audio where it is text.
        features: the encoder's output of these clips' chunks; empty without any.
    """

    message: Message
    sound: Prompt
    features: Float32[np.ndarray, "_C _audio_frames _encoder_hidden"]


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One dialogue of the policy that continues one prompt: a reply, or several turns.

    Attributes:
        group: index of the prompt in the step.
        record: the record that the prompt comes from.
        turns: the replies of the policy, in order; at least one.
        user_turns: what the simulated user said between them, one fewer.
        end: why there are no more turns.
    """

    group: int
    record: Record
    turns: tuple[PolicyTurn, ...]
    user_turns: tuple[UserTurn, ...] = ()
    end: DialogueEnd = "turns"

    @property
    def parsed(self) -> ParsedReply:
        """Returns the last reply, split into reasoning and answer."""
        return self.turns[-1].parsed

    @property
    def truncated(self) -> bool:
        """Returns whether a reply did not end by itself; it is the last one then."""
        return self.turns[-1].truncated

    @functools.cached_property
    def completion_tokens(self) -> NDArray[np.int32]:
        """Returns all that the policy wrote, turn after turn: [completion_tokens] int32."""
        return np.concatenate([turn.completion_tokens for turn in self.turns])

    @functools.cached_property
    def sampler_logprobs(self) -> NDArray[np.float32]:
        """Returns their log-probabilities by the engine: [completion_tokens] fp32."""
        return np.concatenate([turn.sampler_logprobs for turn in self.turns])

    @property
    def continuation(self) -> tuple[Message, ...]:
        """Returns the turns that continue the record's dialogue: the policy's first and last."""
        messages = [self.turns[0].message]
        for user_turn, turn in zip(self.user_turns, self.turns[1:], strict=True):
            messages += [user_turn.message, turn.message]
        return tuple(messages)


def said(message: Message, *, without_transcript: str = "") -> str:
    """Returns what is said in a turn; sound is represented by its transcript, if any.

    Args:
        message: the turn.
        without_transcript: represents other sound.
    """
    return "\n".join(
        part.text if isinstance(part, TextPart) else part.transcript or without_transcript
        for part in message.parts
    )


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
    seeds = [
        [derive_seed(seed, group, sample) for sample in range(config.num_generations)]
        for group in range(len(prompts))
    ]
    for group, sample, turn in sample_replies(engine, prompts, seeds, config, tokenizer):
        rollout = Rollout(group, records[group], (turn,))
        yield group * config.num_generations + sample, rollout


def sample_replies(
    engine: Engine,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    config: RolloutConfig,
    tokenizer: Tokenizer,
) -> Iterator[tuple[int, int, PolicyTurn]]:
    """Samples replies to prompts, for each prompt as many as it has seeds.

    Yields (index of the prompt, of the seed, reply) as each ends.

    Raises:
        GenerationError: a prompt and its reply do not fit a slot.
    """
    sampling = Sampling(
        temperature=config.temperature,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
        repetition_detection=config.repetition_detection,
    )
    indices: dict[int, tuple[int, int]] = {}
    for index, (prompt, of_prompt) in enumerate(zip(prompts, seeds, strict=True)):
        samplings = [dataclasses.replace(sampling, seed=seed) for seed in of_prompt]
        for sample, request in enumerate(engine.submit(prompt, samplings)):
            indices[request] = (index, sample)
    for output in engine.run():
        if output.completion is None:
            continue
        index, sample = indices.pop(output.request)
        yield index, sample, policy_turn(prompts[index], output.completion, tokenizer)


def policy_turn(prompt: Prompt, completion: Completion, tokenizer: Tokenizer) -> PolicyTurn:
    """Returns a completion of the engine as a reply of the policy."""
    tokens, logprobs = [*completion.tokens], [*completion.sampling_logprobs]
    if completion.stop_token is not None:
        tokens.append(completion.stop_token.token)
        logprobs.append(completion.stop_token.sampling_logprob)
    ended = completion.stop_token is not None
    return PolicyTurn(
        prompt_tokens=prompt.tokens,
        is_audio=prompt.is_audio,
        chunk_tokens=prompt.chunk_tokens,
        completion_tokens=np.asarray(tokens, np.int32),
        sampler_logprobs=np.asarray(logprobs, np.float32),
        parsed=parse_reply(completion.tokens, tokenizer, ended=ended),
        truncated=completion.finish_reason in ("length", "repetition"),
    )


def derive_seed(*entropy: int) -> int:
    """Derives a seed of 32 bits from whole numbers, the step's seed first."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
