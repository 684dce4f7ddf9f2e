"""Preferences, distillation and options of policies: settings that contradict each other."""

import dataclasses

import pytest

from stepaudio_jax.config import (
    AugmentationConfig,
    Config,
    DataConfig,
    Distillation,
    EvaluationConfig,
    PolicyGradient,
    Preference,
    RewardConfig,
    RolloutConfig,
    SourceConfig,
    StageConfig,
    build,
)
from stepaudio_jax.errors import ConfigError

DATA = DataConfig(sources=(SourceConfig(path="a.jsonl"),))
REWARDS = (RewardConfig(format_weight=1.0),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta=0.0 must be positive"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5 must be at least 0 and less than 0.5"),
        (
            {"loss": "ipo", "label_smoothing": 0.1},
            "label_smoothing=0.1 is for loss='dpo' or 'simpo'",
        ),
        ({"target_margin": 0.5}, "target_margin=0.5 is for loss='simpo'"),
        ({"loss": "kto", "length_normalized": True}, "length_normalized=True is for loss='dpo'"),
        ({"undesirable_weight": 2.0}, "undesirable_weight=2.0 is for loss='kto'"),
        ({"loss": "simpo", "precompute_reference": True}, "precompute_reference=True is for"),
        ({"loss": "orpo", "equal_pairs": "half"}, "equal_pairs='half' has no place"),
        ({"next_token_coef": -1.0}, "next_token_coef=-1.0 must not be negative"),
    ],
)
def test_settings_without_a_place_in_a_loss_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Preference(**settings)


@pytest.mark.parametrize(
    ("loss", "reference", "equal", "next_token"),
    [
        ("dpo", True, False, 0.0),
        ("ipo", True, False, 0.0),
        ("simpo", False, False, 0.0),
        ("orpo", False, True, 1.0),
        ("kto", True, True, 0.0),
    ],
)
def test_what_each_loss_needs(loss, reference, equal, next_token):
    objective = Preference(loss=loss)
    assert objective.needs_reference_params == reference
    assert objective.skips_equal_pairs == equal
    assert objective.next_token_weight == next_token
    if reference:
        stored = Preference(loss=loss, precompute_reference=True)
        assert not stored.needs_reference_params


def stage(objective, **settings):
    return StageConfig(
        **{"name": "s", "steps": 1, "data": DATA, "objective": objective, **settings}
    )


def test_what_a_stage_of_preferences_does_not_support():
    split = dataclasses.replace(DATA, on_too_long="split")
    with pytest.raises(ConfigError, match=r"data.on_too_long='split' cuts replies"):
        stage(Preference(), data=split)
    with pytest.raises(ConfigError, match=r"evaluation.data.on_too_long='split'"):
        stage(Preference(), evaluation=EvaluationConfig(data=split))
    changed = dataclasses.replace(DATA, augmentation=AugmentationConfig(silence_probability=0.1))
    stage(Preference(), data=changed)
    with pytest.raises(ConfigError, match="precompute_reference=True computes"):
        stage(Preference(precompute_reference=True), data=changed)
    chunks = {"compute": {"loss_chunks": 3}, "run_dir": "r"}
    with pytest.raises(ConfigError, match=r"data.seq_len=4096 .* which preference splits"):
        build(Config, {**chunks, "stages": [stage(Preference())]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": ""}, "teacher='' is empty"),
        ({"beta": 1.5}, "beta=1.5 must be between 0 and 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"on_policy": True, "beta": 0.5}, "beta=0.5 is for replies of the data"),
        ({"rollout": RolloutConfig(num_prompts=3)}, "rollout is for on_policy=true"),
        ({"epochs": 2}, "epochs is for on_policy=true"),
        ({"minibatches": 2}, "minibatches is for on_policy=true"),
    ],
)
def test_distillation_checks_its_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Distillation(**{"teacher": "folder", **settings})


def test_an_on_policy_stage_has_rollouts_and_needs_no_rewards():
    on_policy = stage(
        Distillation(teacher="t", on_policy=True, rollout=RolloutConfig(num_generations=1))
    )
    assert on_policy.has_rollouts
    assert on_policy.policy_gradient.teacher == "t"
    assert not on_policy.policy_gradient.needs_reference_params
    assert not stage(Distillation(teacher="t")).has_rollouts
    with pytest.raises(ConfigError, match=r"objective.rewards is empty"):
        stage(PolicyGradient())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_loss": "cispo", "ratio_level": "sequence"}, "ratio_level='sequence' is for"),
        ({"policy_loss": "cispo", "dual_clip": 3.0}, "dual_clip=3.0 is for policy_loss='clip'"),
        ({"min_importance_weight": 0.5}, "needs max_importance_weight"),
        ({"importance_outside": "mask"}, "importance_outside='mask' needs max_importance_weight"),
        ({"max_refills": 2}, "max_refills=2 replaces prompts outside num_correct_range"),
        ({"reference_refresh_steps": 5, "kl_coef": 0.0}, "needs kl_coef above 0"),
        ({"reference_refresh_steps": 5, "teacher": "t"}, "give one of them"),
        ({"teacher": "t", "kl_coef": 0.0}, "teacher='t' needs kl_coef above 0"),
        ({"entropy_coef": -0.1}, "entropy_coef=-0.1 must not be negative"),
        ({"advantage_estimator": "dpo"}, "needs aggregation='sequence_sum'"),
        ({"dpo_beta": 0.3}, "dpo_beta=0.3 is for advantage_estimator='dpo'"),
    ],
)
def test_options_of_policies_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        PolicyGradient(rewards=REWARDS, **settings)


def test_a_reward_can_be_scaled_but_not_to_nothing():
    with pytest.raises(ConfigError, match=r"scale=0.0 must be positive"):
        RewardConfig(format_weight=1.0, scale=0.0)
