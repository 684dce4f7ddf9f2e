"""Objectives of reinforcement learning: settings that would train nothing are refused."""

import dataclasses

import pytest

from stepaudio_jax.config import (
    DataConfig,
    LoRAConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SourceConfig,
    StageConfig,
)
from stepaudio_jax.errors import ConfigError

GROUPS = ("rloo", "grpo", "dr_grpo", "reinforce")
VERIFIED = RewardConfig(verifier="number", verifier_weight=1.0)
BY_A_FUNCTION = RewardConfig(verifier="mine:score", verifier_weight=1.0)
BY_FORM_TOO = RewardConfig(verifier="number", verifier_weight=1.0, format_weight=0.1)


def policy_stage(*rewards, trainable=("decoder",), chunks=0, lora=0, **settings):
    rollout = {
        name: settings.pop(name)
        for name in ("num_prompts", "num_generations", "max_new_tokens", "temperature")
        if name in settings
    }
    data = DataConfig(sources=(SourceConfig(path="a.jsonl"),), audio_chunks_per_seq=chunks)
    objective = PolicyGradient(
        rollout=RolloutConfig(**rollout), rewards=rewards or (VERIFIED,), **settings
    )
    return StageConfig(
        name="p",
        steps=1,
        data=data,
        objective=objective,
        trainable=trainable,
        lora=LoRAConfig(rank=lora),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            (
                {"num_generations": 1, "advantage_estimator": name},
                f"rollout.num_generations=1 gives advantage_estimator='{name}' nothing",
            )
            for name in GROUPS
        ),
        (
            {"num_generations": 1, "kl_placement": "reward", "kl_coef": 0.1},
            "rollout.num_generations=1",
        ),
        (
            {"num_generations": 4, "num_correct_range": (4, 4)},
            r"num_correct_range=\(4, 4\) keeps prompts whose 4 replies rewards.0",
        ),
        (
            {"num_generations": 4, "num_correct_range": (0, 0)},
            r"num_correct_range=\(0, 0\) keeps prompts whose 4 replies rewards.0",
        ),
        ({"num_generations": 4, "num_correct_range": (5, 5)}, "exceeds rollout.num_generations=4"),
        (
            {
                "advantage_estimator": "gae",
                "num_prompts": 1,
                "num_generations": 1,
                "max_new_tokens": 1,
            },
            "one token a step",
        ),
        ({"temperature": 0.0}, "temperature=0.0 must be at least 0.01"),
        ({"temperature": 1e-9}, "temperature=1e-09 must be at least 0.01"),
        ({"clip_low": 0.0}, "clip_low=0.0 must be at least 1e-06"),
        ({"clip_high": 1e-12}, "clip_high=1e-12 must be at least 1e-06"),
        (
            {"trainable": ("adaptor",)},
            r"trainable=\('adaptor',\) only has parts that process audio, and data",
        ),
        ({"trainable": ()}, "trainable is empty"),
    ],
)
def test_settings_whose_advantages_are_all_zero_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        policy_stage(**settings)


def test_settings_close_to_those_that_still_train_are_allowed():
    policy_stage(num_generations=2)
    policy_stage(num_generations=1, advantage_estimator="gae")
    policy_stage(num_generations=4, num_correct_range=(3, 4))
    policy_stage(num_generations=4, num_correct_range=(4, 4), kl_placement="reward")
    policy_stage(num_generations=4, num_correct_range=(4, 4), advantage_estimator="gae")
    policy_stage(BY_FORM_TOO, num_generations=4, num_correct_range=(4, 4))
    policy_stage(BY_A_FUNCTION, num_generations=4, num_correct_range=(0, 0))
    policy_stage(trainable=("adaptor",), chunks=1)
    policy_stage(trainable=("adaptor",), lora=2)
    of_sums = dataclasses.replace(VERIFIED, sources=("sums",))
    with pytest.raises(ConfigError, match=r"rewards.1 values alike"):
        policy_stage(BY_FORM_TOO, of_sums, num_generations=4, num_correct_range=(4, 4))
    with pytest.raises(ConfigError, match=r"num_correct_range=\(4, 4\)"):
        policy_stage(BY_A_FUNCTION, num_generations=4, num_correct_range=(4, 4))


def test_policy_gradient_does_not_split_dialogues():
    stage = policy_stage()
    split = dataclasses.replace(stage.data, on_too_long="split")
    with pytest.raises(ConfigError, match=r"data.on_too_long='split' .* objective=next_token; say"):
        dataclasses.replace(stage, data=split)
    assert dataclasses.replace(stage, data=dataclasses.replace(split, on_too_long="skip"))
