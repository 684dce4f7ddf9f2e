"""Rendered segments -> one row of tokens, the tokens of each clip in its place."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.text.dialogue import AudioPart
from stepaudio_jax.text.rendering import Segment, audio_tokens
from stepaudio_jax.text.tokenizer import Tokenizer


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
