"""Log-mel: audio-seconds a second, beside transformers' WhisperFeatureExtractor (its torch path), in one process.

    python -m benchmarks.front_end [--threads N]

Both are given the same sound, chunk by chunk, and neither pads it to 30 s. The two take turns, so
that whatever else the machine does falls on both; medians are compared. Needs torch (the `test`
extra).
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
    """A chirp in noise: [samples] f32."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    chirp = 0.3 * np.sin(2 * np.pi * (200 + 100 * time_s) * time_s)
    return (chirp + rng.normal(0, 0.02, time_s.size)).astype(np.float32)


def seconds_taken(function: Callable[[Chunk], object], chunks: Sequence[Chunk]) -> float:
    """Wall time of one pass over the chunks."""
    start = time.perf_counter()
    for chunk in chunks:
        function(chunk)
    return time.perf_counter() - start


def compare(duration_s: float, peer: Callable[[Chunk], object]) -> tuple[float, float]:
    """Audio-seconds per second of `log_mel` and of the peer on chunks of one length: medians over interleaved repetitions."""
    chunks = [sound(duration_s, seed) for seed in range(round(AUDIO_S_PER_REPETITION / duration_s))]
    functions = (log_mel, peer)
    times: tuple[list[float], list[float]] = ([], [])
    for function in functions:
        seconds_taken(function, chunks)  # filters, plans, threads
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
        f"audio-seconds a second, medians of {REPETITIONS} repetitions, torch with {torch.get_num_threads()} threads"
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
