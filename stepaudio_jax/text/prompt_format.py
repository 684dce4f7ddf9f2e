r"""Step-Audio's prompt format: a dialogue as token segments, and the inverse for a generated reply.

    [<|BOT|>system\n{system}<|EOT|>]<|BOT|>human\n{text and audio}<|EOT|>
    <|BOT|>assistant\n<think>\n{reasoning}\n</think>\n{reply}<|EOT|>

with nothing between the two lines. The model generates what follows `<think>\n`. A past assistant
turn is `<|BOT|>assistant\n{reply}<|EOT|>`: its reasoning is dropped.

Text between two special tokens is encoded in one piece, as a tokenizer of the whole string would.
The prompt's end, the reasoning with `\n</think>\n`, and the reply are encoded separately: the BPE
must not merge across a boundary that exists in generation, or training and generation would see
different tokens. So the prompt's tokens followed by the completion's are the tokens of training.
In a reply, the tags around a call are tokens where the vocabulary has them
(`Tokenizer.encode_written`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.errors import TextError
from stepaudio_jax.text.dialogue import (
    THINK_END_TAG,
    THINK_START_TAG,
    AudioPart,
    Message,
    Role,
    validate_dialogue,
)
from stepaudio_jax.text.tokenizer import Tokenizer

ROLE_NAMES: Mapping[Role, str] = {
    "system": "system",
    "user": "human",
    "assistant": "assistant",
    "tool_json_schemas": "tool_json_schemas",
    "input": "input",
}
THINK_END = f"\n{THINK_END_TAG}\n"
_ANSWER_START = f"assistant\n{THINK_START_TAG}\n"


@dataclasses.dataclass(frozen=True)
class Segment:
    """Holds consecutive tokens of one message, or the place of one clip.

    Attributes:
        tokens: empty for a clip, which becomes `audio_tokens` once its length is known.
        in_loss: whether the loss counts these tokens.
        audio: the clip, if this is the place of one.
        turn: the index of the message.
    """

    tokens: tuple[int, ...]
    in_loss: bool
    audio: AudioPart | None
    turn: int


def render_prompt(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    history_eot: bool = True,
    history_reasoning: bool = False,
) -> list[Segment]:
    r"""Renders the prompt that the model answers; it ends in `<|BOT|>assistant\n<think>\n`.

    Args:
        messages: ending in a user turn or a tool's result (`input`).
        tokenizer: the model's tokenizer.
        history_eot: whether past assistant turns end in `<|EOT|>`. False reproduces the template of
            the released server.
        history_reasoning: whether past assistant turns keep their reasoning; for a model trained on
            dialogues rendered in that way.

    Raises:
        TextError: see `validate_dialogue`, or the last message is of another role.
    """
    validate_dialogue(messages)
    last = messages[-1]
    if last.role not in ("user", "input"):
        raise TextError(
            f"message {len(messages)} ({last.role}) is the last one;"
            " the model answers to 'user' or 'input'"
        )
    segments = []
    for turn, message in enumerate(messages):
        if message.role == "assistant" and history_reasoning:
            segments += _render_answer(
                message,
                turn,
                tokenizer,
                reasoning_in_loss=False,
                reply_in_loss=False,
                eot=history_eot,
            )
        else:
            segments += _render_context(
                message, turn, tokenizer, eot=history_eot or message.role != "assistant"
            )
    return [*segments, _render_answer_start(len(messages), tokenizer)]


def training_views(
    messages: Sequence[Message], *, history_reasoning: bool = False
) -> list[tuple[Message, ...]]:
    """Splits a dialogue into training views, each to be rendered by `render_training`.

    A past turn's reasoning is not in the prompt, so a turn in the loss (with its `<think>`) cannot
    also be history for a later one. By default each assistant turn in the loss gets a view that
    ends with it and has all earlier turns as history: exactly what the model sees when it answers.

    Args:
        messages: the whole dialogue; turns after the last one in the loss are dropped.
        history_reasoning: True keeps the dialogue in one view, in which later turns see the
            reasoning of earlier ones: cheaper, and right if `render_prompt` is later given the
            same setting.

    Raises:
        TextError: see `validate_dialogue`; no turn is in the loss; one in the loss has no user
            turn before it, or contains `</think>`, which would end its reasoning early.
    """
    validate_dialogue(messages)
    loss_turns = [
        turn
        for turn, message in enumerate(messages)
        if message.role == "assistant" and message.in_loss
    ]
    if not loss_turns:
        raise TextError("no assistant turn is in the loss; give the dialogue one, or remove it")
    for turn in loss_turns:
        where = f"message {turn + 1} (assistant)"
        if all(message.role != "user" for message in messages[:turn]):
            raise TextError(
                f"{where} is in the loss and no user turn comes before it; take it out of the loss"
            )
        for what, text in (("reasoning", messages[turn].reasoning), ("reply", messages[turn].text)):
            if text is not None and THINK_END_TAG in text:
                raise TextError(
                    f"{where} has </think> in its {what}, where it would end the reasoning;"
                    " rewrite it"
                )
    if history_reasoning:
        return [tuple(messages[: loss_turns[-1] + 1])]
    return [(*map(_as_history, messages[:turn]), messages[turn]) for turn in loss_turns]


def render_training(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    history_reasoning: bool = False,
    loss_on_reasoning: bool = True,
) -> list[Segment]:
    r"""Renders one training view of a dialogue.

    The loss counts all that the model must generate: the reasoning and `\n</think>\n` (one
    segment), the reply and `<|EOT|>` (another). A turn whose reasoning is None or empty is rendered
    as `<think>\n\n</think>\n{reply}`.

    Args:
        messages: a view, see `training_views`.
        tokenizer: the model's tokenizer.
        history_reasoning: as given to `training_views`. False: only the last message is in the
            loss, all others are history. True: every assistant turn is rendered with its reasoning,
            and those with `in_loss` count.
        loss_on_reasoning: False takes the reasoning, with its `\n</think>\n`, out of the loss.

    Raises:
        TextError: see `training_views`, or `messages` is not a view.
    """
    views = training_views(messages, history_reasoning=history_reasoning)
    if len(views) > 1 or len(views[0]) != len(messages):
        raise TextError(
            "the dialogue must end in its only turn in the loss; split it by training_views"
        )
    segments = []
    for turn, message in enumerate(messages):
        in_loss = message.role == "assistant" and message.in_loss
        if message.role == "assistant" and (in_loss or history_reasoning):
            reasoning_in_loss = in_loss and loss_on_reasoning
            segments += _render_answer(
                message,
                turn,
                tokenizer,
                reasoning_in_loss=reasoning_in_loss,
                reply_in_loss=in_loss,
                eot=True,
            )
        else:
            segments += _render_context(message, turn, tokenizer, eot=True)
    return segments


def audio_tokens(chunk_tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens of one clip: `<audio_start><audio_patch>*<audio_end>` for each chunk.

    Args:
        chunk_tokens: the number of audio tokens of each chunk (see `audio.clip_chunks`).
        tokenizer: the model's tokenizer.
    """
    special = tokenizer.special
    tokens = []
    for count in chunk_tokens:
        tokens += [special.audio_start, *[special.audio_patch] * count, special.audio_end]
    return tokens


def _as_history(message: Message) -> Message:
    return dataclasses.replace(message, in_loss=False) if message.role == "assistant" else message


def _render_context(
    message: Message, turn: int, tokenizer: Tokenizer, *, eot: bool
) -> list[Segment]:
    """Renders a message that the model reads; an assistant turn without its reasoning."""
    segments: list[Segment] = []
    tokens, text = [tokenizer.special.bot], f"{ROLE_NAMES[message.role]}\n"
    encode = tokenizer.encode_written if message.role == "assistant" else tokenizer.encode
    for part in message.parts:
        if isinstance(part, AudioPart):
            tokens += encode(text)
            if tokens:
                segments.append(Segment(tuple(tokens), in_loss=False, audio=None, turn=turn))
            segments.append(Segment((), in_loss=False, audio=part, turn=turn))
            tokens, text = [], ""
        else:
            text += part.text
    tokens += encode(text)
    if eot:
        tokens.append(tokenizer.special.eot)
    return [*segments, Segment(tuple(tokens), in_loss=False, audio=None, turn=turn)]


def _render_answer(
    message: Message,
    turn: int,
    tokenizer: Tokenizer,
    *,
    reasoning_in_loss: bool,
    reply_in_loss: bool,
    eot: bool,
) -> list[Segment]:
    """Renders an assistant turn as the model generates it: reasoning, then reply."""
    reasoning = tokenizer.encode((message.reasoning or "") + THINK_END)
    reply = tokenizer.encode_written(message.text) + [tokenizer.special.eot] * eot
    return [
        _render_answer_start(turn, tokenizer),
        Segment(tuple(reasoning), in_loss=reasoning_in_loss, audio=None, turn=turn),
        Segment(tuple(reply), in_loss=reply_in_loss, audio=None, turn=turn),
    ]


def _render_answer_start(turn: int, tokenizer: Tokenizer) -> Segment:
    return Segment(
        (tokenizer.special.bot, *tokenizer.encode(_ANSWER_START)),
        in_loss=False,
        audio=None,
        turn=turn,
    )


@dataclasses.dataclass(frozen=True)
class TokenizedDialogue:
    """Holds a rendered dialogue as one row of tokens.

    Attributes:
        tokens: [T] i32, audio tokens included.
        loss_mask: [T] bool, True for the tokens that the model must generate.
        clips: (index of the first token, name) of every clip, in order.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    clips: tuple[tuple[int, str], ...]

    @property
    def clip_names(self) -> frozenset[str]:
        """Returns the names of its clips."""
        return frozenset(name for _, name in self.clips)


def tokenize_dialogue(
    segments: Sequence[Segment],
    chunk_tokens: Callable[[AudioPart], Sequence[int]],
    tokenizer: Tokenizer,
) -> TokenizedDialogue:
    """Concatenates segments, and puts the tokens of each clip in its place.

    Args:
        segments: of one dialogue.
        chunk_tokens: returns the number of audio tokens of each chunk of a clip; called once for
            every place of a clip, in order.
        tokenizer: the model's tokenizer.
    """
    tokens: list[int] = []
    loss_mask: list[bool] = []
    clips = []
    for segment in segments:
        added: Sequence[int] = segment.tokens
        if segment.audio is not None:
            clips.append((len(tokens), segment.audio.name))
            added = audio_tokens(chunk_tokens(segment.audio), tokenizer)
        tokens += added
        loss_mask += [segment.in_loss] * len(added)
    return TokenizedDialogue(
        np.array(tokens, np.int32), np.array(loss_mask, np.bool_), tuple(clips)
    )


Problem = Literal[
    "not_ended",  # no <|EOT|> at the end: truncated at the maximum length
    "no_think_end",  # no </think>: all of it is reasoning
    "several_think_ends",  # another </think> within the reply
    "think_end_not_on_its_line",
    "empty_reply",  # nothing but white space
    "special_token",  # a special token within the text (speech, a second turn)
    "invalid_utf8",
]


@dataclasses.dataclass(frozen=True)
class ParsedReply:
    r"""Holds the parts of a generated reply.

    Attributes:
        reasoning: the text before the first `</think>`; all of it, if there is none.
        reply: the text after it.
        problems: each way in which the output departs from `{reasoning}\n</think>\n{reply}<|EOT|>`.
        special_tokens: the names of special tokens within the output; neither `reasoning` nor
            `reply` has them.
    """

    reasoning: str
    reply: str
    problems: tuple[Problem, ...] = ()
    special_tokens: tuple[str, ...] = ()

    @property
    def well_formed(self) -> bool:
        """Returns whether the output is exactly of the format."""
        return not self.problems


def parse_reply(
    tokens: Sequence[int],
    tokenizer: Tokenizer,
    *,
    ended: bool | None = None,
    stop_overlap_bytes: int = 0,
) -> ParsedReply:
    """Splits generated tokens into reasoning and reply: the inverse of rendering.

    Args:
        tokens: all that was generated after the prompt; may end in `<|EOT|>`.
        tokenizer: the model's tokenizer.
        ended: whether the model ended its turn, for tokens whose `<|EOT|>` was removed; None: judge
            by the last token.
        stop_overlap_bytes: bytes at the end of the text that belong to a stop text instead, whose
            beginning shares a token with the reply's end.
    """
    has_eot = bool(tokens) and tokens[-1] == tokenizer.special.eot
    content_tokens = tokens[:-1] if has_eot else tokens
    special: list[str] = []
    text: list[str] = []
    problems: list[Problem] = []
    runs = [
        (is_special, list(run))
        for is_special, run in itertools.groupby(content_tokens, tokenizer.is_special)
    ]
    for index, (is_special, run) in enumerate(runs):
        if is_special:
            special += [tokenizer.decode([token]) for token in run]
            continue
        content = b"".join(map(tokenizer.token_bytes, run))
        if stop_overlap_bytes and index == len(runs) - 1:
            content = content[:-stop_overlap_bytes]
        text.append(content.decode(errors="replace"))
        if text[-1].encode() != content:
            problems.append("invalid_utf8")
    if special:
        problems.append("special_token")
    parsed = parse_reply_text("".join(text), ended=has_eot if ended is None else ended)
    all_problems = tuple(dict.fromkeys((*parsed.problems, *problems)))
    return dataclasses.replace(parsed, problems=all_problems, special_tokens=tuple(special))


def parse_reply_text(text: str, *, ended: bool) -> ParsedReply:
    """Splits generated text, which has no special tokens, into reasoning and reply.

    Args:
        text: all that was generated after the prompt, without `<|EOT|>`.
        ended: whether the model ended its turn.
    """
    problems: list[Problem] = [] if ended else ["not_ended"]
    reasoning, tag, reply = text.partition(THINK_END_TAG)
    if not tag:
        return ParsedReply(reasoning, "", (*problems, "no_think_end"))
    if THINK_END_TAG in reply:
        problems.append("several_think_ends")
    if not (reasoning.endswith("\n") and reply.startswith("\n")):
        problems.append("think_end_not_on_its_line")
    reasoning, reply = reasoning.removesuffix("\n"), reply.removeprefix("\n")
    if not reply.strip():
        problems.append("empty_reply")
    return ParsedReply(reasoning, reply, tuple(problems))
