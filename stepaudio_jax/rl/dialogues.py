"""Rollouts of several turns: a simulated user answers the policy, and the policy answers again.

Turn by turn: all replies of a turn are sampled, the user's words to each are asked for as soon as
it ends, and with the words each dialogue that goes on is a prompt of the next turn. A prompt is its
predecessor, token by token, without the start of the answer, and what was said since then: exactly
as `render_prompt` renders the whole dialogue.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from stepaudio_jax.config import AudioChannel, LengthConvention, RolloutConfig
from stepaudio_jax.data import Record
from stepaudio_jax.errors import AudioError, DataError, SimulatedUserError, TextError
from stepaudio_jax.generation import Engine, Prompt, build_prompt
from stepaudio_jax.judge.query import Query
from stepaudio_jax.rl.audio_features import AudioFeatures
from stepaudio_jax.rl.rollouts import (
    DialogueEnd,
    Rollout,
    UserTurn,
    derive_seed,
    sample_replies,
)
from stepaudio_jax.rl.simulated_user import SimulatedUser
from stepaudio_jax.rl.speech import SpeechCommand
from stepaudio_jax.text import AudioPart, Message, TextPart, Tokenizer, render_prompt

_USER = 1  # after the turn, of the seed of the user's words; the policy's has nothing there


@dataclasses.dataclass(frozen=True)
class _OpenDialogue:
    """A dialogue that goes on.

    Attributes:
        index: of the rollout in the step.
        rollout: its turns so far.
        prompt: that of its last reply, with audio embeddings.
    """

    index: int
    rollout: Rollout
    prompt: Prompt


@dataclasses.dataclass(frozen=True)
class _Extension:
    """A dialogue with the user's words.

    Attributes:
        dialogue: before them.
        message: the user's turn.
        sound: what was said since the last prompt, with its clips.
        prompt: of the next reply; without embeddings of the new clips.
    """

    dialogue: _OpenDialogue
    message: Message
    sound: Prompt
    prompt: Prompt


class DialogueGenerator:
    """Generates dialogues of the policy with a simulated user.

    Args:
        config: of the rollouts.
        user: the simulated user.
        tokenizer: the model's tokenizer.
        convention, channel, history_reasoning: as in the prompts of the records.
        check_fits: raises a DataError where a row does not hold a prompt with its reply.
    """

    def __init__(
        self,
        config: RolloutConfig,
        user: SimulatedUser,
        tokenizer: Tokenizer,
        *,
        convention: LengthConvention,
        channel: AudioChannel,
        history_reasoning: bool,
        check_fits: Callable[[Prompt], None],
    ):
        self._config, self._user, self._tokenizer = config, user, tokenizer
        self._convention, self._channel = convention, channel
        self._history_reasoning, self._check_fits = history_reasoning, check_fits
        settings = config.simulated_user
        self._speech = (
            SpeechCommand(
                settings.speak,
                timeout_s=settings.speak_timeout_s,
                concurrency=settings.concurrency,
            )
            if settings.speak
            else None
        )

    def __call__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        records: Sequence[Record],
        seed: int,
        encode_audio: Callable[[Sequence[Prompt]], AudioFeatures],
    ) -> Iterator[tuple[int, Rollout]]:
        """Generates `config.num_generations` dialogues from every prompt.

        Yields (index, rollout) as each ends, numbered as by `generate_rollouts`. The draws of
        reply t of sample j of prompt p depend on (seed, p, j, t) alone, the user's too; the first
        replies are those of rollouts of one turn.

        Args:
            engine: an idle engine with the policy's weights.
            prompts: with `Prompt.audio_embeddings`.
            records: the record of each prompt.
            seed: of the step.
            encode_audio: encodes the clips of the user's turns.

        Raises:
            SimulatedUserError: the user failed in too many dialogues, or cannot be asked.
        """
        count = self._config.num_generations
        problems: dict[Query, str] = {}
        seeds = [
            [derive_seed(seed, group, sample) for sample in range(count)]
            for group in range(len(prompts))
        ]
        going: list[_OpenDialogue] = []
        for group, sample, turn in sample_replies(
            engine, prompts, seeds, self._config, self._tokenizer
        ):
            rollout = Rollout(group, records[group], (turn,))
            dialogue = _OpenDialogue(group * count + sample, rollout, prompts[group])
            yield from self._go_on(dialogue, seed, going)
        while going:
            going.sort(key=lambda dialogue: dialogue.index)  # as they ended depends on the batch
            extensions = []
            for extended in self._with_user_turns(going, seed, problems):
                if isinstance(extended, _Extension):
                    extensions.append(extended)
                else:
                    yield extended
            self._user.check_failures(problems, len(prompts) * count)
            going = []
            features = encode_audio([extension.sound for extension in extensions])
            for dialogue in self._answered(engine, extensions, features, seed):
                yield from self._go_on(dialogue, seed, going)

    def _go_on(
        self, dialogue: _OpenDialogue, seed: int, going: list[_OpenDialogue]
    ) -> Iterator[tuple[int, Rollout]]:
        """Adds a dialogue to those that go on, and asks the user; yields one that has ended."""
        rollout = dialogue.rollout
        end: DialogueEnd | None = None
        if not rollout.turns[-1].is_answerable:
            end = "malformed"
        elif len(rollout.turns) == self._config.simulated_user.max_turns:
            end = "turns"
        if end is not None:
            yield dialogue.index, dataclasses.replace(rollout, end=end)
            return
        going.append(dialogue)
        self._user.prefetch(self._query(dialogue, seed))

    def _query(self, dialogue: _OpenDialogue, seed: int) -> Query:
        """Returns the question to the user about a dialogue."""
        rollout = dialogue.rollout
        sample = dialogue.index % self._config.num_generations
        turn_seed = derive_seed(seed, rollout.group, sample, len(rollout.turns), _USER)
        return self._user.query(rollout.record, rollout.continuation, turn_seed)

    def _with_user_turns(
        self, dialogues: Sequence[_OpenDialogue], seed: int, problems: dict[Query, str]
    ) -> Iterator[_Extension | tuple[int, Rollout]]:
        """Yields each dialogue with the user's next turn, or (index, rollout) where it ends.

        Args:
            dialogues: those that go on.
            seed: of the step.
            problems: gets a line for each dialogue in which the user failed, by the question.
        """
        queries = [self._query(dialogue, seed) for dialogue in dialogues]
        answers = self._user.answers(queries)
        words = [answer.text for answer in answers if answer.kind == "words"]
        spoken: list[AudioPart | SimulatedUserError | TextPart] = [*map(TextPart, words)]
        if self._speech is not None:
            spoken = [*self._speech.speak_all(words)]
        parts = iter(spoken)
        for dialogue, query, answer in zip(dialogues, queries, answers, strict=True):
            end: DialogueEnd = "user" if answer.kind == "end" else "failed"
            problem = answer.text
            if answer.kind == "words":
                part = next(parts)
                try:
                    if isinstance(part, SimulatedUserError):
                        raise part
                    extension = self._extend(dialogue, Message("user", (part,)))
                    self._check_fits(extension.prompt)
                except DataError as error:
                    if error.kind != "too_long":
                        raise
                    end = "length"
                except (SimulatedUserError, TextError) as error:
                    problem = str(error)
                except AudioError as error:
                    problem = f"speak: the sound of its words cannot be used, it {error.reason}"
                else:
                    yield extension
                    continue
            if end == "failed":
                problems[query] = f"{dialogue.rollout.record.origin}: {problem}"
            yield dialogue.index, dataclasses.replace(dialogue.rollout, end=end)

    def _extend(self, dialogue: _OpenDialogue, message: Message) -> _Extension:
        """Returns the prompt that follows a dialogue's last one, with the user's words.

        Raises:
            TextError: no tokens spell them.
            AudioError: their sound cannot be read.
        """
        before, prompt = dialogue.rollout, dialogue.prompt
        history = (*before.record.messages, *before.continuation)
        segments = render_prompt(
            (*history, message), self._tokenizer, history_reasoning=self._history_reasoning
        )
        sound = build_prompt(
            [segment for segment in segments if segment.turn >= len(history) - 1],
            self._tokenizer,
            self._convention,
            channel=self._channel,
        )
        answer_start = len(segments[-1].tokens)
        return _Extension(dialogue, message, sound, _join(prompt, sound, answer_start))

    def _answered(
        self,
        engine: Engine,
        extensions: Sequence[_Extension],
        features: AudioFeatures,
        seed: int,
    ) -> Iterator[_OpenDialogue]:
        """Samples the next reply of each dialogue, and yields the dialogue with it as it ends.

        Args:
            engine: idle.
            extensions: the dialogues with the user's words.
            features: of their clips.
            seed: of the step.
        """
        prompts, user_turns, seeds = [], [], []
        for extension, sound, encoded in zip(
            extensions, features.prompts, features.by_prompt, strict=True
        ):
            parts = [extension.dialogue.prompt.audio_embeddings, sound.audio_embeddings]
            known = [part for part in parts if part is not None]
            embeddings = np.concatenate(known) if known else None
            prompts.append(dataclasses.replace(extension.prompt, audio_embeddings=embeddings))
            user_turns.append(UserTurn(extension.message, extension.sound, encoded))
            index, rollout = extension.dialogue.index, extension.dialogue.rollout
            sample = index % self._config.num_generations
            seeds.append([derive_seed(seed, rollout.group, sample, len(rollout.turns))])
        for number, _, turn in sample_replies(
            engine, prompts, seeds, self._config, self._tokenizer
        ):
            dialogue = extensions[number].dialogue
            rollout = dataclasses.replace(
                dialogue.rollout,
                turns=(*dialogue.rollout.turns, turn),
                user_turns=(*dialogue.rollout.user_turns, user_turns[number]),
            )
            yield _OpenDialogue(dialogue.index, rollout, prompts[number])


def _join(prompt: Prompt, added: Prompt, answer_start: int) -> Prompt:
    """Returns a prompt that goes on with another part of the dialogue, without embeddings.

    Args:
        prompt: ends in the start of the answer, which the added part begins with or replaces.
        added: what follows.
        answer_start: tokens of the start of an answer.
    """
    kept = slice(0, prompt.length - answer_start)
    return Prompt(
        np.concatenate([prompt.tokens[kept], added.tokens]),
        np.concatenate([prompt.is_audio[kept], added.is_audio]),
        np.concatenate([prompt.loss_mask[kept], added.loss_mask]),
        (*prompt.chunks, *added.chunks),
        (*prompt.chunk_tokens, *added.chunk_tokens),
    )
