"""Small corpora of spoken and written dialogues, made on the spot."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile

from stepaudio_jax.config import DataConfig, ModelConfig, SourceConfig
from stepaudio_jax.text import Tokenizer

TOKENIZER = Tokenizer.byte_level()
MODEL = ModelConfig.presets()["tiny"]


def write_clip(path: pathlib.Path, duration_s: float, seed: int) -> pathlib.Path:
    """A clip of noise, loud enough to have a log-mel of its own."""
    path.parent.mkdir(exist_ok=True)
    samples = (
        np.random.default_rng(seed)
        .uniform(-0.5, 0.5, round(duration_s * 16_000))
        .astype(np.float32)
    )
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    return path


def write_records(path: pathlib.Path, records: Sequence[Any]) -> pathlib.Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def text_record(number: int, words: int) -> dict[str, Any]:
    """A question of so many words, and an answer that names the record."""
    return {
        "id": f"text{number}",
        "messages": [
            {"role": "user", "content": "word " * words},
            {
                "role": "assistant",
                "reasoning_content": f"thought {number}",
                "content": f"reply {number}",
            },
        ],
    }


def audio_record(number: int, *clips: str) -> dict[str, Any]:
    """A question about each clip in turn (so one view a clip), each answered."""
    messages: list[dict[str, Any]] = []
    for turn, clip in enumerate(clips):
        messages += [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"hear {turn}"},
                    {"type": "audio", "audio": clip},
                ],
            },
            {
                "role": "assistant",
                "reasoning_content": f"heard {number}.{turn}",
                "content": f"reply {number}.{turn}",
            },
        ]
    return {"id": f"audio{number}", "messages": messages}


def write_spoken(folder: pathlib.Path, records: int = 24) -> pathlib.Path:
    """Dialogues about clips of 0.1 to 1.5 s: one clip, two, the same one twice, three turns."""
    generator = np.random.default_rng(7)
    for clip in range(9):
        write_clip(folder / f"clips/{clip}.wav", generator.uniform(0.1, 1.5), seed=clip)
    made = []
    for number in range(records):
        first, second, third = (
            f"clips/{clip}.wav" for clip in generator.choice(9, 3, replace=False)
        )
        made.append(
            audio_record(
                number,
                *[(first,), (first, second), (first, first), (first, second, third)][number % 4],
            )
        )
    return write_records(folder / "spoken.jsonl", made)


def write_written(folder: pathlib.Path, records: int = 40) -> pathlib.Path:
    """Dialogues in text, of all lengths."""
    lengths = np.random.default_rng(3).integers(1, 60, records)
    return write_records(
        folder / "written.jsonl", [text_record(n, int(words)) for n, words in enumerate(lengths)]
    )


def settings(*sources: pathlib.Path | SourceConfig, **changes: Any) -> DataConfig:
    """A small batch: 4 rows of 512 tokens and 3 chunks of at most 1.6 s."""
    small = {
        "batch_size": 4,
        "seq_len": 512,
        "audio_chunks_per_seq": 3,
        "mel_frames_per_chunk": 160,
        "packing_bins_per_seq": 2,
    }
    given = tuple(
        source if isinstance(source, SourceConfig) else SourceConfig(path=str(source))
        for source in sources
    )
    return DataConfig(sources=given, **{**small, **changes})
