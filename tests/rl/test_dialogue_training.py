"""Stages on dialogues with a simulated user that speaks, with the options of a stage."""

import dataclasses

import pytest

from stepaudio_jax.config import SimulatedUserConfig
from tests.rl.simulated_user import user_server, write_speaker
from tests.rl.small_stage import BASE, run_stage, stage_config, write_prompts

pytestmark = pytest.mark.slow  # each stage compiles its own programs


@pytest.fixture(scope="module")
def server():
    server = user_server()
    yield server
    server.close()


def dialogue_stage(folder, url, *, steps, policy):
    """Makes a stage of two dialogues of each of two prompts, one of them with a clip."""
    user = SimulatedUserConfig(url=url, model="user", api_key_env=None, speak=write_speaker(folder))
    return stage_config(
        folder,
        write_prompts(folder, 2),
        steps=steps,
        data={"seq_len": 320, "audio_chunks_per_seq": 4},
        rollout={
            "num_prompts": 2,
            "num_generations": 2,
            "max_new_tokens": 40,
            "simulated_user": user,
        },
        policy=policy,
    )


def test_a_resumed_stage_is_the_same(tmp_path, server):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    policy = {"minibatches": 2, "aggregation": "sequence_mean", "ratio_level": "sequence"}
    config = dialogue_stage(tmp_path / "whole", server.url, steps=2, policy=policy)
    _, whole = run_stage(config)
    assert whole[0]["sampler_mismatch"] < 1.001
    assert whole[0]["turns"] > 1
    cut = dialogue_stage(tmp_path / "cut", server.url, steps=2, policy=policy)
    run_stage(dataclasses.replace(cut, stages=(dataclasses.replace(cut.stages[0], steps=1),)))
    _, again = run_stage(cut)
    names = [name for name in whole[0] if not name.startswith("seconds/")]
    assert [[line.get(name) for name in names] for line in again] == [
        [line.get(name) for name in names] for line in whole
    ]


def test_values_are_carried_from_a_reply_to_the_next(tmp_path, server):
    policy = {
        "advantage_estimator": "gae",
        "kl_placement": "reward",
        "value_clip": None,
        "value_coef": 1.0,
    }
    _, lines = run_stage(dialogue_stage(tmp_path, server.url, steps=3, policy=policy))
    # With gamma and lambda 1 the return of every token of a dialogue is its reward, as yet.
    assert lines[0]["value_loss"] == pytest.approx(lines[0]["reward_verifier"] / 2, rel=0.6)
    assert lines[-1]["value_loss"] < lines[0]["value_loss"]


def test_a_teacher_that_is_the_policy_agrees_on_every_turn(tmp_path, server):
    """It hears the record's clip and the user's by its own encoder."""
    config = dialogue_stage(tmp_path, server.url, steps=1, policy={"teacher": str(BASE)})
    _, (line,) = run_stage(config)
    assert line["turns"] > 1
    assert line["audio_chunks_encoded"] > 1
    assert abs(line["reply_kl"]) < 1e-3
    assert abs(line["kl"]) < 1e-5


def test_prompts_in_place_of_others_are_dialogues_too(tmp_path, server):
    policy = {"num_correct_range": (1, 1), "max_refills": 3}
    _, (line,) = run_stage(dialogue_stage(tmp_path, server.url, steps=1, policy=policy))
    assert line["refilled_prompts"] >= 1
    assert line["sampler_mismatch"] < 1.001
