r"""Audio-centric mid-training, then cold-start SFT, of a 32 B model in one run.

python -m launch.train --config=configs/midtrain_32b.py --config.initial.decoder=DIR \
  --config.initial.encoder=DIR

The decoder is Qwen2.5-32B, the encoder Qwen2-Audio's, the adaptor new: the first stage trains it
alone.

Machine: a v5p slice of 256 chips. Not run on TPUs yet: `python -m launch.plan
--config=configs/midtrain_32b.py --topology=v5p:4x8x8 --stage=midtrain` gives memory per chip and
the expected time of a step.
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
    shape = {"batch_size": 256, "seq_len": 8192, "audio_chunks_per_seq": 6}
    mixture = (
        SourceConfig(path="data/midtrain/speech/*.jsonl", weight=4.0),
        SourceConfig(path="data/midtrain/sound/*.jsonl", weight=2.0),
        SourceConfig(path="data/midtrain/text/*.jsonl", weight=4.0),
    )
    dialogues = (
        SourceConfig(path="data/sft/audio/*.jsonl"),
        SourceConfig(path="data/sft/text/*.jsonl"),
    )
    return Config(
        run_dir="runs/midtrain_32b",
        model=ModelConfig.presets()["r1_32b"],
        stages=(
            StageConfig(
                name="adaptor",
                steps=2000,
                data=DataConfig(sources=mixture[:2], **shape),
                trainable=("adaptor",),
                optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200),
            ),
            StageConfig(
                name="midtrain",
                steps=20000,
                data=DataConfig(sources=mixture, **shape),
                optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=500),
            ),
            StageConfig(
                name="sft",
                steps=2000,
                data=DataConfig(sources=dialogues, **shape),
                optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=100),
            ),
        ),
        compute=ComputeConfig(loss_chunks=8),
        checkpoint=CheckpointConfig(every_steps=500),
    )
