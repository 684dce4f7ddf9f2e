"""Where to cut a long recording: at silences, into parts of a limited length."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio.lengths import SAMPLE_RATE

_FRAME_SAMPLES = 160  # 10 ms: cuts lie at multiples of it
_FRAMES_PER_SECOND = SAMPLE_RATE // _FRAME_SAMPLES
_MIN_MAX_S = 1.0
# A frame is silent if its level lies in the lowest fifth between the recording's quiet and loud
# levels, which are these percentiles of all frames.
_QUIET, _LOUD = 10, 95
_SILENT_FRACTION = 0.2
_FLOOR = 1e-10  # -100 dB of full scale
_SMOOTHING_FRAMES = 15  # of the level whose lowest point is cut where there is no silence


def find_split_points(
    waveform: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    max_s: float,
    *,
    min_silence_s: float = 0.2,
) -> list[tuple[float, float]]:
    """Finds where to cut a recording into parts of at most `max_s` seconds.

    A cut lies in the middle of the longest silence that leaves both sides long enough: a part has
    at least half of `max_s`, and the last two at least a quarter of what they share. Where no
    silence lasts `min_silence_s`, the cut is at the quietest point. The result depends on nothing
    but the samples.

    Args:
        waveform: [samples] at 16 kHz, or its pieces in order, as `iter_audio` yields them: of a
            recording in pieces, one number for every 10 ms is held.
        max_s: the longest part, in seconds; at least 1.
        min_silence_s: the shortest silence that counts as one, in seconds.

    Returns:
        (start_s, end_s) of each part, in order: the first starts at 0, each next one where the
        last has ended, and the last ends with the recording. Empty for no samples.

    Raises:
        ValueError: `max_s` is below 1 s, or `min_silence_s` is negative.
    """
    if not max_s >= _MIN_MAX_S:
        raise ValueError(f"max_s={max_s} must be at least {_MIN_MAX_S:g} s")
    if not min_silence_s >= 0:
        raise ValueError(f"min_silence_s={min_silence_s} must not be negative")
    pieces = [waveform] if isinstance(waveform, np.ndarray) else waveform
    levels, samples = _frame_levels(pieces)
    if not samples:
        return []
    max_frames = int(max_s * _FRAMES_PER_SECOND)
    quiet, loud = np.percentile(levels, (_QUIET, _LOUD))
    is_silent = levels <= quiet + _SILENT_FRACTION * (loud - quiet)
    if loud == quiet:
        is_silent[:] = False  # a recording of one level has no silences
    smooth = _moving_mean(levels)
    min_silence = max(round(min_silence_s * _FRAMES_PER_SECOND), 1)
    cuts = [0]
    # The length is compared in samples: the last frame may be a part of one.
    while samples - cuts[-1] * _FRAME_SAMPLES > max_s * SAMPLE_RATE:
        first, last = _allowed(len(levels) - cuts[-1], max_frames)
        first, last = cuts[-1] + first, cuts[-1] + last
        cut = _longest_silence(is_silent, first, last, min_silence)
        cuts.append(_quietest(smooth, first, last) if cut is None else cut)
    times = [cut / _FRAMES_PER_SECOND for cut in cuts] + [samples / SAMPLE_RATE]
    return list(itertools.pairwise(times))


def _frame_levels(pieces: Iterable[NDArray[np.float32]]) -> tuple[NDArray[np.float64], int]:
    """Returns the level of each frame in dB of full scale, the last one perhaps partial.

    Also returns the number of samples of all pieces.
    """
    levels: list[NDArray[np.float64]] = []
    samples = 0
    for frames in _whole_frames(pieces):
        samples += frames.size
        power = np.mean(np.square(frames, dtype=np.float64), axis=-1)
        levels.append(np.atleast_1d(10 * np.log10(power + _FLOOR)))
    return np.concatenate(levels) if levels else np.zeros(0), samples


def _whole_frames(pieces: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Yields [frames, 160] of the pieces' samples, and at last a shorter frame [1, samples]."""
    rest = np.zeros(0, np.float32)
    for piece in pieces:
        samples = np.concatenate([rest, piece]) if len(rest) else piece
        count = len(samples) // _FRAME_SAMPLES * _FRAME_SAMPLES
        if count:
            yield samples[:count].reshape(-1, _FRAME_SAMPLES)
        rest = samples[count:].copy()  # and not a view, which would keep the piece
    if len(rest):
        yield rest[None, :]


def _allowed(remaining: int, max_frames: int) -> tuple[int, int]:
    """Returns the first and the last frame at which the next part may end."""
    if remaining > 2 * max_frames:
        return max_frames // 2, max_frames
    # Two parts share what remains, and neither may be tiny or too long.
    first = max(remaining - max_frames, remaining // 4, 1)
    return first, max(min(max_frames, remaining - remaining // 4), first)


def _longest_silence(
    is_silent: NDArray[np.bool_], first: int, last: int, min_frames: int
) -> int | None:
    """Returns the middle of the longest silence in a range of frames, or None.

    Of silences of the same length the last counts, since it makes fewer parts.
    """
    padded = np.concatenate([[False], is_silent[first : last + 1], [False]]).astype(np.int8)
    (starts,), (ends,) = np.nonzero(np.diff(padded) == 1), np.nonzero(np.diff(padded) == -1)
    lengths = ends - starts
    if not len(lengths) or lengths.max() < min_frames:
        return None
    longest = len(lengths) - 1 - int(np.argmax(lengths[::-1]))
    return min(first + int(starts[longest] + ends[longest]) // 2, last)


def _quietest(smooth: NDArray[np.float64], first: int, last: int) -> int:
    """Returns the frame of the lowest level in a range, the last of equal ones."""
    levels = smooth[first : last + 1]
    return first + len(levels) - 1 - int(np.argmin(levels[::-1]))


def _moving_mean(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean over a window of frames around each one, as many values as levels."""
    half = _SMOOTHING_FRAMES // 2
    padded = np.pad(levels, half, mode="edge")
    return np.convolve(padded, np.full(_SMOOTHING_FRAMES, 1 / _SMOOTHING_FRAMES), mode="valid")
