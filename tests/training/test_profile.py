"""A profile of some steps of a run."""

import jax.numpy as jnp
import pytest

from stepaudio_jax.config import Config, DataConfig, SourceConfig, StageConfig
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.training.monitoring import StepProfile


def config(profile_steps):
    stage = StageConfig(name="sft", steps=3, data=DataConfig(sources=(SourceConfig(path="none"),)))
    return Config(run_dir="none", stages=(stage,), profile_steps=profile_steps)


def test_a_profile_of_the_asked_steps_is_written(tmp_path):
    profile = StepProfile(tmp_path, config("2:3").profiled_steps())
    for step in (1, 2, 3, 4):
        profile.before(step)
        assert (tmp_path / "profile").exists() == (step > 3)
        profile.after(step, jnp.ones(3) * step)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_profile_that_the_run_ends_in_is_written(tmp_path):
    profile = StepProfile(tmp_path, (1, 100))
    profile.before(1)
    profile.after(1, jnp.ones(3))
    profile.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["3", "3:2", "0:4", "a:b"])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(ConfigError, match=f"profile_steps='{steps}' must be FIRST:LAST"):
        config(steps)
