"""Where to cut a clip that is too long between its segments, in the silences there."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.sources.segments import MAX_OVERHANG_S
from stepaudio_jax.data.views import RowLimits, ViewRenderer
from stepaudio_jax.errors import DataError
from stepaudio_jax.text import AudioPart, Message, TextPart
from stepaudio_jax.text.pieces import cut_pieces, find_piece_ends

_MAX_OVERLAP_S = 0.1  # of neighbours between which there is a cut: people round times
# A shorter part might have no audio token, where its neighbours overlap with it.
_MIN_PART_S = 0.3
_GRID_SAMPLES = SAMPLE_RATE // 50  # cuts lie on a grid of 20 ms where they can


class SegmentPlan:
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
        view = (*messages[:-1], dataclasses.replace(messages[-1], parts=(TextPart("-"),)))
        rendered = renderer.tokenize(view, lambda _: [])
        self._other_tokens = int(rendered.tokens.size) - len(self._encode("-"))

    def parts(self) -> list[tuple[tuple[int, int], float, float | None]]:
        """Returns segments, start and end of each part."""
        for number in range(len(self._atoms)):
            self._check_fits_alone(number)
        for number in range(len(self._atoms) + 1):
            self._check_silence(number)
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

    def _find_atoms(self) -> "list[_Atom]":
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

    def _can_stand_alone(self, atom: "_Atom") -> bool:
        """Returns whether segments have a text and a length of their own."""
        text = cut_pieces(self._reply, self._ends, *atom.segments)
        return bool(text) and atom.end - atom.start >= _MIN_PART_S * SAMPLE_RATE

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
            earliest = max(gap[0], self._needed_end(last) - self._room(last))
            latest = min(gap[1], latest)
            if earliest <= latest:
                middle = round(sum(gap) / 2 / _GRID_SAMPLES) * _GRID_SAMPLES
                return last, min(max(middle, earliest), latest)
        after = self._last if first == count - 1 else self._atoms[first + 1].start
        raise self._silence_too_long(start, after, first, "on both sides of")

    def _needed_end(self, atom: int) -> int:
        """Returns where a part ends at the earliest, whose last atom this is."""
        return self._last if atom == len(self._atoms) - 1 else self._atoms[atom].end

    def _reply_tokens(self, segments: tuple[int, int]) -> int:
        return len(self._encode(cut_pieces(self._reply, self._ends, *segments)))

    def _room(self, number: int) -> int:
        """Returns the longest clip, in samples, with which the text of an atom fits a row."""
        return self._max_samples(self._other_tokens + self._counts[number])

    def _check_fits_alone(self, number: int) -> None:
        atom, room = self._atoms[number], self._room(number)
        if atom.end - atom.start <= room:
            return
        first, last = atom.segments[0] + 1, atom.segments[1]
        what = f"number {first} is" if first == last else f"numbers {first} to {last} together are"
        raise DataError(
            f"{self._error}; of its segments, {what} too long for a part, from"
            f" {atom.start / SAMPLE_RATE:.2f} s to {atom.end / SAMPLE_RATE:.2f} s: a row holds"
            f" {room / SAMPLE_RATE:.2f} s of sound beside"
            f" {self._other_tokens + self._counts[number]} tokens of text; divide it",
            kind="too_long",
        )

    def _check_silence(self, number: int) -> None:
        """Checks that the sound before an atom, or behind the last one, fits with its neighbours.

        It may be cut anywhere, and one side of it is in the part before.
        """
        start = self._atoms[number - 1].end if number else self._first
        end = self._atoms[number].start if number < len(self._atoms) else self._last
        neighbours = [each for each in (number - 1, number) if 0 <= each < len(self._atoms)]
        room = sum(
            self._room(each) - (self._atoms[each].end - self._atoms[each].start)
            for each in neighbours
        )
        if end - start > room:
            raise self._silence_too_long(start, end, neighbours[0], "beside")

    def _silence_too_long(self, start: int, end: int, atom: int, where: str) -> DataError:
        return DataError(
            f"{self._error}; what is heard from {start / SAMPLE_RATE:.2f} s to"
            f" {end / SAMPLE_RATE:.2f} s in no segment is too long for a part, {where} segment"
            f" {self._atoms[atom].segments[0] + 1}; write it as a segment, or give a row for each"
            " side ('start_s' and 'end_s')",
            kind="too_long",
        )


class _Atom(NamedTuple):
    """Segments between which there is no cut: usually one.

    Attributes:
        segments: first and last + 1.
        start, end: in samples of the file.
    """

    segments: tuple[int, int]
    start: int
    end: int
