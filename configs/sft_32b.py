r"""Cold-start SFT of Step-Audio-R1.5 (32 B), encoder frozen.

python -m launch.plan  --config=configs/sft_32b.py --topology=v5p:4x4x4
python -m launch.train --config=configs/sft_32b.py --config.initial.model=DIR \
  --config.stages.sft.data.sources.0.path=FILE

Machine: a v5p slice of 64 chips (`v5p:4x4x4`, `v5p-128`). Not run on TPUs yet: the plan gives
memory per chip and the expected time of a step.
"""

from stepaudio_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    SourceConfig,
    StageConfig,
)


def get_config() -> Config:
    return Config(
        run_dir="runs/sft_32b",
        model=ModelConfig.presets()["r1_32b"],
        stages=(
            StageConfig(
                name="sft",
                steps=2000,
                # One row of 4096 tokens per chip, with up to 75 s of audio.
                data=DataConfig(
                    sources=(SourceConfig(path="data/dialogues.jsonl"),),
                    batch_size=64,
                    seq_len=4096,
                    audio_chunks_per_seq=3,
                ),
                optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=100),
            ),
        ),
        compute=ComputeConfig(loss_chunks=8),
        checkpoint=CheckpointConfig(every_steps=200),
    )
