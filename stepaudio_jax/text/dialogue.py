"""The dialogue: messages of ordered text and audio parts, and the rules that they must follow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from stepaudio_jax.errors import TextError
from stepaudio_jax.storage import format_path

# Plain text, not special tokens: they enclose the reasoning of an assistant turn.
THINK_START_TAG, THINK_END_TAG = "<think>", "</think>"

Role = Literal["system", "user", "assistant", "tool_json_schemas", "input"]


@dataclasses.dataclass(frozen=True)
class TextPart:
    """Holds plain text, which is never read as special tokens, whatever it contains."""

    text: str


@dataclasses.dataclass(frozen=True)
class TimedText:
    """Says what a recording has between two times.

    Attributes:
        start_s, end_s: in seconds of the file, `start_s <= end_s`.
        text: a piece of what is said, or of the reply about it.
        attributes: labels of this piece, as of `AudioPart`.
    """

    start_s: float
    end_s: float
    text: str
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AudioPart:
    """References one clip, or a part of one.

    Attributes:
        path: of the sound file; `FILE#PLACE` inside a container; a `gs://`, `s3://` or `https://`
            address; or the file's content as a `data:` URI.
        transcript: label for the auxiliary CTC loss. The model never reads it; a judge does, and a
            teacher by `with_transcripts`.
        attributes: labels for the auxiliary attribute losses, such as {"gender": "female"}.
        start_s: where the part begins in the file, in seconds.
        end_s: where it ends, greater than `start_s`; None for the end of the file.
        segments: its transcript or the reply to it in pieces, in the order of their beginnings: by
            them a dialogue that is too long is split. The model never reads them.
    """

    path: str
    transcript: str | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    start_s: float = 0.0
    end_s: float | None = None
    segments: tuple[TimedText, ...] = ()

    @property
    def name(self) -> str:
        """Returns the path, with the seconds where the clip is a part of its file."""
        if self.start_s == 0 and self.end_s is None:
            return self.path
        end = "its end" if self.end_s is None else f"{self.end_s:g} s"
        return f"{self.path} ({self.start_s:g} s to {end})"


Part = TextPart | AudioPart


@dataclasses.dataclass(frozen=True)
class Message:
    """Holds one turn of a dialogue.

    Attributes:
        role: who speaks.
        parts: its content, in order.
        reasoning: an assistant turn's thoughts before its reply; None if they are not known.
        in_loss: whether an assistant turn is trained on.
    """

    role: Role
    parts: tuple[Part, ...]
    reasoning: str | None = None
    in_loss: bool = True

    @property
    def text(self) -> str:
        """Returns the text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def audio(self) -> tuple[AudioPart, ...]:
        """Returns the audio parts, in order."""
        return tuple(part for part in self.parts if isinstance(part, AudioPart))


def with_transcripts(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Returns a dialogue with the transcript of each clip in its place.

    A line break stands between a transcript and other text of its message, unless there is white
    space already.

    Raises:
        TextError: a clip has no transcript; names it and its message.
    """
    return tuple(
        dataclasses.replace(message, parts=(TextPart(_text_with_transcripts(message, number)),))
        if message.audio
        else message
        for number, message in enumerate(messages, 1)
    )


def _text_with_transcripts(message: Message, number: int) -> str:
    """Returns the text of a message whose clips are replaced by their transcripts."""
    text, after_clip = "", False
    for part in message.parts:
        is_clip = isinstance(part, AudioPart)
        if isinstance(part, TextPart):
            piece = part.text
        elif part.transcript is None or not part.transcript.strip():
            raise TextError(
                f"message {number} ({message.role}): audio {format_path(part.name)} has no "
                "transcript to stand in its place; give it, or leave the record out"
            )
        else:
            piece = part.transcript
        if not piece:
            continue
        if (is_clip or after_clip) and text and not (text[-1].isspace() or piece[0].isspace()):
            text += "\n"
        text, after_clip = text + piece, is_clip
    return text


_TEXT_ONLY_ROLES: tuple[Role, ...] = ("assistant", "tool_json_schemas")


def validate_dialogue(messages: Sequence[Message]) -> None:
    """Checks that the prompt format can express these messages.

    Raises:
        TextError: there is no user turn; or a message (named by its number, from 1) has an
            unknown role, no content (an assistant's: nothing but white space), audio where only
            text is allowed, or reasoning in a turn that is not the assistant's.
    """
    for number, message in enumerate(messages, 1):
        where = f"message {number} ({message.role})"
        if message.role not in get_args(Role):
            raise TextError(
                f"message {number} has the unknown role {message.role!r}"
                f" (allowed: {', '.join(get_args(Role))})"
            )
        if message.role in _TEXT_ONLY_ROLES and message.audio:
            raise TextError(f"{where} has audio; it can hold text only")
        if message.role == "assistant" and not message.text.strip():
            raise TextError(f"{where} has no content; give its reply, or remove the turn")
        if not message.audio and not message.text:
            raise TextError(f"{where} has no content; give its text or audio, or remove it")
        if message.role != "assistant" and message.reasoning is not None:
            raise TextError(f"{where} has reasoning; only an assistant turn can have it")
    if all(message.role != "user" for message in messages):
        raise TextError("the dialogue has no user turn; give it one, or remove it")
