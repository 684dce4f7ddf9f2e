"""Measures how long one host of a pod takes to prepare its part of a batch.

The part is that of `configs/sft_32b.py` on 64 v5p chips: 4 rows of 4 096 tokens, each with 60 s of
sound in three 20 s FLAC clips. A step takes such a pod about `STEP_S` seconds. Clips are decoded,
their log-mels computed, texts tokenised, rows packed and collated.
"""

import io
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.audio.lengths import MEL_FRAMES_PER_SECOND
from stepaudio_jax.config import DataConfig, ModelConfig, SourceConfig
from stepaudio_jax.data import batches
from stepaudio_jax.data.containers.array_record import write_array_record
from stepaudio_jax.text import Tokenizer

ROWS, TOKENS, CLIPS_A_ROW, CLIP_S = 4, 4096, 3, 20.0
RECORDS = 60
STEP_S = 2.8
BAR = 0.06
_BATCHES = 20
_WORDS = (
    *("the", "speaker", "sounds", "calm", "and", "slow", "then"),
    *("a", "door", "falls", "shut", "somewhere", "behind", "her"),
)


def dialogues(tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Yields dialogues of one clip each, three of which fill a row."""
    rng = np.random.default_rng(0)
    text_tokens = TOKENS // CLIPS_A_ROW - round(12.5 * CLIP_S) - 64
    for _ in range(RECORDS):
        time_s = np.arange(int(CLIP_S * SAMPLE_RATE)) / SAMPLE_RATE
        wave = 0.3 * np.sin(2 * np.pi * (200 + 20 * rng.random() * time_s) * time_s)
        wave += rng.normal(0, 0.02, time_s.size)
        clip = io.BytesIO()
        soundfile.write(clip, wave, SAMPLE_RATE, format="FLAC")
        words = [_WORDS[i] for i in rng.integers(len(_WORDS), size=text_tokens)]
        while len(tokenizer.encode(" ".join(words))) > text_tokens:
            words = words[: int(0.97 * len(words))]
        user_turn = {"role": "user", "content": [{"type": "audio", "audio": clip.getvalue()}]}
        yield {"messages": [user_turn, {"role": "assistant", "content": " ".join(words)}]}


def print_host_share(*, threads: int, workers: int = 0, tokenizer: Tokenizer | None = None) -> None:
    """Prints the seconds that a batch takes from an ArrayRecord file, and their share of a step's.

    Args:
        threads, workers: see `DataConfig`.
        tokenizer: None for one that tokenises text byte by byte.
    """
    tokenizer = tokenizer or Tokenizer.byte_level()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "dialogues.array_record"
        write_array_record(path, dialogues(tokenizer))
        data = DataConfig(
            sources=(SourceConfig(path=str(path)),),
            batch_size=ROWS,
            seq_len=TOKENS,
            audio_chunks_per_seq=CLIPS_A_ROW,
            threads=threads,
            workers=workers,
        )
        prepared = batches(data, tokenizer, ModelConfig.presets()["r1_32b"], seed=0)
        times, filled, sound = [], [], []
        for _ in range(data.prefetch_batches + 2):
            next(prepared)  # batches that were prefetched
        for _ in range(_BATCHES):
            start = time.perf_counter()
            batch = next(prepared)
            times.append(time.perf_counter() - start)
            filled.append(float(np.mean(batch.segment_ids > 0)))
            sound.append(float(batch.mel_lengths.sum()) / MEL_FRAMES_PER_SECOND / ROWS)
        prepared.close()
    # Batches come in bursts, so that the median of the waiting times would be too small.
    mean_s = statistics.fmean(times)
    where = f"{workers} workers of {threads} threads" if workers else f"{threads} threads"
    print(
        f"one host's share of a 32 B step, {ROWS} rows ({100 * statistics.fmean(filled):.0f} %"
        f" full) with {statistics.fmean(sound):.0f} s of sound each, from ArrayRecord on {where}:"
        f" {mean_s:.3f} s, {100 * mean_s / STEP_S:.1f} % of {STEP_S} s (bar: {100 * BAR:.0f} %)"
    )
