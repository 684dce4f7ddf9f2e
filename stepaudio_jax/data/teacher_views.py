"""What a teacher reads where the student hears: the same views, with transcripts for the clips.

The tokens in the loss are the same in both. Where they stand differs, since a clip takes other
tokens than its transcript.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from stepaudio_jax.data.record import TeacherView
from stepaudio_jax.data.views import ViewRenderer
from stepaudio_jax.text import AudioPart, Message, TokenizedDialogue, with_transcripts


def read_view(messages: Sequence[Message], renderer: ViewRenderer) -> TokenizedDialogue:
    """Returns a view as a teacher reads it.

    Raises:
        TextError: a clip has no transcript.
    """

    def no_clip(part: AudioPart) -> Sequence[int]:
        raise AssertionError(f"{part.name} was replaced by its transcript")

    return renderer.tokenize(with_transcripts(messages), no_clip)


def join_read_views(
    heard: Sequence[TokenizedDialogue], read: Sequence[TokenizedDialogue]
) -> TeacherView:
    """Joins the views that a teacher reads into what belongs to one example.

    Args:
        heard: the example's views.
        read: the same views as the teacher reads them.
    """
    sizes = [view.tokens.size for view in read]
    starts = np.cumsum([0, *sizes[:-1]])
    return TeacherView(
        tokens=np.concatenate([view.tokens for view in read]),
        positions=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        segment_ids=np.repeat(np.arange(len(read), dtype=np.int32), sizes),
        target_index=np.concatenate(
            [
                _target_index(student, teacher, int(start))
                for student, teacher, start in zip(heard, read, starts, strict=True)
            ]
        ),
    )


def _target_index(
    heard: TokenizedDialogue, read: TokenizedDialogue, start: int
) -> Int32[np.ndarray, " T"]:
    """Returns where the teacher's view, which begins at `start`, predicts each target."""
    ours, theirs = (np.flatnonzero(view.loss_mask) for view in (heard, read))
    # A reply is encoded apart from its prompt: its tokens do not depend on it.
    assert np.array_equal(heard.tokens[ours], read.tokens[theirs])
    index = np.full(heard.tokens.size, -1, np.int32)
    # The token before a target predicts it.
    index[ours - 1] = theirs - 1 + start
    return index
