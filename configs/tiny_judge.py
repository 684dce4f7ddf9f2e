"""The judge of the demonstration of RLHF (`make tiny-judge`): the quickstart's model learns the rule's verdicts, as text."""

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
        run_dir="runs/tiny_judge",
        initial=InitialWeights(model="runs/quickstart/train/model"),
        stages=(
            StageConfig(
                name="judge",
                steps=800,
                data=DataConfig(
                    sources=(SourceConfig(path="runs/quickstart_rlhf/data/judge.jsonl"),),
                    rows=8,
                    tokens_per_row=1024,
                    chunks_per_row=0,
                ),
                optimizer=OptimizerConfig(
                    name="muon",
                    learning_rate=1e-3,
                    muon_learning_rate=0.01,
                    warmup_steps=10,
                    decay="linear",
                    final_learning_rate_fraction=0.02,
                    weight_decay=0.01,
                ),
            ),
        ),
        compute=ComputeConfig(dtype="float32", remat="none", unroll=0),
        checkpoint=CheckpointConfig(every_steps=100),
    )
