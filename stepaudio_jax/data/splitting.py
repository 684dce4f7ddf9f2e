"""Splits a dialogue that is too long where its turns or segments carry times.

The parts follow each other without a gap: between segments, a cut lies in the silence that is
between them. Each part is a dialogue of its own, with the turns that open the dialogue and the
request repeated; what it knew of earlier parts is gone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepaudio_jax.data.record import Record, split_obstacle
from stepaudio_jax.data.segment_plan import SegmentPlan
from stepaudio_jax.data.timed_turns import num_opening_turns, segments_obstacle, turn_groups
from stepaudio_jax.data.views import RowLimits, ViewRenderer
from stepaudio_jax.errors import DataError
from stepaudio_jax.text import AudioPart, Message, Part, TextPart
from stepaudio_jax.text.pieces import cut_pieces, find_piece_ends, join_attributes


class DialoguePart(NamedTuple):
    """Names a part of a dialogue.

    Attributes:
        turns: first and last + 1 of its messages, behind those that open every part.
        segments: first and last + 1 of its segments; None where it has all of its turns' sound.
        start_s, end_s: the part of the file, where it is some segments; no end: the clip's own.
    """

    turns: tuple[int, int]
    segments: tuple[int, int] | None = None
    start_s: float = 0.0
    end_s: float | None = None


class Splitter:
    """Finds the parts of dialogues that do not fit an empty row of a batch.

    Args:
        renderer: of dialogues.
        limits: what a row holds.
        measure: returns the samples of a clip at 16 kHz.
    """

    def __init__(
        self, renderer: ViewRenderer, limits: RowLimits, measure: Callable[[AudioPart], int]
    ):
        self._renderer, self._limits, self._measure = renderer, limits, measure

    def split(self, record: Record) -> list[DialoguePart]:
        """Returns the parts of a dialogue, in order; none if it fits, or nothing carries times.

        Raises:
            DataError: of the kind "too_long": a turn or a segment is too long by itself, or a
                silence; or a segment lies behind the end of its recording.
            AudioError: the length of a clip cannot be found.
            TextError: no turn can be trained on.
        """
        if split_obstacle(record) is not None:
            return []
        messages = record.messages
        clips = {part.name: part for message in messages for part in message.audio}
        samples = {name: self._measure(part) for name, part in clips.items()}
        error = self._misfit(messages, samples)
        if error is None:
            return []
        opening = messages[: num_opening_turns(messages)]
        groups = turn_groups(messages)
        parts: list[DialoguePart] = []
        first = 0
        while first < len(groups):
            last = first
            while last < len(groups) and self._fits_up_to(messages, groups, first, last, samples):
                last += 1
            if last == first:
                parts += self._split_group(messages, opening, groups[first], samples, error)
                last += 1
            else:
                parts.append(DialoguePart((groups[first].start, groups[last - 1].stop)))
            first = last
        return parts

    def _fits_up_to(
        self,
        messages: Sequence[Message],
        groups: Sequence[range],
        first: int,
        last: int,
        samples: dict[str, int],
    ) -> bool:
        """Returns whether groups `first` to `last` fit one row, if all but the last one do."""
        opening = messages[: num_opening_turns(messages)]
        turns = (*opening, *messages[groups[first].start : groups[last].stop])
        replies = sum(
            messages[turn].role == "assistant" and messages[turn].in_loss for turn in groups[last]
        )
        return self._misfit(turns, samples, last_views=replies) is None

    def _misfit(
        self, messages: Sequence[Message], samples: dict[str, int], last_views: int | None = None
    ) -> DataError | None:
        """Returns why one of a dialogue's views, or of its last ones, does not fit; None if all do.

        Raises:
            TextError: no turn can be trained on.
        """
        views = self._renderer.split(messages)
        try:
            for view in views if last_views is None else views[-last_views:]:
                self._check_view(view, samples)
        except DataError as error:
            return error
        return None

    def _check_view(self, view: Sequence[Message], samples: dict[str, int]) -> None:
        tokens = {
            part.name: self._limits.chunk_tokens(part, samples[part.name])
            for message in view
            for part in message.audio
        }
        rendered = self._renderer.tokenize(view, lambda part: tokens[part.name])
        chunks = sum(sum(map(bool, counts)) for counts in tokens.values())
        self._limits.check(rendered.tokens.size, chunks)

    def _split_group(
        self,
        messages: Sequence[Message],
        opening: Sequence[Message],
        turns: range,
        samples: dict[str, int],
        error: DataError,
    ) -> list[DialoguePart]:
        """Returns the parts of turns that do not fit together: between the segments of their clip.

        Args:
            messages: the dialogue.
            opening: the turns that open each part.
            turns: a group.
            samples: of each clip.
            error: why the dialogue does not fit.
        """
        group = (*opening, *messages[turns.start : turns.stop])
        obstacle = segments_obstacle(group)
        if obstacle is not None:
            reason = self._misfit(group, samples)
            raise DataError(
                f"{error}; of its turns, messages {turns.start + 1} to {turns.stop} are too long"
                f" for a part ({reason}), and {obstacle}",
                kind="too_long",
            )
        clip = next(part for message in group for part in message.audio)
        plan = SegmentPlan(group, clip, samples[clip.name], self._renderer, self._limits, error)
        return [
            DialoguePart((turns.start, turns.stop), segments, start_s, end_s)
            for segments, start_s, end_s in plan.parts()
        ]


def part_of_record(record: Record, part: DialoguePart, number: int) -> Record:
    """Returns the dialogue about a part of a record's recording.

    Args:
        record: that was split.
        part: as `Splitter.split` returns it for this record.
        number: of the part, from 1, which its id ends in.
    """
    messages = record.messages
    turns = (*messages[: num_opening_turns(messages)], *messages[part.turns[0] : part.turns[1]])
    if part.segments is not None:
        turns = tuple(_part_of_turn(turn, turns, part) for turn in turns)
    return dataclasses.replace(record, id=f"{record.id}-{number}", messages=turns)


def _part_of_turn(turn: Message, turns: Sequence[Message], part: DialoguePart) -> Message:
    """Returns a turn with its clip or its reply cut to some segments."""
    assert part.segments is not None
    clip = next(item for message in turns for item in message.audio)
    texts = [segment.text for segment in clip.segments]
    if turn.role == "assistant":
        reply = _cut_text(turn.text, texts, part.segments)
        return dataclasses.replace(turn, parts=(TextPart(reply),))
    cut = clip.segments[slice(*part.segments)]
    labels = join_attributes(segment.attributes for segment in clip.segments)
    attributes = {key: text for key, text in clip.attributes.items() if key not in labels}
    attributes |= join_attributes(segment.attributes for segment in cut)
    new_clip = dataclasses.replace(
        clip,
        start_s=part.start_s,
        end_s=part.end_s,
        segments=cut,
        attributes=attributes,
        transcript=None
        if clip.transcript is None
        else _cut_text(clip.transcript, texts, part.segments),
    )
    parts: list[Part] = [new_clip if isinstance(item, AudioPart) else item for item in turn.parts]
    return dataclasses.replace(turn, parts=tuple(parts))


def _cut_text(text: str, pieces: Sequence[str], segments: tuple[int, int]) -> str:
    ends = find_piece_ends(text, pieces)
    assert ends is not None
    return cut_pieces(text, ends, *segments)
