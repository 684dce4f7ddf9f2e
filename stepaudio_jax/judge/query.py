"""What a judge is asked, and what it answers."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Query:
    """Holds one question to a judge.

    Attributes:
        text: the user's message.
        system: the system's message; none where it is empty.
        sample: tells apart questions that are asked several times with the same text. Their answers
            differ only as far as the judge's do.
    """

    text: str
    system: str = ""
    sample: int = 0

    @property
    def key(self) -> str | list[str | int]:
        """Returns what identifies the question in a cache, JSON-ready.

        Caches are keyed by it: the form of a plain question stays its text.
        """
        return [self.text, self.system, self.sample] if self.system or self.sample else self.text


@dataclasses.dataclass(frozen=True)
class JudgeAnswer:
    """What a judge wrote, and whether it was truncated at its limit of tokens."""

    text: str
    truncated: bool = False
