"""Options of a policy-gradient stage, each in a short run whose effect is seen."""

import dataclasses

import jax
import numpy as np
import pytest

from stepaudio_jax.config import Distillation, RolloutConfig
from tests.rl.small_stage import BASE, base, run_stage, stage_config, write_prompts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts"))


def with_objective(config, **settings):
    stage = config.stages[0]
    objective = dataclasses.replace(stage.policy_gradient, **settings)
    return dataclasses.replace(config, stages=(dataclasses.replace(stage, objective=objective),))


def test_filtered_prompts_are_replaced_until_the_batch_is_whole(tmp_path, prompts):
    """About half of the groups have one or two right replies of four."""
    ranges = {"num_correct_range": (1, 2)}
    _, masked = run_stage(stage_config(tmp_path / "masked", prompts, steps=2, policy=ranges))
    assert any(line["valid_rollouts"] < 1 for line in masked)
    whole = {**ranges, "max_refills": 12}
    _, refilled = run_stage(stage_config(tmp_path / "whole", prompts, steps=2, policy=whole))
    assert all(line["valid_rollouts"] == 1 for line in refilled)
    assert sum(line.get("refilled_prompts", 0) for line in refilled) > 0
    # The metrics of rewards are those of the prompts drawn first, the same in both runs.
    assert refilled[0]["reward"] == masked[0]["reward"]


def test_a_refreshed_reference_follows_the_policy_also_after_a_resume(tmp_path, prompts):
    settings = {"kl_coef": 0.1}
    _, kept = run_stage(stage_config(tmp_path / "kept", prompts, steps=4, policy=settings))
    refreshing = {**settings, "reference_refresh_steps": 2}
    after, moved = run_stage(stage_config(tmp_path / "moved", prompts, steps=4, policy=refreshing))
    assert kept[2]["reply_kl"] != 0
    assert moved[1]["reply_kl"] == kept[1]["reply_kl"] != 0
    assert moved[2]["reply_kl"] == 0  # of the first step after the refresh
    assert moved[3]["reply_kl"] != 0
    config = stage_config(tmp_path / "resumed", prompts, steps=3, policy=refreshing)
    run_stage(config)
    stage = dataclasses.replace(config.stages[0], steps=4)
    resumed, lines = run_stage(dataclasses.replace(config, stages=(stage,)))
    assert lines[3]["reply_kl"] == moved[3]["reply_kl"]
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_entropy_bonus_keeps_entropy(tmp_path, prompts):
    lines = {}
    for name, coefficient in (("without", 0.0), ("with", 0.5)):
        policy = {"entropy_coef": coefficient, "kl_coef": 0.0}
        _, lines[name] = run_stage(stage_config(tmp_path / name, prompts, steps=4, policy=policy))
    assert lines["with"][0]["entropy"] == pytest.approx(lines["without"][0]["entropy"], rel=1e-5)
    assert lines["with"][-1]["entropy"] > lines["without"][-1]["entropy"] + 0.01


@pytest.mark.parametrize(
    "policy",
    [
        {"ratio_level": "sequence", "aggregation": "sequence_mean", "epochs": 2},
        {"policy_loss": "cispo", "epochs": 2, "mask_truncated": True},
        {"advantage_estimator": "dpo", "aggregation": "sequence_sum", "kl_coef": 0.0},
        {
            "max_importance_weight": 1.5,
            "min_importance_weight": 0.5,
            "importance_level": "sequence",
            "importance_outside": "mask",
        },
    ],
    ids=["gspo", "cispo", "online_dpo", "bounds"],
)
def test_forms_of_the_loss_run(tmp_path, prompts, policy):
    after, lines = run_stage(stage_config(tmp_path, prompts, steps=2, policy=policy))
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert not jax.tree.all(jax.tree.map(np.array_equal, after.params, base().parameters))


def test_a_policy_learns_from_a_teacher_that_scores_its_own_replies(tmp_path, prompts):
    """The student is the teacher with noise in its decoder: the KL on its replies falls."""
    config = stage_config(tmp_path, prompts, steps=6)
    objective = Distillation(
        teacher=str(BASE),
        on_policy=True,
        rollout=RolloutConfig(num_prompts=4, num_generations=4, max_new_tokens=24, slots=8),
    )
    stage = config.stages[0]
    optimizer = dataclasses.replace(stage.optimizer, learning_rate=2e-3, eps=1e-8)
    stage = dataclasses.replace(stage, objective=objective, optimizer=optimizer)
    rng = np.random.default_rng(0)
    student = jax.tree.map(
        lambda leaf: (
            np.asarray(leaf)
            + 0.3 * np.std(leaf) * rng.standard_normal(leaf.shape).astype(np.float32)
        ),
        base().parameters["decoder"],
    )
    _, lines = run_stage(dataclasses.replace(config, stages=(stage,)), decoder=student)
    kl = [line["kl"] for line in lines]
    assert kl[0] > 0.05
    assert np.mean(kl[-2:]) < 0.8 * kl[0]
