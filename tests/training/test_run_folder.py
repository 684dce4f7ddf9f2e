"""The folder of a run: which run may be continued, what is refused, and the lock."""

import dataclasses
import json
import subprocess
import sys

import pytest

from stepaudio_jax import train
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
    to_dict,
)
from stepaudio_jax.errors import CheckpointError, ConfigError
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training import export_checkpoint
from stepaudio_jax.training.run_folder import (
    LAYOUT,
    LOCK,
    RunLock,
    check_same_run,
    prepare_run_folder,
    read_model_spec,
    read_run_config,
)
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


def prepare(config):
    return prepare_run_folder(config, SMALL, Tokenizer.byte_level(), begins=True)


def test_the_written_configuration_is_the_resolved_one(config):
    check_same_run(config)
    run_dir = prepare(config)
    assert build(Config, read_run_config(run_dir)) == config
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
def test_another_configuration_is_refused_naming_the_key_that_differs(config, key, named, value):
    run_dir = prepare(config)
    before = (run_dir / "config.json").read_bytes()
    with pytest.raises(
        ConfigError, match=rf"one holds a run with another configuration \(differs in {named}\)"
    ):
        check_same_run(override(config, (key, value)))
    assert (run_dir / "config.json").read_bytes() == before


def test_another_stage_is_refused(config):
    prepare(config)
    again = dataclasses.replace(config.stages[0], name="again")
    with pytest.raises(ConfigError, match=r"differs in stages\)"):
        check_same_run(dataclasses.replace(config, stages=(*config.stages, again)))


def test_keys_that_do_not_change_the_computation_may_change(config):
    prepare(config)
    changed = dataclasses.replace(
        config, log_every_steps=1, checkpoint=CheckpointConfig(every_steps=7, keep=9)
    )
    check_same_run(changed)
    prepare(changed)
    check_same_run(config)


def test_a_run_folder_may_be_moved(config):
    moved = prepare(config).rename(config.run_dir + "_moved")
    check_same_run(dataclasses.replace(config, run_dir=str(moved)))


def test_keys_that_change_rounding_only_may_change(config):
    """So that a run can be continued on fewer or smaller devices."""
    prepare(config)
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


def test_keys_about_bad_records_and_resources_may_change(config):
    prepare(config)
    for key, value in (
        ("on_bad_audio", "skip"),
        ("on_too_long", "skip"),
        ("threads", "1"),
        ("workers", "2"),
        ("prefetch_batches", "1"),
        ("clip_cache_dir", "/tmp/clips"),
        ("clip_cache_gb", "1.5"),
    ):
        check_same_run(override(config, (f"stages.sft.data.{key}", value)))
        check_same_run(override(config, (f"stages.sft.evaluation.data.{key}", value)))
    for key in ("slots", "tensor"):
        check_same_run(override(config, (f"stages.rl.objective.rollout.{key}", "3")))


def test_a_judges_limits_may_change_and_its_levels_may_not(config):
    prepare(config)
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
def test_a_config_json_that_is_no_configuration_is_refused(config, tmp_path, content):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"runs.one"):
        check_same_run(config)


@pytest.mark.parametrize("name", ["model", "checkpoints", "metrics.jsonl"])
def test_leftovers_of_another_program_are_not_taken_for_this_run(config, tmp_path, name):
    """Otherwise a folder `model` would count as the finished model of this run."""
    (tmp_path / "runs" / "one" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"holds {name} and no config\.json"):
        check_same_run(config)


@pytest.mark.parametrize("run_dir", ["file", "file/run"])
def test_a_file_is_refused_as_run_folder(config, tmp_path, run_dir):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"run_dir='.*file.* is a file"):
        check_same_run(dataclasses.replace(config, run_dir=str(tmp_path / run_dir)))


def test_a_folder_with_unrelated_files_is_free(config, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "log.txt").write_text("")
    check_same_run(config)


@pytest.mark.parametrize("layout", [None, 1, 3])
def test_a_run_of_another_layout_is_refused_with_one_error(config, tmp_path, layout):
    """By training, and by the export of a checkpoint; renamed keys are not listed."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    old = {"stages": [{"name": "sft", "rl": {}}], **({} if layout is None else {"layout": layout})}
    (folder / "config.json").write_text(json.dumps(old))
    message = rf"one was written by another version \(layout {layout or 1}, here {LAYOUT}\): finish"
    with pytest.raises(CheckpointError, match=message):
        check_same_run(config)
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(folder, tmp_path / "model", make_mesh(config.mesh))


# The lock.

HOLD = """
import sys
from stepaudio_jax.storage import lock_file
held = lock_file(sys.argv[1])
held.file.write(sys.argv[2].encode())
held.file.flush()
print(flush=True)
sys.stdin.read()
"""
HOLDER = json.dumps({"process": 77, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"})


@pytest.fixture
def run_dir(tmp_path):
    """A folder that holds a run."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def lock_in_another_process(run_dir, note):
    """Starts another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, run_dir / LOCK, note]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


@pytest.mark.parametrize(
    ("note", "shown"),
    [
        (HOLDER, r" \(process 77 on elsewhere, since 2026-01-01T00:00:00\+00:00\)"),
        ("", ""),
        ("garbage", ""),
        ("[1]", ""),
    ],
)
def test_a_second_job_is_refused_until_the_first_one_is_dead(run_dir, note, shown):
    with lock_in_another_process(run_dir, note) as other:
        for _ in range(2):
            message = f"run' is in use by another job{shown}: wait for it or stop it, or choose"
            with pytest.raises(ConfigError, match=message):
                RunLock(str(run_dir)).acquire_if_exists()
        other.kill()
        other.wait()
        lock = RunLock(str(run_dir))
        lock.acquire_if_exists()
    lock.acquire()  # already held: nothing happens
    assert (run_dir / LOCK).exists()
    lock.close()
    assert not (run_dir / LOCK).exists()


def test_a_second_run_in_the_same_process_is_refused_until_the_first_ends(run_dir):
    first = RunLock(str(run_dir))
    first.acquire_if_exists()
    with pytest.raises(ConfigError, match="in use by another job in this process"):
        RunLock(str(run_dir)).acquire_if_exists()
    first.close()
    second = RunLock(str(run_dir))
    second.acquire_if_exists()
    second.close()


def test_of_two_jobs_that_begin_at_once_one_gets_the_folder(tmp_path):
    run_dir = tmp_path / "new" / "run"
    first, second, third = (RunLock(str(run_dir)) for _ in range(3))
    for lock in (first, second, third):
        lock.acquire_if_exists()
    assert not run_dir.parent.exists()
    first.acquire()
    with pytest.raises(ConfigError, match="in use by another job"):
        second.acquire()
    (run_dir / "config.json").write_text("{}")
    first.close()
    with pytest.raises(
        ConfigError, match="another job has begun there meanwhile; start the same command again"
    ):
        third.acquire()
    for lock in (second, third):
        lock.close()


def test_training_in_a_locked_folder_ends_before_it_loads_anything(run_dir):
    """Tokenizer and data do not exist: a job that gets to them raises something else."""
    stage = StageConfig(
        name="sft", steps=1, data=DataConfig(sources=(SourceConfig(path="nowhere.jsonl"),))
    )
    config = Config(run_dir=str(run_dir), stages=(stage,), tokenizer="nowhere")
    saved = {"layout": LAYOUT, **to_dict(config)}
    (run_dir / "config.json").write_text(json.dumps(saved))
    with lock_in_another_process(run_dir, HOLDER) as other:
        with pytest.raises(ConfigError, match="process 77 on elsewhere"):
            train(config)
        other.kill()
    with pytest.raises(Exception, match="nowhere"):
        train(config)
