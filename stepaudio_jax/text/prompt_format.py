r"""A dialogue -> token segments, in Step-Audio's prompt format.

    [<|BOT|>system\n{system}<|EOT|>]<|BOT|>human\n{text and audio}<|EOT|>
    <|BOT|>assistant\n<think>\n{reasoning}\n</think>\n{reply}<|EOT|>          (nothing between the
    two lines)

The model writes what follows `<think>\n`. A past assistant turn is
`<|BOT|>assistant\n{reply}<|EOT|>`: its reasoning is gone.

Text between two special tokens is encoded as one piece, as a tokenizer of the whole string would.
The prompt's end, the reasoning with `\n</think>\n`, and the reply are pieces of their own: the BPE
may not merge across a boundary that exists when the model answers, or training and answering would
see different tokens. So the prompt's tokens and the completion's are, end to end, the tokens of
training.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.errors import TextError
from stepaudio_jax.text.dialogue import AudioPart, Message, Role, validate_dialogue
from stepaudio_jax.text.tokenizer import Tokenizer

ROLE_NAMES: Mapping[Role, str] = {
    "system": "system",
    "user": "human",
    "assistant": "assistant",
    "tool_json_schemas": "tool_json_schemas",
    "input": "input",
}
THINK_END = "\n</think>\n"
_ANSWER = "assistant\n<think>\n"


@dataclasses.dataclass(frozen=True)
class Segment:
    """Successive tokens of one message, or the place of one clip.

    Attributes:
        tokens: empty for a clip, which becomes `audio_tokens` once its length is known.
        in_loss: whether the model is to learn to write these tokens.
        audio: the clip, if this is its place.
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
    r"""The prompt to which the model answers; ends in `<|BOT|>assistant\n<think>\n`.

    Args:
        messages: ending in a user's turn or a tool's result (`input`).
        tokenizer: of the model.
        history_eot: whether past assistant turns end in `<|EOT|>`. False reproduces the template of
        the released server.
        history_reasoning: whether past assistant turns keep their reasoning, for a model trained on
            dialogues rendered so.

    Raises:
        TextError: see `validate_dialogue`, or the last message is not one to answer to.
    """
    validate_dialogue(messages)
    last = messages[-1]
    if last.role not in ("user", "input"):
        raise TextError(
            f"message {len(messages)} ({last.role}) is the last one; the model answers to 'user' or 'input'"
        )
    segments = []
    for turn, message in enumerate(messages):
        if message.role == "assistant" and history_reasoning:
            segments += _answer(
                message,
                turn,
                tokenizer,
                reasoning_in_loss=False,
                reply_in_loss=False,
                eot=history_eot,
            )
        else:
            segments += _context(
                message, turn, tokenizer, eot=history_eot or message.role != "assistant"
            )
    return [*segments, _answer_start(len(messages), tokenizer)]


def training_views(
    messages: Sequence[Message], *, history_reasoning: bool = False
) -> list[tuple[Message, ...]]:
    """Splits a dialogue into what is trained on, each to be rendered by `render_training`.

    A past turn's reasoning is not in the prompt, so a turn that is learnt (with its `<think>`)
    cannot at the same time be history for a later one: by default there is one view for each
    assistant turn that is learnt, which ends with it, and in which all earlier ones are history.
    That is exactly what the model sees when it answers; the history is read once for each.

    Args:
        messages: the whole dialogue; the turns after the last one learnt are left out.
        history_reasoning: True keeps the dialogue in one view, in which later turns see the
            reasoning of earlier ones: cheaper, and right where `render_prompt` is later asked for
            the same.

    Raises:
        TextError: see `validate_dialogue`; no turn is learnt; one is learnt that no user's turn
            comes before; or one that is learnt contains `</think>`, which would end its reasoning
            early.
    """
    validate_dialogue(messages)
    learnt = [
        turn
        for turn, message in enumerate(messages)
        if message.role == "assistant" and message.in_loss
    ]
    if not learnt:
        raise TextError("no assistant turn is learnt; give the dialogue one, or remove it")
    for turn in learnt:
        where = f"message {turn + 1} (assistant)"
        if all(message.role != "user" for message in messages[:turn]):
            raise TextError(
                f"{where} is learnt and no user's turn comes before it; take it out of the loss"
            )
        for what, text in (("reasoning", messages[turn].reasoning), ("reply", messages[turn].text)):
            if text is not None and "</think>" in text:
                raise TextError(
                    f"{where} has </think> in its {what}, where it would end the reasoning; rewrite it"
                )
    if history_reasoning:
        return [tuple(messages[: learnt[-1] + 1])]
    return [(*map(_as_history, messages[:turn]), messages[turn]) for turn in learnt]


def render_training(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    history_reasoning: bool = False,
    loss_on_reasoning: bool = True,
) -> list[Segment]:
    r"""One view of a dialogue with the turns to learn.

    In the loss is all that the model must write: the reasoning and `\n</think>\n` (one segment),
    the reply and `<|EOT|>` (another). A turn whose reasoning is None or empty is learnt as
    `<think>\n\n</think>\n{reply}`.

    Args:
        messages: a view, see `training_views`.
        tokenizer: of the model.
        history_reasoning: must be what `training_views` was asked for. False: only the last message
            is learnt, all others are history. True: every assistant turn is rendered with its
            reasoning, and those with `in_loss` are learnt.
        loss_on_reasoning: False takes the reasoning, with its `\n</think>\n`, out of the loss.

    Raises:
        TextError: see `training_views`, or `messages` is not a view.
    """
    views = training_views(messages, history_reasoning=history_reasoning)
    if len(views) > 1 or len(views[0]) != len(messages):
        raise TextError(
            "the dialogue must end in its only turn that is learnt; split it by training_views"
        )
    segments = []
    for turn, message in enumerate(messages):
        learnt = message.role == "assistant" and message.in_loss
        if message.role == "assistant" and (learnt or history_reasoning):
            reasoning_in_loss = learnt and loss_on_reasoning
            segments += _answer(
                message,
                turn,
                tokenizer,
                reasoning_in_loss=reasoning_in_loss,
                reply_in_loss=learnt,
                eot=True,
            )
        else:
            segments += _context(message, turn, tokenizer, eot=True)
    return segments


def audio_tokens(chunk_tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The tokens of one clip: for each chunk `<audio_start>`, its number of `<audio_patch>`, `<audio_end>`.

    Args:
        chunk_tokens: the number of audio tokens of each chunk of the clip (see
        `audio.chunk_token_count`).
        tokenizer: of the model.
    """
    special = tokenizer.special
    tokens = []
    for count in chunk_tokens:
        tokens += [special.audio_start, *[special.audio_patch] * count, special.audio_end]
    return tokens


def _as_history(message: Message) -> Message:
    return dataclasses.replace(message, in_loss=False) if message.role == "assistant" else message


def _context(message: Message, turn: int, tokenizer: Tokenizer, *, eot: bool) -> list[Segment]:
    """A message the model reads; of an assistant's, the reply only."""
    segments: list[Segment] = []
    tokens, text = [tokenizer.special.bot], f"{ROLE_NAMES[message.role]}\n"
    for part in message.parts:
        if isinstance(part, AudioPart):
            tokens += tokenizer.encode(text)
            if tokens:
                segments.append(Segment(tuple(tokens), in_loss=False, audio=None, turn=turn))
            segments.append(Segment((), in_loss=False, audio=part, turn=turn))
            tokens, text = [], ""
        else:
            text += part.text
    tokens += tokenizer.encode(text)
    if eot:
        tokens.append(tokenizer.special.eot)
    return [*segments, Segment(tuple(tokens), in_loss=False, audio=None, turn=turn)]


def _answer(
    message: Message,
    turn: int,
    tokenizer: Tokenizer,
    *,
    reasoning_in_loss: bool,
    reply_in_loss: bool,
    eot: bool,
) -> list[Segment]:
    """An assistant's turn as it is written: reasoning, reply."""
    reasoning = tokenizer.encode((message.reasoning or "") + THINK_END)
    reply = tokenizer.encode(message.text) + [tokenizer.special.eot] * eot
    return [
        _answer_start(turn, tokenizer),
        Segment(tuple(reasoning), in_loss=reasoning_in_loss, audio=None, turn=turn),
        Segment(tuple(reply), in_loss=reply_in_loss, audio=None, turn=turn),
    ]


def _answer_start(turn: int, tokenizer: Tokenizer) -> Segment:
    return Segment(
        (tokenizer.special.bot, *tokenizer.encode(_ANSWER)), in_loss=False, audio=None, turn=turn
    )


# Rendered segments -> one row of tokens, the tokens of each clip in its place.


@dataclasses.dataclass(frozen=True)
class TokenizedDialogue:
    """A dialogue as tokens.

    Attributes:
        tokens: [T] i32, audio tokens included.
        in_loss: [T] bool, the tokens that the model is to write.
        clips: (index of the first token, path) of every clip, in order.
    """

    tokens: NDArray[np.int32]
    in_loss: NDArray[np.bool_]
    clips: tuple[tuple[int, str], ...]

    @property
    def paths(self) -> frozenset[str]:
        """The clips in it."""
        return frozenset(path for _, path in self.clips)


def tokenize_dialogue(
    segments: Sequence[Segment],
    chunk_tokens: Callable[[AudioPart], Sequence[int]],
    tokenizer: Tokenizer,
) -> TokenizedDialogue:
    """Puts segments end to end.

    Args:
        segments: of one dialogue.
        chunk_tokens: how many audio tokens each chunk of a clip takes; asked once for every place
        of a clip, in order.
        tokenizer: of the model.
    """
    tokens: list[int] = []
    in_loss: list[bool] = []
    clips = []
    for segment in segments:
        added: Sequence[int] = segment.tokens
        if segment.audio is not None:
            clips.append((len(tokens), segment.audio.path))
            added = audio_tokens(chunk_tokens(segment.audio), tokenizer)
        tokens += added
        in_loss += [segment.in_loss] * len(added)
    return TokenizedDialogue(np.array(tokens, np.int32), np.array(in_loss, np.bool_), tuple(clips))


# What the model wrote -> reasoning and reply: the inverse of rendering.

Problem = Literal[
    "not_ended",  # it does not end in <|EOT|>: cut off at the limit of length
    "no_think_end",  # </think> never comes: all of it is reasoning
    "several_think_ends",  # </think> comes again within the reply
    "think_end_not_on_its_line",
    "empty_reply",  # nothing but white space
    "special_token",  # one within the text (speech, a second turn)
    "invalid_utf8",
]
_TAG = THINK_END.strip()


@dataclasses.dataclass(frozen=True)
class ParsedReply:
    r"""What the model wrote, taken apart.

    Attributes:
        reasoning: what comes before the first `</think>`; everything, where there is none.
        reply: what comes after it.
        problems: each way in which it departs from `{reasoning}\n</think>\n{reply}<|EOT|>`.
        special_tokens: the names of special tokens within it; they are in neither reasoning nor
            reply.
    """

    reasoning: str
    reply: str
    problems: tuple[Problem, ...] = ()
    special_tokens: tuple[str, ...] = ()

    @property
    def well_formed(self) -> bool:
        """Whether the text is exactly of the format."""
        return not self.problems


def parse_reply(
    tokens: Sequence[int],
    tokenizer: Tokenizer,
    *,
    ended: bool | None = None,
    stop_overlap_bytes: int = 0,
) -> ParsedReply:
    """Takes generated tokens apart.

    Args:
        tokens: all that was generated after the prompt; `<|EOT|>` at the end is allowed.
        tokenizer: of the model.
        ended: whether the model ended its turn itself, where `<|EOT|>` was taken off; None: by
        whether the last token is it.
        stop_overlap_bytes: bytes at the end of the text that are no part of the reply: of a text
            that stops it, whose beginning shares a token with the reply's end.
    """
    has_eot = bool(tokens) and tokens[-1] == tokenizer.special.eot
    written = tokens[:-1] if has_eot else tokens
    special: list[str] = []
    text: list[str] = []
    problems: list[Problem] = []
    runs = [
        (is_special, list(run))
        for is_special, run in itertools.groupby(written, tokenizer.is_special)
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
    """Takes generated text apart; `ended` says whether the model ended its turn itself (`<|EOT|>` is not in the text)."""
    problems: list[Problem] = [] if ended else ["not_ended"]
    reasoning, tag, reply = text.partition(_TAG)
    if not tag:
        return ParsedReply(reasoning, "", (*problems, "no_think_end"))
    if _TAG in reply:
        problems.append("several_think_ends")
    if not (reasoning.endswith("\n") and reply.startswith("\n")):
        problems.append("think_end_not_on_its_line")
    reasoning, reply = reasoning.removesuffix("\n"), reply.removeprefix("\n")
    if not reply.strip():
        problems.append("empty_reply")
    return ParsedReply(reasoning, reply, tuple(problems))
