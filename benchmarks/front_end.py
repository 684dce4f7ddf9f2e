"""Measures log-mel in seconds of audio a second, beside transformers' WhisperFeatureExtractor.

    python -m benchmarks.front_end [--threads N]

Both sides (theirs by its torch path) get the same sound in one process, chunk by chunk, and neither
pads it to 30 s. They take turns, so that other load on the machine falls on both; medians are
compared. Needs torch (the `test` extra).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor

from stepaudio_jax.audio import SAMPLE_RATE, log_mel

DURATIONS_S = (1.0, 5.0, 10.0, 25.0)
REPETITIONS = 21
AUDIO_S_PER_REPETITION = 100.0

Chunk = NDArray[np.float32]


def sound(duration_s: float, seed: int) -> Chunk:
    """Returns a chirp in noise: [samples] f32."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    chirp = 0.3 * np.sin(2 * np.pi * (200 + 100 * time_s) * time_s)
    return (chirp + rng.normal(0, 0.02, time_s.size)).astype(np.float32)


def seconds_taken(function: Callable[[Chunk], object], chunks: Sequence[Chunk]) -> float:
    """Returns the wall-clock seconds of one pass over the chunks."""
    start = time.perf_counter()
    for chunk in chunks:
        function(chunk)
    return time.perf_counter() - start


def compare(duration_s: float, peer: Callable[[Chunk], object]) -> tuple[float, float]:
    """Measures `log_mel` and the peer on chunks of one length, in turns.

    Returns:
        Seconds of audio per second of each of the two: medians.
    """
    chunks = [sound(duration_s, seed) for seed in range(round(AUDIO_S_PER_REPETITION / duration_s))]
    functions = (log_mel, peer)
    times: tuple[list[float], list[float]] = ([], [])
    for function in functions:
        seconds_taken(function, chunks)  # warm-up: filters, FFT plans, threads
    for repetition in range(REPETITIONS):
        for index in (0, 1) if repetition % 2 == 0 else (1, 0):
            times[index].append(seconds_taken(functions[index], chunks))
    audio_s = duration_s * len(chunks)
    return audio_s / statistics.median(times[0]), audio_s / statistics.median(times[1])


def main() -> None:
    """Prints one line for each chunk length, then the smallest and the mean ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="torch's threads"
    )
    torch.set_num_threads(parser.parse_args().threads)
    extractor = WhisperFeatureExtractor(feature_size=128)

    def whisper(chunk: Chunk) -> object:
        return extractor(
            chunk,
            sampling_rate=SAMPLE_RATE,
            padding="do_not_pad",
            truncation=False,
            return_tensors="np",
        )

    print(
        f"audio-seconds a second, medians of {REPETITIONS} repetitions, "
        f"torch with {torch.get_num_threads()} threads"
    )
    print(f"{'chunk':>8} {'log_mel':>12} {'transformers':>13} {'ratio':>6}")
    ratios = []
    for duration_s in DURATIONS_S:
        ours, theirs = compare(duration_s, whisper)
        ratios.append(ours / theirs)
        print(f"{duration_s:6.1f} s {ours:12,.0f} {theirs:13,.0f} {ratios[-1]:6.2f}")
    print(f"ratio: smallest {min(ratios):.2f}, mean {statistics.fmean(ratios):.2f}")


if __name__ == "__main__":
    main()
