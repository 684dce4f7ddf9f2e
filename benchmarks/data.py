"""Measures how long one host of a pod takes to prepare its part of a batch, on all of its cores.

    python -m benchmarks.data [--tokenizer DIR]

The part is that of `configs/sft_32b.py` on 64 v5p chips: 4 rows of 4 096 tokens, each with 60 s of
sound in three 20 s FLAC clips. A step takes such a pod about `STEP_S` seconds. Clips are decoded,
their log-mels computed, texts tokenised, rows packed and collated.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
import soundfile

from stepaudio_jax.audio.lengths import MEL_FRAMES_PER_SECOND
from stepaudio_jax.config import DataConfig, ModelConfig, SourceConfig
from stepaudio_jax.data import batches
from stepaudio_jax.text import Tokenizer

ROWS, TOKENS, CLIPS_A_ROW, CLIP_S = 4, 4096, 3, 20.0
RECORDS = 60
STEP_S = 2.8
_WORDS = (
    "the",
    "speaker",
    "sounds",
    "calm",
    "and",
    "slow",
    "then",
    "a",
    "door",
    "falls",
    "shut",
    "somewhere",
    "behind",
    "her",
)


def write_dialogues(folder: pathlib.Path, tokenizer: Tokenizer) -> pathlib.Path:
    """Writes dialogues of one clip each, three of which fill a row; returns their file."""
    rng = np.random.default_rng(0)
    text_tokens = TOKENS // CLIPS_A_ROW - round(12.5 * CLIP_S) - 64
    lines = []
    for number in range(RECORDS):
        time_s = np.arange(int(CLIP_S * 16_000)) / 16_000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 20 * rng.random() * time_s) * time_s) + rng.normal(
            0, 0.02, time_s.size
        )
        soundfile.write(folder / f"{number}.flac", wave, 16_000)
        words = [_WORDS[i] for i in rng.integers(len(_WORDS), size=text_tokens)]
        while len(tokenizer.encode(" ".join(words))) > text_tokens:
            words = words[: int(0.97 * len(words))]
        user_turn = {"role": "user", "content": [{"type": "audio", "audio": f"{number}.flac"}]}
        lines.append(
            json.dumps({"messages": [user_turn, {"role": "assistant", "content": " ".join(words)}]})
        )
    path = folder / "dialogues.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Prints the seconds that a batch takes, also as a part of a step's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokenizer",
        help="a folder with Qwen2's vocabulary; without it, text is tokenised byte by byte",
    )
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    tokenizer = (
        Tokenizer.from_folder(options.tokenizer) if options.tokenizer else Tokenizer.byte_level()
    )
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        source = SourceConfig(path=str(write_dialogues(pathlib.Path(folder), tokenizer)))
        data = DataConfig(
            sources=(source,),
            batch_size=ROWS,
            seq_len=TOKENS,
            audio_chunks_per_seq=CLIPS_A_ROW,
            threads=threads,
        )
        prepared = batches(data, tokenizer, ModelConfig.presets()["r1_32b"], seed=0)
        times, filled, sound = [], [], []
        for _ in range(data.prefetch_batches + 2):
            next(prepared)  # batches that were prefetched
        for _ in range(options.batches):
            start = time.perf_counter()
            batch = next(prepared)
            times.append(time.perf_counter() - start)
            filled.append(float(np.mean(batch.segment_ids > 0)))
            sound.append(float(batch.mel_lengths.sum()) / MEL_FRAMES_PER_SECOND / ROWS)
        prepared.close()
    # Batches come in bursts, so that the median of the waiting times would be too small.
    mean_s = statistics.fmean(times)
    print(
        f"a batch of {ROWS} rows, {100 * statistics.fmean(filled):.0f} % full, "
        f"{statistics.fmean(sound):.0f} s of sound a row"
    )
    print(
        f"prepared in {mean_s:.3f} s on {threads} threads: "
        f"{100 * mean_s / STEP_S:.0f} % of a step of {STEP_S} s (bar: 25 %)"
    )


if __name__ == "__main__":
    main()
