"""What a dialogue is: messages of ordered text and audio parts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from stepaudio_jax.errors import TextError

Role = Literal["system", "user", "assistant", "tool_json_schemas", "input"]


@dataclasses.dataclass(frozen=True)
class TextPart:
    """Plain text. It is never read as special tokens, whatever it contains."""

    text: str


@dataclasses.dataclass(frozen=True)
class AudioPart:
    """A reference to one clip, and what is known about it.

    `transcript` and `attributes` (a name and its value, "gender": "female") are labels for
    auxiliary losses; the model never reads them.
    """

    path: str
    transcript: str | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)


Part = TextPart | AudioPart


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn.

    `reasoning` is what an assistant turn thinks before it replies; None where nothing is known of
    it. `in_loss` says whether an assistant turn is learnt.
    """

    role: Role
    parts: tuple[Part, ...]
    reasoning: str | None = None
    in_loss: bool = True

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def audio(self) -> tuple[AudioPart, ...]:
        """The audio parts, in order."""
        return tuple(part for part in self.parts if isinstance(part, AudioPart))


# What makes a sequence of messages a dialogue.

_TEXT_ONLY_ROLES: tuple[Role, ...] = ("assistant", "tool_json_schemas")


def validate_dialogue(messages: Sequence[Message]) -> None:
    """Checks that the prompt format can hold these messages.

    Raises:
        TextError: there is no user's turn; or a message has an unknown role, no content (for an
            assistant: no text but white space), audio where only text can be, or reasoning though
            it is not the assistant's. Numbered from 1.
    """
    for number, message in enumerate(messages, 1):
        where = f"message {number} ({message.role})"
        if message.role not in get_args(Role):
            raise TextError(
                f"message {number} has the unknown role {message.role!r} (allowed: {', '.join(get_args(Role))})"
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
