"""The quickstart: cold-start SFT of the small base model on spoken dialogues, encoder frozen.

make quickstart

Machine: two CPU cores. Result: `runs/quickstart/report.html`, with the accuracy before and after
training, on held-out voices and phrases, and with the sound silenced.
"""

from stepaudio_jax.config import (
    AugmentationConfig,
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    InitialWeights,
    OptimizerConfig,
    SourceConfig,
    StageConfig,
)

CORPUS = "runs/corpus/quickstart"


def sources(split: str) -> tuple[SourceConfig, ...]:
    return (
        SourceConfig(path=f"{CORPUS}/{split}/audio_qa.jsonl", weight=2.0),
        SourceConfig(path=f"{CORPUS}/{split}/two_turn.jsonl"),
        SourceConfig(path=f"{CORPUS}/{split}/text.jsonl", weight=0.5),
    )


def get_config() -> Config:
    shape = {
        "batch_size": 8,
        "seq_len": 960,
        "audio_chunks_per_seq": 7,
        "mel_frames_per_chunk": 224,
    }
    return Config(
        run_dir="runs/quickstart/train",
        initial=InitialWeights(model="models/tiny_base"),
        stages=(
            StageConfig(
                name="sft",
                steps=240,
                data=DataConfig(
                    sources=sources("train"),
                    augmentation=AugmentationConfig(
                        silence_probability=0.06, noise_probability=0.3, gain_db=(-6.0, 6.0)
                    ),
                    **shape,
                ),
                evaluation=EvaluationConfig(
                    data=DataConfig(sources=sources("validation"), **shape), every_steps=120
                ),
                optimizer=OptimizerConfig(
                    name="muon",
                    learning_rate=8e-4,
                    muon_learning_rate=0.008,
                    warmup_steps=20,
                    decay="linear",
                    final_learning_rate_fraction=0.02,
                    weight_decay=0.01,
                ),
            ),
        ),
        compute=ComputeConfig(dtype="float32", remat="none", unroll=0),
        checkpoint=CheckpointConfig(every_steps=120),
    )
