"""What a judge is asked, and what it answers."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import JudgeInputs

QueryRole = Literal["user", "assistant"]


@dataclasses.dataclass(frozen=True)
class Clip:
    """Holds the sound of a clip in a question; clips are equal where their samples are.

    Attributes:
        digest: SHA-256 of its samples, in hexadecimal.
        num_samples: at 16 kHz.
        read: returns its samples [num_samples] f32, full scale -1..1.
    """

    digest: str
    num_samples: int
    read: Callable[[], NDArray[np.float32]] = dataclasses.field(compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class JudgeInput:
    """Says what a judge was given of a dialogue's clips.

    Attributes:
        inputs: their transcripts, their sound, or both.
        clips: the digest of each clip that was given as sound, in order.
    """

    inputs: JudgeInputs = "transcripts"
    clips: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Query:
    """Holds one question to a judge.

    Attributes:
        text: the user's message.
        system: the system's message; none where it is empty.
        sample: tells apart questions that are asked several times with the same text. Their answers
            differ only as far as the judge's do, unless it draws them by this number.
        clips: (index in the text before which it stands, clip), in order.
        inputs: what stands in the question for a dialogue's clips; None for questions of another
            kind, such as those of benchmarks.
        history: the turns before the text, (role, text) of each, from the side of who is asked.
    """

    text: str
    system: str = ""
    sample: int = 0
    clips: tuple[tuple[int, Clip], ...] = ()
    inputs: JudgeInputs | None = None
    history: tuple[tuple[QueryRole, str], ...] = ()

    @property
    def key(self) -> str | list[Any]:
        """Returns what identifies the question in a cache, JSON-ready.

        Caches are keyed by it: the form of a plain question stays its text.
        """
        if self.history:
            return [self.text, self.system, self.sample, [list(turn) for turn in self.history]]
        if self.clips:
            sound = [[index, clip.digest] for index, clip in self.clips]
            return [self.text, self.system, self.sample, self.inputs, sound]
        return [self.text, self.system, self.sample] if self.system or self.sample else self.text

    @property
    def parts(self) -> list[str | Clip]:
        """Returns the user's message in pieces: texts that are not empty, and clips."""
        pieces: list[str | Clip] = []
        start = 0
        for index, clip in self.clips:
            pieces += [self.text[start:index], clip]
            start = index
        return [piece for piece in (*pieces, self.text[start:]) if piece != ""]

    @property
    def given(self) -> JudgeInput | None:
        """Returns what the judge is given of a dialogue's clips; None where `inputs` is None."""
        if self.inputs is None:
            return None
        return JudgeInput(self.inputs, tuple(clip.digest for _, clip in self.clips))


@dataclasses.dataclass(frozen=True)
class JudgeAnswer:
    """What a judge wrote, and whether it was truncated at its limit of tokens."""

    text: str
    truncated: bool = False
