"""The folder of a run: what may be continued, and what is refused without touching it."""

import dataclasses
import json

import pytest

from stepaudio_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    PolicyGradient,
    RewardConfig,
    SourceConfig,
    StageConfig,
    build,
    override,
)
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.run_folder import check_same_run, prepare_run_folder, read_model_spec
from tests.models.random_model import SMALL


@pytest.fixture
def config(tmp_path):
    stage = StageConfig(
        name="sft", steps=10, data=DataConfig(sources=(SourceConfig(path="日本.jsonl"),))
    )
    objective = PolicyGradient(rewards=(RewardConfig(format_weight=1.0),))
    rl_stage = dataclasses.replace(stage, name="rl", objective=objective)
    run_dir = str(tmp_path / "runs" / "one")
    return Config(run_dir=run_dir, stages=(stage, rl_stage), tokenizer="bytes")


def claim(config):
    return prepare_run_folder(config, SMALL, Tokenizer.byte_level(), begins=True)


def test_the_written_configuration_is_the_resolved_one(config):
    check_same_run(config)
    run_dir = claim(config)
    assert (
        build(Config, json.loads((run_dir / "config.json").read_text(encoding="utf-8"))) == config
    )
    assert {path.name for path in run_dir.iterdir()} == {"config.json", "checkpoints"}
    shape, tokenizer = read_model_spec(run_dir)
    assert shape == SMALL
    assert tokenizer.encode("é") == Tokenizer.byte_level().encode("é")
    check_same_run(config)


@pytest.mark.parametrize(
    ("key", "named", "value"),
    [
        ("seed", "seed", "1"),
        ("model.decoder.layers", "model.decoder.layers", "1"),
        ("stages.sft.steps", "stages.0.steps", "11"),
        ("stages.sft.data.sources.0.path", "stages.0.data.sources.0.path", "b.jsonl"),
        ("stages.sft.trainable", "stages.0.trainable", "('decoder',)"),
    ],
)
def test_another_configuration_is_refused_by_the_key_that_differs(config, key, named, value):
    run_dir = claim(config)
    before = (run_dir / "config.json").read_bytes()
    with pytest.raises(
        ConfigError, match=rf"one holds a run with another configuration \(differs in {named}\)"
    ):
        check_same_run(override(config, (key, value)))
    assert (run_dir / "config.json").read_bytes() == before


def test_another_stage_is_refused(config):
    claim(config)
    again = dataclasses.replace(config.stages[0], name="again")
    with pytest.raises(ConfigError, match=r"differs in stages\)"):
        check_same_run(dataclasses.replace(config, stages=(*config.stages, again)))


def test_what_computes_nothing_may_change(config):
    claim(config)
    changed = dataclasses.replace(
        config, log_every_steps=1, checkpoint=CheckpointConfig(every_steps=7, keep=9)
    )
    check_same_run(changed)
    claim(changed)
    check_same_run(config)


def test_a_run_may_be_moved_and_named_in_another_way(config):
    moved = claim(config).rename(config.run_dir + "_moved")
    check_same_run(dataclasses.replace(config, run_dir=str(moved)))


def test_what_only_rounding_tells_may_change(config):
    """For a run that goes on on fewer devices, or smaller ones."""
    claim(config)
    for key, value in (
        ("remat", "none"),
        ("remat_names", "('query',)"),
        ("loss_chunks", "4"),
        ("rules.heads", "()"),
    ):
        check_same_run(override(config, (f"compute.{key}", value)))
    check_same_run(override(config, ("stages.sft.gradient_accumulation_steps", "2")))
    with pytest.raises(ConfigError, match=r"differs in compute.dtype\)"):
        check_same_run(override(config, ("compute.dtype", "float32")))


def test_what_becomes_of_unusable_records_and_what_reading_and_writing_take_may_change(config):
    claim(config)
    for key, value in (
        ("on_bad_audio", "skip"),
        ("on_too_long", "skip"),
        ("threads", "1"),
        ("prefetch_batches", "1"),
    ):
        check_same_run(override(config, (f"stages.sft.data.{key}", value)))
        check_same_run(override(config, (f"stages.sft.evaluation.data.{key}", value)))
    for key in ("slots", "tensor"):
        check_same_run(override(config, (f"stages.rl.objective.rollout.{key}", "3")))


def test_a_judge_may_be_mended_and_not_be_another(config):
    claim(config)
    for key, value in (
        ("max_tokens", "9"),
        ("timeout_s", "5"),
        ("retries", "0"),
        ("max_abstention_rate", "0.5"),
    ):
        check_same_run(override(config, (f"stages.rl.objective.judge.{key}", value)))
    with pytest.raises(
        ConfigError, match=r"differs in stages.1.objective.judge.preference_levels\)"
    ):
        check_same_run(override(config, ("stages.rl.objective.judge.preference_levels", "3")))


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"a"', "\xff"])
def test_a_config_that_is_none_is_refused(config, tmp_path, content):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"runs.one"):
        check_same_run(config)


@pytest.mark.parametrize("name", ["model", "checkpoints", "metrics.jsonl"])
def test_what_another_program_left_is_not_taken_for_this_run(config, tmp_path, name):
    """A folder `model` would otherwise count as the finished model of this run."""
    (tmp_path / "runs" / "one" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"holds {name} and no config\.json"):
        check_same_run(config)


@pytest.mark.parametrize("run_dir", ["file", "file/run"])
def test_a_file_is_no_run_folder(config, tmp_path, run_dir):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"run_dir='.*file.* is a file"):
        check_same_run(dataclasses.replace(config, run_dir=str(tmp_path / run_dir)))


def test_a_folder_with_other_things_in_it_is_free(config, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "log.txt").write_text("")
    check_same_run(config)
