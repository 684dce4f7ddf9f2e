"""The demonstration of RLHF: preference and rubric judged together in one stage.

make quickstart-rlhf    (one seed)
make trap               (eight seeds, and the other arms)

The other arms are this run with other rewards, prompts or objectives, see
`examples.reward_trap.arms`.

Machine: two CPU cores. Result: the row "joint, criteria" of docs/trap.md.
"""

from stepaudio_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    InitialWeights,
    JudgeConfig,
    OptimizerConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SourceConfig,
    StageConfig,
)


def get_config() -> Config:
    return Config(
        run_dir="runs/quickstart_rlhf/joint",
        initial=InitialWeights(model="runs/quickstart_rlhf/style/model"),
        stages=(
            StageConfig(
                name="joint",
                steps=40,
                data=DataConfig(
                    sources=(
                        SourceConfig(path="runs/quickstart_rlhf/data/preference.jsonl"),
                        # More weight: there are two requests, and both oppose the preference.
                        SourceConfig(path="runs/quickstart_rlhf/data/rubric.jsonl", weight=2.0),
                    ),
                    batch_size=8,
                    seq_len=256,
                    audio_chunks_per_seq=4,
                    mel_frames_per_chunk=224,
                ),
                optimizer=OptimizerConfig(
                    name="muon",
                    learning_rate=4e-4,
                    muon_learning_rate=0.004,
                    decay="linear",
                    final_learning_rate_fraction=0.1,
                    weight_decay=0.0,
                ),
                objective=PolicyGradient(
                    rollout=RolloutConfig(
                        num_prompts=16, num_generations=8, max_new_tokens=48, slots=64
                    ),
                    rewards=(RewardConfig(judge_weight=1.0),),
                    judge=JudgeConfig(
                        folder="models/tiny_judge",
                        prompt="configs/tiny_judge.txt",
                        preference_levels=3,
                        max_tokens=224,
                        slots=64,
                    ),
                    # Rubric rewards differ by less than preferences do: GRPO scales both alike.
                    advantage_estimator="grpo",
                    kl_coef=0.15,
                ),
            ),
        ),
        # Layers are not unrolled: in a run this short, compiling would take longer than it saves.
        compute=ComputeConfig(dtype="float32", remat="none"),
        checkpoint=CheckpointConfig(every_steps=20),
    )
