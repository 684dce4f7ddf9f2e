"""Splits a dialogue that is too long where its turns or segments carry times.

The parts follow each other without a gap: between segments, a cut lies in the silence that is
between them. Each part is a dialogue of its own, with the turns that open the dialogue and the
request repeated; what it knew of earlier parts is gone.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.record import Record, split_obstacle
from stepaudio_jax.data.sources.segments import MAX_OVERHANG_S
from stepaudio_jax.data.timed_turns import num_opening_turns, segments_obstacle, turn_groups
from stepaudio_jax.data.views import RowLimits, ViewRenderer
from stepaudio_jax.errors import DataError
from stepaudio_jax.text import AudioPart, Message, Part, TextPart
from stepaudio_jax.text.pieces import find_piece_ends, join_attributes

_MAX_OVERLAP_S = 0.1  # of neighbours between which there is a cut: people round times
_MIN_PART_SAMPLES = SAMPLE_RATE // 10  # a shorter part might have no audio token
_GRID_SAMPLES = SAMPLE_RATE // 50  # cuts lie on a grid of 20 ms where they can


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
        plan = _SegmentPlan(group, clip, samples[clip.name], self._renderer, self._limits, error)
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
    return _slice(text, ends, *segments)


def _slice(text: str, ends: Sequence[int], first: int, last: int) -> str:
    """Returns pieces `first` to `last` - 1 of a text, with all that stands between them."""
    start = ends[first - 1] if first else 0
    end = ends[last - 1] if last < len(ends) else len(text)
    return text[start:end].strip()


class _Atom(NamedTuple):
    """Segments between which there is no cut: usually one.

    Attributes:
        segments: first and last + 1.
        start, end: in samples of the file.
    """

    segments: tuple[int, int]
    start: int
    end: int


class _SegmentPlan:
    """Divides the segments of a clip into parts, each as long as a row holds.

    Args:
        messages: the turns that every part has.
        clip: their only clip.
        samples: of the clip.
        renderer, limits: as of `Splitter`.
        error: why all of it does not fit.

    Raises:
        DataError: as of `Splitter.split`.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        clip: AudioPart,
        samples: int,
        renderer: ViewRenderer,
        limits: RowLimits,
        error: DataError,
    ):
        self._clip, self._error = clip, error
        self._max_samples = functools.lru_cache(maxsize=None)(limits.max_samples)
        self._encode = renderer.tokenizer.encode
        self._reply = messages[-1].text
        ends = find_piece_ends(self._reply, [segment.text for segment in clip.segments])
        assert ends is not None
        self._ends = ends
        self._first = round(clip.start_s * SAMPLE_RATE)
        self._last = self._first + samples
        self._atoms = self._find_atoms()
        self._counts = [self._reply_tokens(atom.segments) for atom in self._atoms]
        self._totals = [0, *itertools.accumulate(self._counts)]
        view = renderer.tokenize(messages, lambda _: [])
        self._other_tokens = int(view.tokens.size) - len(self._encode(self._reply))

    def parts(self) -> list[tuple[tuple[int, int], float, float | None]]:
        """Returns segments, start and end of each part."""
        for number, atom in enumerate(self._atoms):
            self._check_fits_alone(number, atom)
        parts = []
        first, start = 0, self._first
        while first < len(self._atoms):
            last, cut = self._next_cut(first, start)
            segments = self._atoms[first].segments[0], self._atoms[last - 1].segments[1]
            is_last = last == len(self._atoms)
            end_s = self._clip.end_s if is_last else cut / SAMPLE_RATE
            start_s = self._clip.start_s if first == 0 else start / SAMPLE_RATE
            parts.append((segments, start_s, end_s))
            first, start = last, cut
        return parts

    def _find_atoms(self) -> list[_Atom]:
        segments = self._clip.segments
        overlap = round(_MAX_OVERLAP_S * SAMPLE_RATE)
        atoms: list[_Atom] = []
        first, end = 0, self._first
        for number, segment in enumerate(segments, 1):
            start = round(segment.start_s * SAMPLE_RATE)
            if start >= self._last or segment.end_s > self._last / SAMPLE_RATE + MAX_OVERHANG_S:
                raise DataError(
                    f"segment {number} of {len(segments)} is from {segment.start_s:.2f} s to"
                    f" {segment.end_s:.2f} s, and its recording ends at"
                    f" {self._last / SAMPLE_RATE:.2f} s; correct its times"
                )
            end = max(end, min(round(segment.end_s * SAMPLE_RATE), self._last))
            atom = _Atom((first, number), round(segments[first].start_s * SAMPLE_RATE), end)
            is_last = number == len(segments)
            next_start = 0 if is_last else round(segments[number].start_s * SAMPLE_RATE)
            if is_last or (end - next_start <= overlap and self._can_stand_alone(atom)):
                atoms.append(atom)
                first = number
        if len(atoms) > 1 and not self._can_stand_alone(atoms[-1]):
            last, before = atoms.pop(), atoms.pop()
            atoms.append(_Atom((before.segments[0], last.segments[1]), before.start, last.end))
        return atoms

    def _can_stand_alone(self, atom: _Atom) -> bool:
        """Returns whether segments have a text and a length of their own."""
        return atom.end - atom.start >= _MIN_PART_SAMPLES and bool(
            _slice(self._reply, self._ends, *atom.segments)
        )

    def _next_cut(self, first: int, start: int) -> tuple[int, int]:
        """Returns the atom behind the longest part that begins with `first`, and where to cut.

        Args:
            first: an atom.
            start: the sample at which the part begins.
        """
        count = len(self._atoms)

        def is_too_long(last: int) -> bool:
            tokens = self._other_tokens + self._totals[last] - self._totals[first]
            return self._needed_end(last - 1) - start > self._max_samples(tokens)

        # Joined texts may take other tokens than each alone: the result is counted exactly.
        longest = bisect.bisect_left(range(first + 1, count + 1), True, key=is_too_long) + first
        for last in range(max(longest, first + 1), first, -1):
            segments = self._atoms[first].segments[0], self._atoms[last - 1].segments[1]
            latest = start + self._max_samples(self._other_tokens + self._reply_tokens(segments))
            if self._needed_end(last - 1) > latest:
                continue
            if last == count:
                return last, self._last
            gap = sorted((self._atoms[last - 1].end, self._atoms[last].start))
            # The next part must hold its first atom, too.
            most = self._max_samples(self._other_tokens + self._counts[last])
            earliest = max(gap[0], self._needed_end(last) - most)
            latest = min(gap[1], latest)
            if earliest <= latest:
                middle = round(sum(gap) / 2 / _GRID_SAMPLES) * _GRID_SAMPLES
                return last, min(max(middle, earliest), latest)
        raise self._silence_too_long(first, start)

    def _needed_end(self, atom: int) -> int:
        """Returns where a part ends at the earliest, whose last atom this is."""
        return self._last if atom == len(self._atoms) - 1 else self._atoms[atom].end

    def _reply_tokens(self, segments: tuple[int, int]) -> int:
        return len(self._encode(_slice(self._reply, self._ends, *segments)))

    def _check_fits_alone(self, number: int, atom: _Atom) -> None:
        tokens = self._other_tokens + self._counts[number]
        if atom.end - atom.start <= self._max_samples(tokens):
            return
        first, last = atom.segments[0] + 1, atom.segments[1]
        what = f"number {first}" if first == last else f"numbers {first} to {last} together"
        sound = (atom.end - atom.start) / SAMPLE_RATE
        room = self._max_samples(tokens) / SAMPLE_RATE
        raise DataError(
            f"{self._error}; of its segments, {what}"
            f" ({atom.start / SAMPLE_RATE:.2f} s to {atom.end / SAMPLE_RATE:.2f} s) is too long for"
            f" a part: {sound:.2f} s of sound, and a row holds {room:.2f} s beside {tokens} tokens"
            " of text; divide it",
            kind="too_long",
        )

    def _silence_too_long(self, first: int, start: int) -> DataError:
        """Returns the error where no cut leaves the sound around `first` short enough."""
        atom = self._atoms[first]
        is_last = first == len(self._atoms) - 1
        after = self._last if is_last else self._atoms[first + 1].start
        before, behind = (atom.start - start, after - atom.end)
        begin, end = (start, atom.start) if before > behind else (atom.end, after)
        return DataError(
            f"{self._error}; no segment lies between"
            f" {begin / SAMPLE_RATE:.2f} s and {end / SAMPLE_RATE:.2f} s, which is too long beside"
            f" segment {atom.segments[0] + 1}; write what is heard there as a segment, or give a"
            " row for each side ('start_s' and 'end_s')",
            kind="too_long",
        )
