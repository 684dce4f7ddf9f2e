r"""DPO of Step-Audio-R1.5 (32 B) on preference pairs, all of the decoder or an adapter.

python -m launch.plan  --config=configs/dpo_32b.py --topology=v5p:4x4x4
python -m launch.plan  --config=configs/dpo_32b.py --topology=v6e:2x4 \
  --config.stages.dpo.trainable='()' --config.stages.dpo.lora.rank=32 \
  --config.stages.dpo.data.batch_size=8
python -m launch.train --config=configs/dpo_32b.py --config.initial.model=DIR \
  --config.stages.dpo.data.sources.0.path=FILE

Machine: a v5p slice of 64 chips, or with LoRA (the second plan) a smaller one. Not run on TPUs
yet: the plan gives memory per chip. The reference's log-probabilities are computed once, before the
first step, so that no copy of the model is kept; with LoRA the model without the adapter is the
reference, and costs a forward pass only.
"""

from stepaudio_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Preference,
    SourceConfig,
    StageConfig,
)


def get_config() -> Config:
    return Config(
        run_dir="runs/dpo_32b",
        model=ModelConfig.presets()["r1_32b"],
        stages=(
            StageConfig(
                name="dpo",
                steps=500,
                # A row has several short pairs, or a long one with up to 75 s of audio.
                data=DataConfig(
                    sources=(SourceConfig(path="data/preferences.jsonl"),),
                    batch_size=64,
                    seq_len=4096,
                    audio_chunks_per_seq=3,
                ),
                objective=Preference(beta=0.1, precompute_reference=True),
                optimizer=OptimizerConfig(
                    learning_rate=5e-7, decay="linear", warmup_steps=50, weight_decay=0.0
                ),
            ),
        ),
        compute=ComputeConfig(loss_chunks=8),
        checkpoint=CheckpointConfig(every_steps=100),
    )
