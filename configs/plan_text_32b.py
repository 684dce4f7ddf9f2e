r"""The text decoder of the 32 B model alone, for comparison with the plans of other trainers.

python -m launch.plan --config=configs/plan_text_32b.py --effort=full --topology=v5p:4x4x4 \
  --config.stages.text.data.batch_size=64

Machine: none, plans compile on a CPU. With one row of 4096 tokens a chip, libtpu 0.0.42.1 gives:

    topology    batch_size   peak a chip   expected step   MFU
    v5p:4x4x4           64      17.55 GB           3.64 s   49 %
    v6e:16x16          256      10.19 GB           2.88 s   31 %
    v5e:16x16          256      10.15 GB           7.99 s   52 %
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
        compute=ComputeConfig(loss_chunks=8),
    )
