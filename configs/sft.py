r"""Cold-start SFT of a Step-Audio checkpoint on your own dialogues, encoder frozen.

python -m launch.train --config=configs/sft.py --config.initial.model=DIR \
  --config.stages.sft.data.sources.0.path=FILE

Machine: any that holds the checkpoint; `python -m launch.plan` with the same flags says whether a
TPU slice does. Result: `runs/sft/model` and `metrics.jsonl`.
"""

from stepaudio_jax.config import Config, DataConfig, OptimizerConfig, SourceConfig, StageConfig


def get_config() -> Config:
    return Config(
        run_dir="runs/sft",
        stages=(
            StageConfig(
                name="sft",
                steps=1000,
                data=DataConfig(
                    sources=(SourceConfig(path="data/dialogues.jsonl"),), batch_size=8, seq_len=4096
                ),
                optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=50),
            ),
        ),
    )
