"""DPO on pairs that only hearing tells apart: a voice is lively or subdued, and one reply fits it.

python -m examples.reward_trap.tone --couples 1000 --only-data    (2 000 pairs, by espeak-ng)
python -m launch.train --config=configs/tone_dpo.py

Machine: two CPU cores, 4 minutes. Result (one seed, 200 held-out pairs of voices and words that the
training does not have): the policy prefers the fitting reply in 99.5 % by DPO's reward, and where
every clip is silent in 50.0 % by its log-probability.
"""

from stepaudio_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    InitialWeights,
    OptimizerConfig,
    Preference,
    SourceConfig,
    StageConfig,
)


def get_config() -> Config:
    return Config(
        run_dir="runs/tone/policy",
        initial=InitialWeights(model="models/tiny_base"),
        stages=(
            StageConfig(
                name="dpo",
                steps=200,
                data=_data("pairs"),
                objective=Preference(beta=0.5),
                optimizer=OptimizerConfig(
                    name="muon",
                    learning_rate=4e-4,
                    muon_learning_rate=0.004,
                    warmup_steps=10,
                    decay="linear",
                    final_learning_rate_fraction=0.1,
                    weight_decay=0.0,
                ),
                evaluation=EvaluationConfig(
                    data=_data("held_out_pairs"), every_steps=20, batches=64
                ),
            ),
            # Measures the policy on silent clips. SimPO needs no reference: of DPO it would be the
            # policy itself, which prefers nothing to itself.
            StageConfig(
                name="silent",
                steps=1,
                data=_data("pairs"),
                objective=Preference(loss="simpo"),
                optimizer=OptimizerConfig(learning_rate=1e-12, weight_decay=0.0),
                evaluation=EvaluationConfig(data=_data("held_out_silent_pairs"), batches=64),
            ),
        ),
        compute=ComputeConfig(dtype="float32", remat="none"),
        checkpoint=CheckpointConfig(every_steps=50),
    )


def _data(name: str) -> DataConfig:
    return DataConfig(
        sources=(SourceConfig(path=f"runs/tone/data/{name}.jsonl"),),
        batch_size=8,
        seq_len=256,
        audio_chunks_per_seq=4,
        mel_frames_per_chunk=352,
    )
