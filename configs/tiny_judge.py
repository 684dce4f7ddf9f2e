"""The judge of the demonstration of RLHF: the quickstart's model learns a rule's verdicts, as text.

make tiny-judge

Machine: two CPU cores. Result: `models/tiny_judge`; on 200 held-out pairs it prefers the better
reply in 100.0 %, prefers a position in 0.0 %, and abstains in 0.5 %.
"""

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


def stage(name: str) -> StageConfig:
    return StageConfig(
        name=name,
        steps=1000,
        data=DataConfig(
            sources=(SourceConfig(path="runs/quickstart_rlhf/data/judge.jsonl"),),
            batch_size=8,
            seq_len=1024,
            audio_chunks_per_seq=0,
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
    )


def get_config() -> Config:
    return Config(
        run_dir="runs/tiny_judge",
        initial=InitialWeights(model="runs/quickstart/train/model"),
        # Two stages, each from a high learning rate: after one stage the judge still confuses the
        # two replies.
        stages=(stage("judge"), stage("judge_again")),
        compute=ComputeConfig(dtype="float32", remat="none", unroll=0),
        checkpoint=CheckpointConfig(every_steps=100),
    )
