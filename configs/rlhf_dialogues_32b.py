r"""RLHF of Step-Audio-R1.5 (32 B) on dialogues of three turns with a simulated user that speaks.

python -m launch.plan  --config=configs/rlhf_dialogues_32b.py --topology=v5p:4x4x8
python -m launch.train --config=configs/rlhf_dialogues_32b.py --config.initial.model=DIR \
  --config.stages.rlhf.data.sources.0.path=FILE \
  --config.stages.rlhf.objective.rollout.simulated_user.url=http://USER/v1 \
  --config.stages.rlhf.objective.rollout.simulated_user.model=NAME \
  --config.stages.rlhf.objective.judge.url=http://JUDGE/v1 \
  --config.stages.rlhf.objective.judge.model=NAME

A record is the beginning of a dialogue, with the `scenario` of its user. The judge compares whole
dialogues, each with the others of its prompt. espeak-ng speaks the user's words, for want of a
better voice.

Machine: a v5p slice of 128 chips. Not run on TPUs yet: the plan gives memory per chip.
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
    SimulatedUserConfig,
    SourceConfig,
    StageConfig,
)


def get_config() -> Config:
    return Config(
        run_dir="runs/rlhf_dialogues_32b",
        model=ModelConfig.presets()["r1_32b"],
        stages=(
            StageConfig(
                name="rlhf",
                steps=500,
                # A row has a whole dialogue, with the record's clips and the user's.
                data=DataConfig(
                    sources=(SourceConfig(path="data/scenarios.jsonl"),),
                    batch_size=128,
                    seq_len=4096,
                    audio_chunks_per_seq=4,
                ),
                optimizer=OptimizerConfig(
                    learning_rate=1e-6, decay="constant", warmup_steps=10, weight_decay=0.0
                ),
                objective=PolicyGradient(
                    rollout=RolloutConfig(
                        num_prompts=64,
                        num_generations=8,
                        max_new_tokens=1024,
                        slots=256,
                        tensor=8,
                        simulated_user=SimulatedUserConfig(
                            url="http://localhost:8001/v1",
                            model="user",
                            turns=3,
                            speak=("espeak-ng", "--stdin", "--stdout"),
                        ),
                    ),
                    rewards=(
                        RewardConfig(
                            judge_weight=1.0,
                            format_weight=0.2,
                            compare_with="group",
                            group_opponents=2,
                        ),
                    ),
                    judge=JudgeConfig(url="http://localhost:8000/v1", model="judge"),
                    kl_coef=0.01,
                ),
            ),
        ),
        compute=ComputeConfig(residual_dtype="float32", loss_chunks=8),
        checkpoint=CheckpointConfig(every_steps=10),
    )
