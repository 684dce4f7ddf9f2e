"""Pairs that only hearing tells apart, and a configuration that learns them by DPO."""

import itertools
import pathlib
import textwrap

import numpy as np
import soundfile

from tests.end_to_end.tones import PITCHES, TINY_MODEL, write_lines, write_tone

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
        write_tone(folder / f"{number}.wav", hertz, 0.3 + 0.01 * (number % 9), rng)
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
        TINY_MODEL
        + textwrap.dedent(
            f"""


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
