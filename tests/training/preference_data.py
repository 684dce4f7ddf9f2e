"""Preference records with a tone, and batches of them."""

import dataclasses
import json
import pathlib

import numpy as np
import soundfile

from stepaudio_jax.config import (
    AdaptorConfig,
    Config,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    Preference,
    SourceConfig,
    build,
)
from stepaudio_jax.data import Preprocessor, collate, open_sources
from stepaudio_jax.data.batch import Batch
from stepaudio_jax.data.preference_pairs import PairFormat
from stepaudio_jax.data.record import Visit
from stepaudio_jax.text import Tokenizer

MODEL = ModelConfig(
    encoder=EncoderConfig(hidden=32, heads=2, layers=1, positions=64),
    adaptor=AdaptorConfig(ffn=24),
    decoder=DecoderConfig(
        vocab_size=290, hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, head_dim=16
    ),
)
TOKENIZER = Tokenizer.byte_level()
SIZES = {"seq_len": 320, "audio_chunks_per_seq": 2, "mel_frames_per_chunk": 64}


def user(text: str, clip: str | None = None) -> dict:
    parts = [{"type": "text", "text": text}]
    return {"role": "user", "content": [{"type": "audio", "audio": clip}, *parts] if clip else text}


def records() -> list[dict]:
    """Returns pairs with and without sound, reasoning, earlier turns, margins and annotations."""
    think = {"role": "assistant", "reasoning_content": "300 Hz", "content": "low"}
    return [
        {"prompt": [user("Pitch?", "a.wav")], "chosen": [think], "rejected": "a high one"},
        {
            "prompt": [
                user("Hi", "b.wav"),
                {"role": "assistant", "content": "Hello."},
                user("Pitch?"),
            ],
            "chosen": "middle",
            "rejected": "low, I guess",
            "margin": 3,
        },
        {"prompt": "1+1?", "chosen": "2", "rejected": "three"},
        {"prompt": "2+1?", "chosen": "3", "rejected": "It is 3.", "margin": 0},
        {
            "prompt": [user("And?", "a.wav")],
            "chosen": "yes",
            "rejected": "no",
            "annotations": [
                {"annotator": "x", "verdict": -2},
                {"annotator": "y", "verdict": -1},
                {"annotator": "z", "verdict": 1},
                {"annotator": "w", "verdict": None},
            ],
        },
        {"prompt": "3+1?", "chosen": "four", "rejected": "5"},
    ]


def write_records(folder: pathlib.Path, rows: list[dict] | None = None) -> pathlib.Path:
    """Writes pairs.jsonl and its clips."""
    rng = np.random.default_rng(0)
    for name, seconds in (("a.wav", 0.3), ("b.wav", 0.41)):
        wave = 0.1 * rng.normal(size=int(16_000 * seconds))
        soundfile.write(folder / name, wave.astype(np.float32), 16_000)
    path = folder / "pairs.jsonl"
    lines = [json.dumps(row) + "\n" for row in (records() if rows is None else rows)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def preprocessor(
    path: pathlib.Path, pair_format: PairFormat | None, **settings: object
) -> Preprocessor:
    config = DataConfig(sources=(SourceConfig(path=str(path)),), **{**SIZES, **settings})
    sources = open_sources(config.sources)
    return Preprocessor(config, TOKENIZER, MODEL, None, sources, seed=0, pair_format=pair_format)


def pair_batch(path: pathlib.Path, pair_format: PairFormat, layout: list[list[int]]) -> Batch:
    """Returns a batch whose rows hold the records with these numbers."""
    prepare = preprocessor(path, pair_format)
    rows = [
        [example for number in row for example in prepare(Visit(0, number, 0)).examples]
        for row in layout
    ]
    return collate(rows, prepare.shape)


def run_config(objective: Preference, **stage: object) -> Config:
    """Returns the configuration of a run of one stage, without data."""
    settings = {
        "name": "preferences",
        "steps": 10,
        "data": {"sources": [{"path": "unused"}], "batch_size": 4, **SIZES},
        "objective": objective,
        "optimizer": {"decay": "constant", "weight_decay": 0.0, "learning_rate": 1e-3},
        **stage,
    }
    values = {
        "run_dir": "unused",
        "stages": [settings],
        "compute": {"dtype": "float32", "remat": "none", "unroll": 1},
    }
    return dataclasses.replace(build(Config, values), model=MODEL)
