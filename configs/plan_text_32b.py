"""The text decoder of the 32 B model, one sequence of 4096 tokens per chip, to compare plans.

Other trainers publish plans and speeds of text models of this size.

python -m launch.plan --config=configs/plan_text_32b.py --topology=v5p:4x4x4
"""

import dataclasses

from stepaudio_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    SourceConfig,
    StageConfig,
)


def get_config() -> Config:
    released = ModelConfig.presets()["r1_32b"]
    decoder = dataclasses.replace(released.decoder, vocab_size=152064)  # Qwen2.5-32B's
    return Config(
        run_dir="runs/plan_text_32b",
        model=dataclasses.replace(released, decoder=decoder),
        stages=(
            StageConfig(
                name="text",
                steps=1000,
                data=DataConfig(
                    sources=(SourceConfig(path="data/text.jsonl"),),
                    batch_size=1,
                    seq_len=4096,
                    audio_chunks_per_seq=0,
                ),
                trainable=("decoder",),
                optimizer=OptimizerConfig(learning_rate=1e-5),
            ),
        ),
        compute=ComputeConfig(remat="full", loss_chunks=8),
    )
