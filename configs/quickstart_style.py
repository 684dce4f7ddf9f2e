"""The start model of the reward trap: it answers in random styles, among which rewards then choose.

make quickstart-rlhf    (trains it first)

Machine: two CPU cores. Result: `runs/quickstart_rlhf/style/model`, the row "start" of docs/trap.md.
"""

from stepaudio_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    InitialWeights,
    OptimizerConfig,
    SourceConfig,
    StageConfig,
)


def get_config() -> Config:
    return Config(
        run_dir="runs/quickstart_rlhf/style",
        initial=InitialWeights(model="runs/quickstart/train/model"),
        stages=(
            StageConfig(
                name="style",
                steps=200,
                data=DataConfig(
                    sources=(SourceConfig(path="runs/quickstart_rlhf/data/style.jsonl"),),
                    batch_size=8,
                    seq_len=480,
                    audio_chunks_per_seq=7,
                    mel_frames_per_chunk=224,
                ),
                optimizer=OptimizerConfig(
                    name="muon",
                    learning_rate=8e-4,
                    muon_learning_rate=0.008,
                    warmup_steps=10,
                    decay="linear",
                    final_learning_rate_fraction=0.05,
                    weight_decay=0.01,
                ),
            ),
        ),
        compute=ComputeConfig(dtype="float32", remat="none", unroll=0),
        checkpoint=CheckpointConfig(every_steps=0),
    )
