"""A corpus of tones and sums, and a configuration that learns it in half a minute."""

import json
import pathlib
import textwrap

import numpy as np
import soundfile

PITCHES = {300: "low", 900: "middle", 2500: "high"}
SUMS = [(a, 1) for a in range(4)]
TINY_MODEL = """
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
"""  # how a configuration of these tests begins


def tone_question(number: int, hertz: int) -> dict:
    parts = [{"type": "audio", "audio": f"{number}.wav"}, {"type": "text", "text": "Pitch?"}]
    answer = {"role": "assistant", "reasoning_content": f"{hertz} Hz", "content": PITCHES[hertz]}
    return {"messages": [{"role": "user", "content": parts}, answer]}


def sum_question(a: int, b: int) -> dict:
    return {
        "messages": [
            {"role": "user", "content": f"{a}+{b}?"},
            {"role": "assistant", "content": str(a + b)},
        ]
    }


def write_corpus(folder: pathlib.Path) -> None:
    """Writes tones.jsonl (15 noisy clips of 0.3 to 0.44 s), sums.jsonl and held_out.jsonl.

    The held-out clips have other lengths and phases.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    tones = []
    for number in range(21):
        hertz = list(PITCHES)[number % 3]
        write_tone(folder / f"{number}.wav", hertz, 0.3 + 0.01 * (number % 15), rng)
        tones.append(tone_question(number, hertz))
    write_lines(folder / "tones.jsonl", tones[:15])
    write_lines(folder / "held_out.jsonl", tones[15:])
    write_lines(folder / "sums.jsonl", [sum_question(a, b) for a, b in SUMS])


def write_tone(path: pathlib.Path, hertz: int, seconds: float, rng: np.random.Generator) -> None:
    """Writes a tone of random phase under some noise."""
    time = np.arange(int(16_000 * seconds)) / 16_000 + rng.uniform()
    wave = 0.3 * np.sin(2 * np.pi * hertz * time) + 0.01 * rng.normal(size=time.size)
    soundfile.write(path, wave.astype(np.float32), 16_000)


def write_lines(path: pathlib.Path, lines: list[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_config(path: pathlib.Path, corpus: pathlib.Path) -> pathlib.Path:
    """Writes a configuration: mid-training of all parts, then SFT with a frozen encoder."""
    path.write_text(
        TINY_MODEL
        + textwrap.dedent(
            f"""
            SHAPE = {{
                "batch_size": 4,
                "seq_len": 192,
                "audio_chunks_per_seq": 4,
                "mel_frames_per_chunk": 64,
                "packing_bins_per_seq": 2,
            }}
            DATA = DataConfig(
                sources=(
                    SourceConfig(path={str(corpus / "tones.jsonl")!r}),
                    SourceConfig(path={str(corpus / "sums.jsonl")!r}),
                ),
                augmentation=AugmentationConfig(noise_probability=0.5, gain_db=(-3.0, 3.0)),
                **SHAPE,
            )
            HELD_OUT = DataConfig(
                sources=(SourceConfig(path={str(corpus / "held_out.jsonl")!r}),), **SHAPE
            )
            OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=6, weight_decay=0.0)


            def get_config():
                return Config(
                    run_dir="none",
                    stages=(
                        StageConfig(
                            name="mid",
                            steps=45,
                            data=DATA,
                            optimizer=OPTIMIZER,
                            trainable=("encoder", "adaptor", "decoder"),
                        ),
                        StageConfig(
                            name="sft",
                            steps=35,
                            data=DATA,
                            optimizer=OPTIMIZER,
                            evaluation=EvaluationConfig(data=HELD_OUT, every_steps=10, batches=2),
                        ),
                    ),
                    model=MODEL,
                    tokenizer="bytes",
                    compute=ComputeConfig(dtype="float32", remat="none", unroll=0),
                    checkpoint=CheckpointConfig(every_steps=10),
                    log_every_steps=1,
                )
            """
        ).lstrip(),
        encoding="utf-8",
    )
    return path
