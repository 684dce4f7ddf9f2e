"""`--help` lists every key with its type, default and comment."""

import dataclasses
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

import stepaudio_jax.config
from stepaudio_jax.config.help import config_help, field_comments
from tests.end_to_end.runs import ROOT

CLASSES = [
    cls
    for cls in vars(stepaudio_jax.config).values()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls)
]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_has_a_comment(cls):
    assert field_comments(cls).keys() == {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("cls", CLASSES)
def test_no_field_is_hidden_by_an_attribute_of_configdict(cls):
    """ml-collections reads an attribute of that name before the key."""
    assert not {field.name for field in dataclasses.fields(cls)} & set(dir(ConfigDict))


def test_a_key_is_shown_with_value_type_default_and_comment(config):
    lines = config_help(config).splitlines()
    index = lines.index("  --config.stages.sft.steps=3  (int, required)")
    assert lines[index + 1] == "      optimizer steps, or iterations of reinforcement learning"
    assert "  --config.stages.rl.objective.kl_coef=0.01  (float, default 0.01)" in lines
    assert (
        "  --config.compute.residual_dtype=None  ('float32' or 'bfloat16' or None, default None)"
        in lines
    )
    assert any(line.startswith("--config.stages.sft.data.sources.0: ") for line in lines)


def test_without_a_file_both_objectives_are_listed():
    text = config_help()
    for cls in CLASSES:
        for field in dataclasses.fields(cls):
            assert f".{field.name}" in text


def test_no_other_library_adds_flags():
    code = (
        "import jax, grain, orbax.checkpoint\n"
        "from launch.train import main\n"
        "main(['--config=configs/sft.py', '--config.seed=7', '--help'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--config.seed=7" in ended.stdout
    flags = [line.split("=")[0].strip() for line in ended.stdout.splitlines() if " --" in line[:4]]
    assert all(
        flag.startswith(("--config", "--flagfile", "--distributed", "--help")) for flag in flags
    )
