r"""RLHF of Step-Audio-R1.5 (32 B) in one stage, preference and rubric rewards together.

python -m launch.plan  --config=configs/rlhf_32b.py --topology=v5p:4x4x8
python -m launch.plan  --config=configs/rlhf_32b.py --topology=v5p:2x4x4 \
  --config.stages.rlhf.trainable='("adaptor",)' --config.stages.rlhf.lora.rank=32 \
  --config.stages.rlhf.data.batch_size=32
python -m launch.train --config=configs/rlhf_32b.py --config.initial.model=DIR \
  --config.stages.rlhf.data.sources.0.path=FILE \
  --config.stages.rlhf.objective.judge.url=http://JUDGE/v1 \
  --config.stages.rlhf.objective.judge.model=NAME

Machine: a v5p slice of 128 chips; with LoRA (the second plan) one of 32. Not run on TPUs yet:
the plan gives memory per chip.
"""

from stepaudio_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    JudgeConfig,
    ModelConfig,
    OptimizerConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SourceConfig,
    StageConfig,
)


def get_config() -> Config:
    return Config(
        run_dir="runs/rlhf_32b",
        model=ModelConfig.presets()["r1_32b"],
        stages=(
            StageConfig(
                name="rlhf",
                steps=500,
                # A row has a prompt with up to 75 s of audio and its reply, or several short ones.
                data=DataConfig(
                    sources=(SourceConfig(path="data/preferences.jsonl"),),
                    batch_size=128,
                    seq_len=4096,
                    audio_chunks_per_seq=3,
                ),
                optimizer=OptimizerConfig(
                    learning_rate=1e-6, decay="constant", warmup_steps=10, weight_decay=0.0
                ),
                objective=PolicyGradient(
                    rollout=RolloutConfig(
                        num_prompts=64, num_generations=16, max_new_tokens=2048, slots=256, tensor=8
                    ),
                    rewards=(RewardConfig(judge_weight=1.0, format_weight=0.2),),
                    judge=JudgeConfig(url="http://localhost:8000/v1", model="judge"),
                    kl_coef=0.01,
                ),
            ),
        ),
        compute=ComputeConfig(residual_dtype="float32", loss_chunks=8),
        checkpoint=CheckpointConfig(every_steps=10),
    )
