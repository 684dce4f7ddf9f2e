"""Pairs that only hearing tells apart, and a configuration that learns them by DPO."""

import itertools
import pathlib
import textwrap

import numpy as np
import soundfile

from tests.end_to_end.tones import PITCHES, write_lines

CLIPS, HELD_OUT = 12, 6


def write_pairs(folder: pathlib.Path) -> None:
    """Writes pairs.jsonl, held_out.jsonl and silent.jsonl: a tone's right name and a wrong one.

    The silent clips are as long as each other, and each two names occur in both orders: who does
    not hear is right in half of the pairs.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    files: dict[str, list[dict]] = {"pairs": [], "held_out": [], "silent": []}
    soundfile.write(folder / "silence.wav", np.zeros(5600, np.float32), 16_000)
    for number in range(CLIPS + HELD_OUT):
        hertz = list(PITCHES)[number % 3]
        time = np.arange(int(16_000 * (0.3 + 0.01 * (number % 9)))) / 16_000 + rng.uniform()
        wave = 0.3 * np.sin(2 * np.pi * hertz * time) + 0.01 * rng.normal(size=time.size)
        soundfile.write(folder / f"{number}.wav", wave.astype(np.float32), 16_000)
        name = "pairs" if number < CLIPS else "held_out"
        files[name] += pairs(f"{number}.wav", PITCHES[hertz])
    for pitch in PITCHES.values():
        files["silent"] += pairs("silence.wav", pitch)
    for name, lines in files.items():
        write_lines(folder / f"{name}.jsonl", lines)


def pairs(clip: str, pitch: str) -> list[dict]:
    prompt = [{"role": "user", "content": [{"type": "audio", "audio": clip}]}]
    return [
        {"prompt": prompt, "chosen": right, "rejected": wrong}
        for right, wrong in itertools.permutations(PITCHES.values(), 2)
        if right == pitch
    ]


def write_preference_config(path: pathlib.Path, corpus: pathlib.Path) -> pathlib.Path:
    """Writes a configuration: DPO, then one step that measures the policy on silent clips."""
    path.write_text(
        textwrap.dedent(
            f"""
            from stepaudio_jax.config import *

            MODEL = ModelConfig(
                encoder=EncoderConfig(hidden=32, heads=2, layers=1, positions=64),
                adaptor=AdaptorConfig(ffn=32),
                decoder=DecoderConfig(
                    vocab_size=290,
                    hidden=32,
                    ffn=64,
                    layers=1,
                    heads=2,
                    kv_heads=1,
                    head_dim=16,
                    max_positions=256,
                ),
            )


            def data(name):
                return DataConfig(
                    sources=(SourceConfig(path=f"{corpus}/{{name}}.jsonl"),),
                    batch_size=4,
                    seq_len=192,
                    audio_chunks_per_seq=3,
                    mel_frames_per_chunk=64,
                    packing_bins_per_seq=2,
                )


            def get_config():
                optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=4, weight_decay=0.0)
                parts = ("encoder", "adaptor", "decoder")
                return Config(
                    run_dir="none",
                    stages=(
                        StageConfig(
                            name="dpo",
                            steps=40,
                            data=data("pairs"),
                            objective=Preference(beta=0.5),
                            optimizer=optimizer,
                            trainable=parts,
                            evaluation=EvaluationConfig(
                                data=data("held_out"), every_steps=20, batches=2
                            ),
                        ),
                        StageConfig(
                            name="silent",
                            steps=1,
                            data=data("pairs"),
                            objective=Preference(loss="simpo"),  # without the reference of its own
                            optimizer=OptimizerConfig(learning_rate=1e-12),
                            trainable=parts,
                            evaluation=EvaluationConfig(data=data("silent"), batches=2),
                        ),
                    ),
                    model=MODEL,
                    tokenizer="bytes",
                    compute=ComputeConfig(dtype="float32", remat="none", unroll=0),
                    checkpoint=CheckpointConfig(every_steps=10),
                    log_every_steps=1,
                )
            """
        ),
        encoding="utf-8",
    )
    return path
