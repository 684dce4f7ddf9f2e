"""What a judge is asked, and what it answers."""

import dataclasses
from typing import Any, Literal

QueryRole = Literal["user", "assistant"]


@dataclasses.dataclass(frozen=True)
class Query:
    """Holds one question to a judge.

    Attributes:
        text: the user's message.
        system: the system's message; none where it is empty.
        sample: tells apart questions that are asked several times with the same text. Their answers
            differ only as far as the judge's do, unless it draws them by this number.
        history: the turns before the text, (role, text) of each, from the side of who is asked.
    """

    text: str
    system: str = ""
    sample: int = 0
    history: tuple[tuple[QueryRole, str], ...] = ()

    @property
    def key(self) -> str | list[Any]:
        """Returns what identifies the question in a cache, JSON-ready.

        Caches are keyed by it: the form of a plain question stays its text.
        """
        if self.history:
            return [self.text, self.system, self.sample, [list(turn) for turn in self.history]]
        return [self.text, self.system, self.sample] if self.system or self.sample else self.text

    @property
    def messages(self) -> list[tuple[Literal["system"] | QueryRole, str]]:
        """Returns all that is sent, (role, text) of each message in order."""
        system = [("system", self.system)] if self.system else []
        return [*system, *self.history, ("user", self.text)]


@dataclasses.dataclass(frozen=True)
class JudgeAnswer:
    """What a judge wrote, and whether it was truncated at its limit of tokens."""

    text: str
    truncated: bool = False
