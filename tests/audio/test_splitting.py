"""find_split_points: at silences, covering everything, in parts of a limited length."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.audio import find_split_points


def recording(*stretches, seed=0):
    """Joins stretches of (seconds, amplitude) of noise."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [amplitude * rng.normal(0, 1, round(s * 16_000)) for s, amplitude in stretches]
    ).astype(np.float32)


def check_cover(parts, waveform, max_s):
    """Parts in samples follow each other from the first to the last, none too long."""
    edges = [(round(start * 16_000), round(end * 16_000)) for start, end in parts]
    assert edges[0][0] == 0
    assert edges[-1][1] == len(waveform)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(edges))
    assert all(0 < end - start <= max_s * 16_000 for start, end in edges)


def test_a_recording_that_fits_is_one_part():
    waveform = recording((9.999, 0.1))
    assert find_split_points(waveform, 10) == [(0.0, 9.999)]
    assert find_split_points(waveform[:1], 10) == [(0.0, 1 / 16_000)]
    assert find_split_points(waveform[:0], 10) == []
    assert find_split_points([], 10) == []


def test_cuts_lie_in_the_middle_of_the_longest_silences():
    """Of pauses of 0.3 and 0.8 s the longer ones are cut."""
    sentence, short, long = (2.0, 0.1), (0.3, 0.001), (0.8, 0.001)
    waveform = recording(*[sentence, short, sentence, long] * 4)
    parts = find_split_points(waveform, 8)
    check_cover(parts, waveform, 8)
    # Each repetition lasts 5.1 s, and its long pause is centred at 4.7 s.
    cuts = [start for start, _ in parts[1:]]
    for cut in cuts:
        assert abs((cut - 4.7) % 5.1) < 0.02 or abs((cut - 4.7) % 5.1 - 5.1) < 0.02


def test_the_threshold_follows_the_recording():
    """A loud room's pauses are louder than a quiet room's speech."""
    for scale in (0.001, 0.3):
        waveform = scale * recording((3, 1), (0.5, 0.1), (3, 1))
        ((_, cut), _) = find_split_points(waveform, 4)
        assert abs(cut - 3.25) < 0.02


def test_without_a_silence_the_quietest_point_is_cut():
    waveform = recording((4, 0.1), (0.08, 0.06), (4, 0.1))
    ((_, cut), _) = find_split_points(waveform, 6)
    assert abs(cut - 4.04) < 0.1


def test_without_any_difference_parts_are_long():
    waveform = np.full(16_000 * 100, 0.1, np.float32)
    parts = find_split_points(waveform, 30)
    check_cover(parts, waveform, 30)
    assert len(parts) == 4


def test_no_part_is_tiny():
    """What is a little longer than allowed is cut in two of a fair length."""
    for seconds in (10.01, 12.0, 19.99, 20.02):
        waveform = recording((seconds, 0.1))
        waveform[: 16_000 // 2] = 0
        waveform[-16_000 // 2 :] = 0
        parts = find_split_points(waveform, 10)
        check_cover(parts, waveform, 10)
        assert min(end - start for start, end in parts) > 2


def test_pieces_give_the_cuts_of_the_whole():
    waveform = recording(*[(1.7, 0.1), (0.4, 0.002)] * 12)[:-77]
    whole = find_split_points(waveform, 7)
    assert len(whole) > 3
    for size in (1, 999, 16_000, 100_000):
        if size == 1:
            pieces = [waveform[:1], waveform[1:1], waveform[1:2], waveform[2:]]
        else:
            pieces = [waveform[i : i + size] for i in range(0, len(waveform), size)]
        assert find_split_points(iter(pieces), 7) == whole


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 8), st.sampled_from([0.0, 0.001, 0.1])), max_size=12),
    st.floats(1, 12),
    st.floats(0, 1),
)
def test_any_recording_is_covered(stretches, max_s, min_silence_s):
    waveform = recording(*stretches, (0.5, 0.01))
    parts = find_split_points(waveform, max_s, min_silence_s=min_silence_s)
    check_cover(parts, waveform, max_s)
    assert parts == find_split_points(waveform, max_s, min_silence_s=min_silence_s)
    if len(parts) > 1:
        assert min(end - start for start, end in parts) > max_s / 4 - 0.02
        assert min(end - start for start, end in parts[:-1]) > max_s / 2 - 0.02


@pytest.mark.parametrize("max_s", [0, 0.99, -1, float("nan")])
def test_lengths_below_a_second_are_refused(max_s):
    with pytest.raises(ValueError, match="must be at least 1 s"):
        find_split_points(np.zeros(16_000, np.float32), max_s)
