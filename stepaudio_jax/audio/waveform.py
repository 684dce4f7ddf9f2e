"""From decoded blocks to the waveform that a model hears, without the whole file in memory."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio.channels import ChannelReducer
from stepaudio_jax.audio.lengths import SAMPLE_RATE, audio_token_count
from stepaudio_jax.audio.resampling import BlockResampler, resampled_length
from stepaudio_jax.config import AudioChannel, LengthConvention
from stepaudio_jax.errors import AudioError

# Hz; a header with any other rate is damaged, and resampling would take unbounded memory.
SAMPLE_RATE_RANGE = (1_000, 768_000)
# A part may end this much behind its file: people round times to hundredths of a second.
MAX_ROUNDING_S = 0.01
_MAX_AMPLITUDE = 256.0  # full scale is 1; larger values are integers stored as floats
_MIN_GROWTH_SAMPLES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Part:
    """Holds which part of a recording is wanted.

    The samples of a part are those from `round(start_s * 16000)` to `round(end_s * 16000)` of the
    whole recording at 16 kHz.

    Attributes:
        start_s: where it begins, in seconds.
        end_s: where it ends; None for the end of the recording.
    """

    start_s: float = 0.0
    end_s: float | None = None

    @property
    def is_all(self) -> bool:
        """Returns whether the part is the whole recording."""
        return not self.start_s and self.end_s is None

    @property
    def first(self) -> int:
        """Returns the index of the first sample at 16 kHz."""
        return round(self.start_s * SAMPLE_RATE)

    @property
    def last(self) -> int | None:
        """Returns the index behind the last sample at 16 kHz, or None."""
        return None if self.end_s is None else round(self.end_s * SAMPLE_RATE)

    def is_within(self, frames: int, rate: int) -> bool:
        """Returns whether the part lies within a recording of `frames` samples at `rate` Hz."""
        return self.first < resampled_length(frames, rate, SAMPLE_RATE) and (
            self.end_s is None or self.end_s <= frames / rate + MAX_ROUNDING_S
        )

    def within(self, name: str, frames: int, rate: int) -> tuple[int, int]:
        """Returns the first and the last index, in samples at 16 kHz, in a recording of a length.

        Args:
            name: of the recording.
            frames: of it: samples of each channel, at its own rate.
            rate: Hz.

        Raises:
            AudioError: the part begins or ends behind the recording's end.
        """
        total = resampled_length(frames, rate, SAMPLE_RATE)
        seconds = frames / rate
        if not self.is_all and self.first >= total:
            raise AudioError(
                name,
                f"is {seconds:.3f} s long, and start_s={self.start_s:g} lies behind its end;"
                " correct it",
            )
        if self.end_s is not None and self.end_s > seconds + MAX_ROUNDING_S:
            raise AudioError(
                name,
                f"is {seconds:.3f} s long, and end_s={self.end_s:g} lies behind its end; correct"
                " it",
            )
        return self.first, total if self.last is None else min(total, self.last)


def check_part(name: str, start_s: float | None, end_s: float | None) -> Part:
    """Returns the part of a recording from `start_s` to `end_s`.

    Raises:
        AudioError: they are no times, or not in order.
    """
    for key, value in (("start_s", start_s), ("end_s", end_s)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise AudioError(name, f"has {key}={value!r}; give seconds from its beginning")
    part = Part(float(start_s or 0.0), None if end_s is None else float(end_s))
    if part.end_s is not None and part.end_s <= part.start_s:
        raise AudioError(
            name, f"has end_s={part.end_s:g}, which is not behind start_s={part.start_s:g}"
        )
    return part


class WaveformStream:
    """Makes a waveform at 16 kHz of decoded blocks, piece by piece.

    Args:
        name: of the recording, for error messages.
        rate: of the blocks, in Hz.
        part: which part of the recording to keep.
        channel, length_convention: as in `load_audio`.

    Attributes:
        first_frame: index of the first sample of the recording that the part depends on; the first
            block begins there.

    Raises:
        AudioError: the rate is out of range.
    """

    def __init__(
        self,
        name: str,
        rate: int,
        *,
        part: Part,
        channel: AudioChannel,
        length_convention: LengthConvention,
    ):
        check_rate(name, rate)
        self._name = name
        self._rate = rate
        self._part = part
        self._length_convention = length_convention
        self._reducer = ChannelReducer(channel)
        self._resampler = BlockResampler(rate, SAMPLE_RATE, part.first)
        self.first_frame = self._resampler.first_input
        self._frames = self.first_frame
        self._end_frame = None if part.last is None else self._resampler.inputs_needed(part.last)
        self._bad = 0
        self._peak = 0.0
        self._count = 0

    @property
    def is_complete(self) -> bool:
        """Returns whether the part needs no further block."""
        return self._end_frame is not None and self._frames >= self._end_frame

    def add(self, block: NDArray[np.float32], *, is_bounded: bool = False) -> NDArray[np.float32]:
        """Returns the samples at 16 kHz that the next block completes.

        Args:
            block: [samples, channels].
            is_bounded: whether its samples are known to lie within full scale.
        """
        if self._end_frame is not None:
            block = block[: self._end_frame - self._frames]
        self._frames += len(block)
        samples = self._reducer.reduce(block)
        if not len(samples):
            return np.zeros(0, np.float32)
        if not is_bounded:
            low, high = float(samples.min()), float(samples.max())  # NaN if one of them is
            if not (math.isfinite(low) and math.isfinite(high)):
                self._bad += int(np.count_nonzero(~np.isfinite(samples)))
            if self._bad:
                return np.zeros(0, np.float32)
            self._peak = max(self._peak, -low, high)
        return self._limit(self._resampler.push(samples))

    def finish(self, frames: int | None = None) -> NDArray[np.float32]:
        """Returns the samples that remain after the last block, and checks all of them.

        Args:
            frames: of the whole recording, where that is known although its last block may not
                have been added.

        Raises:
            AudioError: there are no samples, the part is not within the recording, the reduced
                channel is silent though others are not, or samples are not finite, far beyond full
                scale, or too few for an audio token.
        """
        if not self.is_complete:  # the recording has ended
            total = self._frames if self._frames > self.first_frame else frames or 0
            if not total:
                raise AudioError(self._name, "has no samples; remove it")
            self._part.within(self._name, total, self._rate)
        if (reason := self._reducer.find_silence()) is not None:
            raise AudioError(self._name, reason)
        used = self._frames - self.first_frame
        if self._bad:
            raise AudioError(
                self._name,
                f"has {self._bad} NaN or infinite samples of {used}; export it again",
            )
        if self._peak > _MAX_AMPLITUDE:
            raise AudioError(
                self._name,
                f"has samples up to {self._peak:g}, full scale is 1; divide by the range of its"
                " integers",
            )
        rest = self._limit(self._resampler.finish())
        check_not_too_short(
            self._name, self._count, used, self._rate, self._part, self._length_convention
        )
        return rest

    def _limit(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns what lies within the part of the next samples at 16 kHz."""
        if self._part.last is not None:
            samples = samples[: self._part.last - self._part.first - self._count]
        self._count += len(samples)
        return samples


def check_rate(name: str, rate: int) -> None:
    """Raises an AudioError if a sample rate, in Hz, is out of range."""
    lowest, highest = SAMPLE_RATE_RANGE
    if not lowest <= rate <= highest:
        raise AudioError(
            name, f"says its sample rate is {rate} Hz; {lowest} to {highest} are allowed"
        )


def check_not_too_short(
    name: str,
    samples: int,
    frames: int,
    rate: int,
    part: Part,
    length_convention: LengthConvention,
) -> None:
    """Raises an AudioError if a clip has no audio token.

    Args:
        name: of the clip.
        samples: of the clip or its part, at 16 kHz.
        frames: of the whole clip, at its own rate.
        rate: Hz.
        part: which part of the clip `samples` counts.
        length_convention: of the model.
    """
    if audio_token_count(samples, length_convention):
        return
    if part.is_all:
        what = f"{frames} samples at {rate} Hz"
    else:
        what = f"the part from start_s={part.start_s:g} has {samples} samples at {SAMPLE_RATE} Hz,"
        what = f"{what} which"
    raise AudioError(name, f"is too short: {what} give no audio token; remove it")


def join(pieces: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns all pieces [samples] in one array, which holds no piece twice while it grows."""
    filled = (piece for piece in pieces if len(piece))
    first = list(itertools.islice(filled, 2))
    if len(first) == 1:
        return np.ascontiguousarray(first[0])  # most clips: nothing needs to be copied
    values = np.empty(0, np.float32)
    count = 0
    for piece in itertools.chain(first, filled):
        end = count + len(piece)
        if end > len(values):
            growth = max(len(values) // 8, _MIN_GROWTH_SAMPLES)
            # No other array shares this memory, so it may move.
            values.resize(max(end, len(values) + growth), refcheck=False)
        values[count:end] = piece
        count = end
    values.resize(count, refcheck=False)
    return values
