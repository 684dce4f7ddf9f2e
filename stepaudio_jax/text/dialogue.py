"""What a dialogue is: messages of ordered text and audio parts."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

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
