"""The simulated user's settings: what cannot work is refused by its key."""

import re

import pytest

from stepaudio_jax.config import (
    Config,
    DataConfig,
    JudgeConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SimulatedUserConfig,
    SourceConfig,
    StageConfig,
    build,
    override,
)
from stepaudio_jax.errors import ConfigError
from tests.config.minimal import TWO_STAGES

URL = {"url": "http://localhost/v1", "model": "m"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://h/v1"}, "url='http://h/v1' and model=None belong together"),
        ({"url": "h", "model": "m"}, "url='h' must begin with http"),
        ({**URL, "folder": "f"}, "folder='f' and url='http://localhost/v1' are two users"),
        ({**URL, "turns": 1}, "turns=1 leaves the simulated user nothing to say"),
        ({**URL, "turns": 0}, "turns=0 must be positive"),
        ({"turns": 4}, "turns=4 needs a simulated user: set folder, or url and model"),
        ({"speak": ("say",)}, "speak=('say',) needs a simulated user"),
        ({**URL, "speak": ("",)}, "speak=('',) must begin with the name of a program"),
        ({**URL, "speak": ("a", "b\0")}, "has a NUL"),
        ({**URL, "end": " "}, "end=' ' must be some characters"),
        ({**URL, "temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"folder": "f", "temperature": None}, "temperature=None leaves it to an endpoint"),
        ({**URL, "max_failure_rate": 1.5}, "max_failure_rate=1.5 must be between 0 and 1"),
        ({**URL, "speak_timeout_s": 0.0}, "speak_timeout_s=0.0 must be positive"),
        ({**URL, "prompt": ""}, "prompt='' is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        SimulatedUserConfig(**settings)


def test_without_a_user_a_rollout_has_one_turn():
    assert SimulatedUserConfig().max_turns == 1
    assert SimulatedUserConfig(**URL, turns=5).max_turns == 5


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"compare_with": "group", "format_weight": 1.0}, "judge_weight=0"),
        ({"judge_weight": 1.0, "group_opponents": 2}, "group_opponents=2 is for compare_with"),
        (
            {"judge_weight": 1.0, "compare_with": "group", "group_opponents": 0},
            "group_opponents=0 must be positive",
        ),
    ],
)
def test_comparisons_without_what_they_need_are_refused(reward, message):
    with pytest.raises(ConfigError, match=message):
        RewardConfig(**reward)


def test_a_group_of_one_is_compared_with_nothing():
    with pytest.raises(ConfigError, match=r"rewards.0.compare_with='group' .*num_generations=1"):
        PolicyGradient(
            rollout=RolloutConfig(num_generations=1),
            rewards=(RewardConfig(judge_weight=1.0, compare_with="group"),),
            judge=JudgeConfig(**URL),
            advantage_estimator="gae",
        )


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_voice_without_room_for_audio_is_refused(chunks):
    user = SimulatedUserConfig(**URL, speak=("say",))
    with pytest.raises(ConfigError, match=rf"\.speak gives .* for 2 turns .*_per_seq={chunks}:"):
        StageConfig(
            name="p",
            steps=1,
            data=DataConfig(sources=(SourceConfig(path="a"),), audio_chunks_per_seq=chunks),
            objective=PolicyGradient(
                rollout=RolloutConfig(simulated_user=user),
                rewards=(RewardConfig(format_weight=1.0),),
            ),
            trainable=("decoder",),
        )


def test_flags_set_the_user_and_the_command_that_speaks():
    base = "stages.rl.objective.rollout.simulated_user"
    config = override(
        build(Config, TWO_STAGES),
        (f"{base}.url", "http://localhost/v1"),
        (f"{base}.model", "m"),
        (f"{base}.speak", "('espeak-ng', '--stdin', '--stdout')"),
        (f"{base}.turns", "2"),
    )
    user = config.stages[1].policy_gradient.rollout.simulated_user
    assert user.speak == ("espeak-ng", "--stdin", "--stdout")
    assert (user.enabled, user.max_turns) == (True, 2)
    with pytest.raises(ConfigError, match=r"stages\.1.*simulated_user: turns=1 leaves"):
        override(config, (f"{base}.turns", "1"))
